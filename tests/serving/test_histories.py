"""Histories: each user's newest interactions, within a bound, whatever the topic contains."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.users.histories import Histories
from tests.serving.test_blocks import batched
from tests.serving.world import example, interactions, slice_of
from wire.config import ActionConfig, SequenceConfig
from wire.errors import ConfigError
from wire.example import fence, num_features_of
from wire.example_codec import decode_example, encode_example
from wire.shape import SHAPE, Shape, encode_shape, shape_of

ROWS = interactions(np.random.default_rng(0), 50)


def record(user: str, length: int, number: int, *, writer_epoch: int = 1) -> bytes:
    rows = type(ROWS)(*(getattr(ROWS, name)[:length] for name in type(ROWS).__slots__))
    return encode_example(example(user, rows, number=number, writer_epoch=writer_epoch))


def length_of(histories: Histories, user: str) -> int:
    past = histories.get(user)
    return -1 if past is None else len(past.interactions)


@pytest.mark.parametrize("seed", range(4))
def test_an_action_is_in_the_history_as_soon_as_its_record_is(seed: int) -> None:
    """Segments in any order that the topic may have them in; the newest record of each counts."""
    rng, histories = np.random.default_rng(seed), Histories(10**9, 12)
    numbers = itertools.count()
    ends, bits = {"a": 0, "b": 0}, {user: ROWS.action_bits.copy() for user in "ab"}
    for _ in range(60):
        user = "ab"[int(rng.integers(2))]
        ends[user] = min(50, ends[user] + 1)
        end = ends[user]
        segments = {(end - 1) // 4}
        if end > 2 and rng.random() < 0.5:  # an item shown before is clicked now
            bits[user][end - 2] |= 4
            segments = {(end - 2) // 4, (end - 1) // 4}
        for segment in sorted(segments):
            rows = replace(ROWS, action_bits=bits[user])
            part = slice_of(rows, 4 * segment, min(end, 4 * segment + 4))
            histories.feed(0, encode_example(
                example(user, part, number=next(numbers), segment=segment, segment_len=4)
            ))  # fmt: skip
        past = histories.get(user)
        assert past is not None
        num = len(past.interactions)
        assert min(end, 12) <= num <= 16
        np.testing.assert_array_equal(past.interactions.item_hash, ROWS.item_hash[end - num : end])
        np.testing.assert_array_equal(past.interactions.action_bits, bits[user][end - num : end])


def test_what_was_read_does_not_change_when_more_comes() -> None:
    histories = Histories(10**9)
    histories.feed(0, record("a", 5, 0))
    past = histories.get("a")
    assert past is not None
    before = past.interactions.action_bits.copy()
    rows = replace(slice_of(ROWS, 0, 6), action_bits=ROWS.action_bits[:6] ^ 7)
    histories.feed(0, encode_example(example("a", rows, number=1)))
    np.testing.assert_array_equal(past.interactions.action_bits, before)
    assert length_of(histories, "a") == 6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 50)), max_size=30))
def test_users_are_kept_apart(told: list[tuple[str, int]]) -> None:
    histories, expected = Histories(10**9), dict.fromkeys("abcde", -1)
    for number, (user, length) in enumerate(told):
        histories.feed(0, record(user, length, number))
        expected[user] = max(length, expected[user])
    assert {user: length_of(histories, user) for user in "abcde"} == expected


def test_what_a_fenced_worker_writes_is_not_read() -> None:
    histories = Histories(10**9)
    histories.feed(0, record("a", 5, 0))
    histories.feed(0, encode_example(fence(0, 2)))
    histories.feed(0, record("a", 40, 1))
    histories.feed(1, encode_example(replace(decode_example(record("b", 7, 0)), partition=1)))
    assert length_of(histories, "a") == 5
    assert length_of(histories, "b") == 7, "other partitions have fences of their own"


def test_repeats_and_holes_and_tombstones_and_damage_are_passed_over() -> None:
    histories = Histories(10**9)
    for value in (record("a", 5, 3), record("a", 9, 8), record("a", 5, 3), None, b"nonsense", record("a", 10, 9)[:-1]):
        histories.feed(0, value)
    assert length_of(histories, "a") == 9
    assert histories.num_foreign == 2


def test_an_example_with_other_columns_is_passed_over() -> None:
    """Its interactions would not fit among the others'."""
    histories = Histories(10**9)
    other = replace(ROWS, feature_hash=np.zeros((50, 7), np.int64))
    histories.feed(0, record("a", 3, 0))
    histories.feed(0, encode_example(example("a", other, number=1)))
    stranger = replace(decode_example(record("c", 3, 1)), user_feature_hash=np.zeros(7, np.int64))
    strange = [encode_example(example("b", other, number=1)), encode_example(stranger)]
    histories.feed_batches(0, batched([*strange, record("a", 4, 1)]))
    assert (len(histories), length_of(histories, "a"), histories.num_foreign) == (1, 4, 3)


def test_a_foreign_example_does_not_decide_the_columns_of_all_others() -> None:
    """Not even as the first one of a topic that is new, or created again."""
    histories = Histories(10**9, columns=(num_features_of(decode_example(record("a", 3, 0)).rows), 0))
    other = encode_example(example("evil", replace(ROWS, feature_hash=np.zeros((50, 7), np.int64)), number=0))
    for _ in range(2):
        histories.feed(0, other)
        histories.feed(0, record("a", 3, 0))
        assert (len(histories), length_of(histories, "a")) == (1, 3)
        histories.begin_anew()
    assert histories.num_foreign == 2


def test_a_worker_that_means_something_else_by_the_columns_is_refused() -> None:
    ours = ActionConfig(features=("price", "brand"))
    shape, theirs = shape_of(ours, SequenceConfig()), ActionConfig(features=("brand", "price"))
    values = [encode_example(fence(0, 1)), record("a", 3, 0)]

    def read(said: Shape) -> Histories:
        histories = Histories(10**9, topic="a topic", shape=shape)
        for batch in batched(values, headers=[(SHAPE, encode_shape(said))]):
            histories.feed_batches(0, [batch])
        return histories

    assert len(read(shape)) == 1
    with pytest.raises(
        ConfigError, match=r"a topic partition 0 offset 0: action.features: expected \('price', 'brand'"
    ):
        read(shape_of(theirs, SequenceConfig()))
    with pytest.raises(ConfigError, match=r"action.features: expected .* got examples of a worker with \(\)"):
        read(shape_of(ActionConfig(), SequenceConfig()))


def test_memory_is_bounded_and_the_quietest_user_goes_first() -> None:
    histories = Histories(10_000)
    for number in range(40):
        histories.feed(0, record(f"u{number}", 20, 2 * number))
        histories.feed(0, record("loud", 20, 2 * number + 1))
        assert histories.num_bytes <= 10_000
    assert histories.get("loud") is not None
    assert histories.get("u0") is None
    assert histories.num_forgotten > 30
    assert histories.get("u39") is not None
