"""Lessons decoded in C++, many at a time, are those that the codec reads, record by record, whatever was sent."""

from __future__ import annotations

import itertools
import random
from dataclasses import fields, replace
from functools import cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.test_blocks import FEATURES, told
from tests.state.world import ACTION
from tests.wire.test_example_codec import examples, restated, same
from trainer.sources.lessons import lessons_of
from wire.errors import CodecError
from wire.example import Example, Lesson, Mark, fence, row_type
from wire.example_codec import decode_example, encode_example
from wire.example_reader import ExampleReader
from wire.history import Histories

cached = cache(told)


class Record(NamedTuple):
    offset: int
    value: bytes | None


def one_by_one(values: list[bytes | None], partition: int) -> tuple[list[tuple[int, Any]], int, str]:
    """What the reader makes of each, how many were foreign, and the error that ended it."""
    reader, found = ExampleReader("t"), list[tuple[int, Any]]()
    try:
        for offset, value in enumerate(values):
            example = reader.read(partition, offset, value)
            found += [(offset, example)] if example is not None else []
    except CodecError as error:
        return found, reader.num_foreign, str(error)
    return found, reader.num_foreign, ""


def together(values: list[bytes | None], partition: int, num_columns: int) -> tuple[list[tuple[int, Any]], int, str]:
    reader, found = ExampleReader("t"), list[tuple[int, Any]]()
    try:
        for record, lesson in lessons_of(reader, partition, list(map(Record, range(len(values)), values)), num_columns):
            found.append((record.offset, lesson))
    except CodecError as error:
        return found, reader.num_foreign, str(error)
    return found, reader.num_foreign, ""


def agree(values: list[bytes | None], partition: int, num_columns: int) -> int:
    """Check that both ways agree; returns how many lessons there are."""
    expected, got = one_by_one(values, partition), together(values, partition, num_columns)
    assert expected[1:] == got[1:]
    assert [offset for offset, _ in expected[0]] == [offset for offset, _ in got[0]]
    for (_, example), (_, lesson) in zip(expected[0], got[0], strict=True):
        for each in fields(Lesson):
            assert same(getattr(example, each.name), getattr(lesson, each.name)), each.name
    return len(got[0])


@settings(max_examples=200, deadline=None)
@given(st.lists(examples(), max_size=4), st.integers(0, 3))
def test_any_examples_are_read_alike(made: list[Example], num_columns: int) -> None:
    agree([encode_example(each) for each in made], made[0].partition if made else 0, num_columns)


@pytest.mark.parametrize("seed", range(12))
def test_one_bad_record_is_told_of_as_ever_and_the_others_are_unaffected(seed: int) -> None:
    rng, values = random.Random(seed), list[bytes | None](told(seed % 3))
    mark = replace(fence(0, 3, 9), is_fence=False, mark=Mark.USER, user="u")
    values += [None, b"", b"HRE\x03", encode_example(mark), encode_example(replace(fence(1, 3), is_fence=False))]
    num = agree(values, 0, FEATURES)
    for at in sorted(rng.sample(range(len(values)), 9)):
        content = bytearray(values[at] or b"")
        match rng.randrange(3):
            case 0 if content:
                content[rng.randrange(4, len(content)) if len(content) > 4 else 0] ^= rng.randrange(1, 256)
            case 1:
                del content[rng.randrange(len(content) + 1) :]
            case _:
                content += b"\0"
        values[at] = bytes(content)
    assert num - 9 <= agree(values, 0, FEATURES) <= num


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 2))
def test_headers_that_state_anything_are_read_alike_and_folded_without_an_error(data: st.DataObject, seed: int) -> None:
    values = cached(seed, data.draw(st.sampled_from((4, 300))))
    several = [restated(data, value) for value in data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=5))]
    agree(list(several), 0, FEATURES)
    histories, reader = Histories(9), ExampleReader("t", (FEATURES, len(ACTION.user_features)))
    for _, lesson in lessons_of(reader, 0, list(map(Record, itertools.count(), [*several, *values])), FEATURES):
        if lesson.mark is None:
            histories.fold(lesson)
    assert max((len(each.buffer) for each in histories.users.values()), default=0) < 1 << 22


def test_an_example_with_other_features_is_passed_over_and_told_of() -> None:
    values = told(1)[1:4]
    given = decode_example(values[1])
    of_user = replace(given, user_feature_hash=np.zeros(7, np.int64))
    of_items = replace(given, rows=np.zeros(len(given.rows), row_type(7)))
    for strange in (of_user, of_items):
        reader = ExampleReader("t", (FEATURES, len(ACTION.user_features)))
        records = list(map(Record, range(3), [values[0], encode_example(strange), values[2]]))
        assert [record.offset for record, _ in lessons_of(reader, 0, records, FEATURES)] == [0, 2]
        assert reader.num_foreign == 1


def test_a_user_whose_name_is_not_text_is_not_read() -> None:
    sound = encode_example(replace(decode_example(told(1)[1]), user="some-name"))
    body = sound[8:].replace(b"some-name", b"some-\xffame")
    assert agree([sound, sound[:4] + crc32(body).to_bytes(4, "little") + body], 0, FEATURES) == 1


def test_what_the_codec_refuses_to_write_is_not_read_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of segments without a place would divide by zero whenever the history is looked at."""
    values = list[bytes | None](told(1)[:2])
    with monkeypatch.context() as patched:
        patched.setattr("wire.example_codec._check_sizes", lambda *_: None)
        values.append(encode_example(replace(fence(0, 3, 9), is_fence=False, segment_len=0)))
    assert agree(values, 0, FEATURES) == 2


def test_another_layout_ends_the_reading_after_the_records_before_it() -> None:
    values = list[bytes | None](told(1)[:5])
    values[3] = b"HRE\x04" + (values[3] or b"")[4:]
    assert agree(values, 0, FEATURES) == 3
    assert "expected layout 3, got 4" in together(values, 0, FEATURES)[2]
