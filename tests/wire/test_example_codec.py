"""An example survives the round trip, its bytes never change, and damaged ones are refused."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from wire.errors import CodecError, HeadraceError
from wire.example import Counts, Example, Interactions, fence, interactions_of, rows_of
from wire.example_codec import MAX_NUMBER, MAX_SEGMENT, Header, decode_example, encode_example, pack, restamp, unpack

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
INT64 = st.integers(-(2**63), 2**63 - 1)
ANY_NUMBER = st.builds(lambda bits, more: min(1 << bits, 2**64 - 2) + more, st.integers(0, 64), st.integers(-1, 1))
"""Of those that MessagePack can hold, the ones at the edges of some type, and the small ones."""


def longs(length: int) -> st.SearchStrategy[NDArray[np.int64]]:
    return arrays(np.int64, length, elements=INT64)


def column(draw: st.DrawFn, length: int) -> NDArray[np.int64]:
    """Hashes, or a column that holds none."""
    return np.zeros(length, np.int64) if draw(st.booleans()) else draw(longs(length))


@st.composite
def interactions(draw: st.DrawFn, length: int, num_features: int) -> Interactions:
    spread = draw(st.sampled_from((0, 1 << 20, 1 << 40)))
    steps = draw(arrays(np.int64, length, elements=st.integers(0, spread)))
    values = np.full(length, np.nan, np.float32) if draw(st.booleans()) else draw(arrays(np.float32, length))
    most = draw(st.sampled_from((255, 256, 2**32 - 1)))
    bits = draw(arrays(np.uint32, length, elements=st.integers(0, most)))
    features = column(draw, length * num_features).reshape(length, num_features)
    return Interactions(
        draw(longs(length)), bits, draw(st.integers(0, 1 << 47)) + np.cumsum(steps, dtype=np.int64),
        column(draw, length), values, features,
    )  # fmt: skip


@st.composite
def examples(draw: st.DrawFn) -> Example:
    length, num_features = draw(st.integers(0, 5)), draw(st.integers(0, 3))
    num_new, segment_len = draw(st.integers(0, length)), draw(st.sampled_from((5, 16, 256, 257, 4096)))
    ids = draw(st.lists(st.integers(0, 4), min_size=length, max_size=length))
    places = draw(st.sets(st.integers(0, length - num_new - 1))) if num_new < length else set()
    return Example(
        user=draw(TEXT), partition=draw(st.integers(0, 9)), writer_epoch=draw(st.integers(0, MAX_NUMBER)),
        number=draw(st.integers(-1, MAX_NUMBER)), segment=draw(st.integers(0, MAX_SEGMENT)), segment_len=segment_len,
        rows=rows_of(draw(interactions(length, num_features))), num_new=num_new,
        feedback_index=np.array(sorted(places), np.int64), feedback_bits=draw(arrays(np.uint32, len(places))),
        session_hash=column(draw, length), action_ids=draw(longs(sum(ids))),
        user_feature_hash=draw(longs(draw(st.integers(0, 2)))), user_offset=draw(INT64), user_index=draw(INT64),
        applied_offset=draw(INT64), resume_from_offset=draw(INT64), newest_event_ms=draw(INT64),
        newest_record_ms=draw(INT64), names=draw(st.dictionaries(INT64, INT64 | TEXT, max_size=3)),
        is_fence=draw(st.booleans()), counted_offset=draw(INT64), counts=Counts(*(draw(INT64) for _ in range(4))),
        first=draw(st.integers(0, segment_len - length)), id_counts=np.array(ids if any(ids) else [], np.uint8),
    )  # fmt: skip


def same(one: object, other: object) -> bool:
    if isinstance(one, Example | Interactions):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray)
        if one.dtype.names:
            return one.dtype == other.dtype and same(interactions_of(one), interactions_of(other))
        equal_nan = one.dtype.kind == "f"  # any NaN equals any other
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=equal_nan)
    return type(one) is type(other) and one == other


@settings(max_examples=200, deadline=None)
@given(examples())
def test_an_example_survives_the_round_trip(example: Example) -> None:
    value = encode_example(example)
    assert same(decode_example(value), example)
    assert encode_example(decode_example(value)) == value


@settings(max_examples=100, deadline=None)
@given(examples(), st.integers(0, 2**40))
def test_only_the_epoch_changes_when_an_example_gets_a_new_one(example: Example, epoch: int) -> None:
    assert same(decode_example(restamp(encode_example(example), epoch)), replace(example, writer_epoch=epoch))


def golden() -> Example:
    rows = Interactions(
        np.array([11, -12, 13]), np.array([1, 6, 256], np.uint32), np.array([1000, 2000, 2000]), np.array([0, 5, 0]),
        np.array([np.nan, 4.5, np.nan], np.float32), np.array([[7], [0], [0]]),
    )  # fmt: skip
    return replace(
        fence(3, 2, 9), user="ü", segment=4, segment_len=16, rows=rows_of(rows), num_new=1,
        feedback_index=np.array([1]), feedback_bits=np.array([4], np.uint32), session_hash=np.array([0, 31, 0]),
        action_ids=np.array([8, 9]), user_feature_hash=np.array([77]), user_offset=41, user_index=5, applied_offset=50,
        resume_from_offset=40, newest_event_ms=2500, newest_record_ms=3000, names={-12: "b", 11: 7}, is_fence=False,
        counted_offset=50, counts=Counts(5, 4, 3, 2), first=12, id_counts=np.array([2, 0, 0], np.uint8),
    )  # fmt: skip


GOLDEN = (
    "485245030df0887d2d00dc001903021001013228329405040302cd09c4cd0bb8cd03e8290509040c030101025e02a2c3bc82f4a1620b070b"
    "00000000000000f4ffffffffffffff0d0000000000000000000000e8030000e8030000010006000001000000000000000005000000000000"
    "0000000000000000000000c07f000090400000c07f07000000000000000000000000000000000000000000000000000000000000001f0000"
    "00000000000000000000000000020000080000000000000009000000000000004d000000000000000104000000"
)


def test_the_bytes_of_this_layout_are_what_they_were() -> None:
    """Topics outlive builds: if this fails, increase the layout's version, and read or refuse the old one."""
    assert encode_example(golden()).hex() == GOLDEN
    assert same(decode_example(bytes.fromhex(GOLDEN)), golden())


def test_empty_columns_take_no_space() -> None:
    full, none = golden(), np.zeros(3, np.int64)
    rows = replace(
        full.interactions, domain_hash=none, value=np.full(3, np.nan, np.float32), feature_hash=none.reshape(3, 1),
        action_bits=np.array([1, 6, 128], np.uint32),
    )  # fmt: skip
    empty = replace(full, rows=rows_of(rows), session_hash=none, action_ids=none[:0], id_counts=np.empty(0, np.uint8))
    assert len(encode_example(full)) - len(encode_example(empty)) == 3 * (8 + 4 + 8 + 8 + 1 + 1) + 2 * 8


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_never_misread(data: st.DataObject) -> None:
    value = bytearray.fromhex(GOLDEN)
    match data.draw(st.sampled_from(("flip", "cut", "grow", "swap"))):
        case "flip":
            at = data.draw(st.integers(0, len(value) - 1))
            value[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del value[data.draw(st.integers(0, len(value) - 1)) :]
        case "grow":
            value += data.draw(st.binary(min_size=1, max_size=20))
        case "swap":
            first, second = sorted(data.draw(st.lists(st.integers(0, len(value) - 1), min_size=2, max_size=2)))
            value[first], value[second] = value[second], value[first]
            if bytes(value).hex() == GOLDEN:
                return
    with pytest.raises(CodecError, match="expected"):
        decode_example(bytes(value))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_the_same_error(value: bytes) -> None:
    with pytest.raises(CodecError):
        decode_example(value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 100))
def test_a_right_checksum_over_nonsense_does_not_help(body: bytes, header_len: int) -> None:
    from zlib import crc32

    body = header_len.to_bytes(2, "little") + body
    with pytest.raises(CodecError):
        decode_example(b"HRE\x03" + crc32(body).to_bytes(4, "little") + body)


NUMBERS = [name for name, kind in Header.__annotations__.items() if "str" not in str(kind) and name != "counts"]


def restated(data: st.DataObject, value: bytes) -> bytes:
    """The same record, some of whose header says something else, under a right checksum."""
    header, start = unpack(value)
    for name in data.draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=2)):
        setattr(header, name, data.draw(ANY_NUMBER | INT64))
    if data.draw(st.booleans()):
        header.counts = Counts(*(data.draw(ANY_NUMBER) for _ in header.counts))
    if data.draw(st.booleans()):
        header.names = {data.draw(ANY_NUMBER | INT64): data.draw(ANY_NUMBER | TEXT)}
    return pack(header, value[start:])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_header_that_states_anything_is_read_or_refused_with_the_same_error(data: st.DataObject) -> None:
    """A right checksum says that the bytes arrived, not that their writer made sense."""
    try:
        example = decode_example(restated(data, bytes.fromhex(GOLDEN)))
    except CodecError:
        return
    assert 0 <= example.first_index < 2**62
    assert encode_example(example)


@pytest.mark.parametrize("layout", [1, 2, 9])
def test_another_layout_is_named(layout: int) -> None:
    value = bytearray.fromhex(GOLDEN)
    value[3] = layout
    with pytest.raises(CodecError, match=f"expected layout 3, got {layout}"):
        decode_example(bytes(value))


def test_an_impossible_example_is_not_encoded() -> None:
    with pytest.raises(CodecError, match="no more new"):
        encode_example(replace(golden(), num_new=4))
    with pytest.raises(CodecError, match="no more new"):
        encode_example(replace(golden(), num_new=3))
    with pytest.raises(CodecError, match="no more new"):
        encode_example(replace(golden(), segment_len=14))
    with pytest.raises(CodecError, match="ids"):
        encode_example(replace(golden(), id_counts=np.array([1, 0, 0], np.uint8)))
    with pytest.raises(CodecError, match="bytes of columns"):
        encode_example(replace(golden(), id_counts=np.array([1, 1], np.uint8)))
    with pytest.raises(CodecError, match="bytes of columns"):
        encode_example(replace(golden(), session_hash=np.ones(2, np.int64)))
    assert issubclass(CodecError, HeadraceError)
