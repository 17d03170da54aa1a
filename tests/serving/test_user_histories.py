"""Histories in C++ are those of `wire.history`, whatever is folded in whatever order."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from kernels.examples import decode_block
from kernels.histories import UserHistories
from tests.serving.test_blocks import FEATURES, batched, told
from wire.example import row_type
from wire.example_codec import decode_example, encode_example
from wire.history import Histories

PLENTY = 1 << 30


def same_as(kept: UserHistories, definition: Histories) -> None:
    """Compare every user's rows, bit by bit, and features."""
    assert len(kept) == len(definition)
    for user, history in definition.users.items():
        found = kept.get(user)
        assert found is not None
        assert found[0].tobytes() == history.rows(history.start, history.end).tobytes()
        assert found[1].tolist() == history.user_features.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_folded_records_give_the_histories_of_the_definition(seed: int) -> None:
    """In order, as in a topic; then once more in any order, with holes, as nothing else would send them."""
    rng = random.Random(seed)
    segment_len, max_context = rng.choice((1, 4, 7)), rng.choice((1, 9, 40))
    values = told(seed, segment_len)[1:]
    values += rng.sample(values, len(values) // 2)
    kept, definition = UserHistories(row_type(FEATURES), max_context), Histories(max_context)
    at = 0
    while at < len(values):
        num = rng.randrange(1, 30)
        block = decode_block(batched(values[at : at + num]), row_type(FEATURES))
        assert kept.fold(block, 0, len(block.heads), PLENTY) == 0
        for value in values[at : at + num]:
            definition.fold(decode_example(value))
        at += num
        same_as(kept, definition)


def test_the_comparison_finds_a_record_that_is_missing() -> None:
    values = told(3)[1:]
    kept, definition = UserHistories(row_type(FEATURES), 40), Histories(40)
    block = decode_block(batched(values), row_type(FEATURES))
    kept.fold(block, 0, len(block.heads) - 1, PLENTY)
    for value in values:
        definition.fold(decode_example(value))
    with pytest.raises(AssertionError):
        same_as(kept, definition)


@pytest.mark.parametrize("segment", [300_000, 1 << 40])
def test_a_record_of_a_segment_that_is_wrong_takes_no_room_for_all_between(segment: int) -> None:
    """The user's own records follow, far before it: the history starts anew, twice."""
    values = told(3)[1:]
    values.insert(len(values) // 2, encode_example(replace(decode_example(values[0]), segment=segment)))
    kept, definition = UserHistories(row_type(FEATURES), 40), Histories(40)
    block = decode_block(batched(values), row_type(FEATURES))
    for at, value in enumerate(values):
        kept.fold(block, at, at + 1, PLENTY)
        definition.fold(decode_example(value))
        same_as(kept, definition)
    assert kept.num_bytes < 1 << 20


def test_one_record_put_is_one_record_folded() -> None:
    kept, definition = UserHistories(row_type(FEATURES), 9), Histories(9)
    for example in map(decode_example, told(5)[1:]):
        rows = example.rows
        kept.put(example.user, example.segment_len, example.first_index, rows, example.user_feature_hash, PLENTY)
        definition.fold(example)
    same_as(kept, definition)


def test_the_users_who_were_quiet_longest_are_forgotten_and_the_newest_come_first() -> None:
    kept, rows, none = UserHistories(row_type(0), 9), np.ones(3, row_type(0)), np.empty(0, np.int64)
    for user in ("ä", "b", "", "ä", "c"):
        assert kept.put(user, 4, 0, rows, none, PLENTY) == 0
    assert kept.newest(10) == ["c", "ä", "", "b"]
    assert kept.newest(2) == ["c", "ä"]
    assert kept.newest(0) == []
    before = kept.num_bytes
    assert kept.put("c", 4, 1, rows, none, before - 1) == 1
    assert kept.newest(10) == ["c", "ä", ""]
    assert kept.num_bytes < before
    assert (kept.drop("ä"), kept.drop("ä"), kept.get("ä")) == (True, False, None)
    assert kept.put("d", 4, 0, rows, none, 1) == 2
    assert kept.newest(10) == ["d"], "whatever the bound, the last to act stays"
