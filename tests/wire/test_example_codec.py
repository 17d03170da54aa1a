"""An example comes back as it went, its bytes stay what they are, and damaged ones are refused."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from wire.errors import CodecError, HeadraceError
from wire.example import Counts, Example, Interactions
from wire.example_codec import decode_example, encode_example, fence, restamp

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
INT64 = st.integers(-(2**63), 2**63 - 1)


def longs(length: int) -> st.SearchStrategy[NDArray[np.int64]]:
    return arrays(np.int64, length, elements=INT64)


@st.composite
def interactions(draw: st.DrawFn, length: int, num_features: int) -> Interactions:
    return Interactions(
        draw(longs(length)), draw(arrays(np.uint32, length)), draw(longs(length)), draw(longs(length)),
        draw(arrays(np.float32, length)), draw(arrays(np.int64, (length, num_features), elements=INT64)),
    )  # fmt: skip


@st.composite
def examples(draw: st.DrawFn) -> Example:
    length, num_open, num_features = draw(st.integers(0, 5)), draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return Example(
        user=draw(TEXT), partition=draw(st.integers(0, 9)),
        writer_epoch=draw(st.integers(0, 2**40)), number=draw(INT64),
        interactions=draw(interactions(length, num_features)), num_new=draw(st.integers(0, length)),
        first_new_index=draw(INT64),
        open_interactions=draw(interactions(num_open, num_features)), open_first_offsets=draw(longs(num_open)),
        recent_ids=draw(longs(draw(st.integers(0, 4)))), user_feature_hash=draw(longs(draw(st.integers(0, 2)))),
        user_offset=draw(INT64), applied_offset=draw(INT64), replay_from_offset=draw(INT64), clock_ms=draw(INT64),
        newest_event_ms=draw(INT64), newest_record_ms=draw(INT64),
        names=draw(st.dictionaries(INT64, INT64 | TEXT, max_size=3)),
        is_fence=draw(st.booleans()), num_unsent=draw(st.integers(0, num_open)), open_record_ms=draw(longs(num_open)),
        replay_clock_ms=draw(INT64), counted_offset=draw(INT64), counts=Counts(*(draw(INT64) for _ in range(5))),
    )  # fmt: skip


def same(one: object, other: object) -> bool:
    if isinstance(one, Example | Interactions):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray)
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return type(one) is type(other) and one == other


@settings(max_examples=200, deadline=None)
@given(examples())
def test_an_example_comes_back_as_it_went(example: Example) -> None:
    value = encode_example(example)
    assert same(decode_example(value), example)
    assert encode_example(decode_example(value)) == value


@settings(max_examples=100, deadline=None)
@given(examples(), st.integers(0, 2**40))
def test_only_the_epoch_changes_when_an_example_gets_a_new_one(example: Example, epoch: int) -> None:
    assert same(decode_example(restamp(encode_example(example), epoch)), replace(example, writer_epoch=epoch))


def golden() -> Example:
    rows = Interactions(
        np.array([11, -12]), np.array([1, 6], np.uint32), np.array([1000, 2000]), np.array([0, 5]),
        np.array([np.nan, 4.5], np.float32), np.array([[7], [0]]),
    )  # fmt: skip
    opened = Interactions(*(getattr(rows, field.name)[:1] for field in fields(Interactions)))
    return replace(
        fence(3, 2, 9), user="ü", interactions=rows, num_new=1, first_new_index=1, open_interactions=opened,
        open_first_offsets=np.array([40]), recent_ids=np.array([8, 9]), user_feature_hash=np.array([77]),
        user_offset=41, applied_offset=50, replay_from_offset=40, clock_ms=2500,
        newest_event_ms=2000, newest_record_ms=3000,
        names={-12: "b", 11: 7}, is_fence=False, num_unsent=0, open_record_ms=np.array([2900]), replay_clock_ms=2400,
        counted_offset=50, counts=Counts(5, 4, 3, 2, 1),
    )  # fmt: skip


GOLDEN = (
    "48524501b8b220ac2c1e657f2e000000dc0017a2c3bc0302090201010100020101293228cd0960cd09c4cd07d0cd0bb83295050403020182"
    "f4a1620b07c200000b00000000000000f4ffffffffffffffe803000000000000d00700000000000000000000000000000500000000000000"
    "0700000000000000000000000000000001000000060000000000c07f000090400b00000000000000e8030000000000000000000000000000"
    "0700000000000000010000000000c07f2800000000000000540b000000000000080000000000000009000000000000004d00000000000000"
)


def test_the_bytes_of_layout_one_are_what_they_were() -> None:
    """Topics outlive builds: if this fails, the layout's version has to go up, and the old one be read too."""
    assert encode_example(golden()).hex() == GOLDEN
    assert same(decode_example(bytes.fromhex(GOLDEN)), golden())


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
    from xxhash import xxh3_64_intdigest

    body = header_len.to_bytes(4, "little") + body
    with pytest.raises(CodecError):
        decode_example(b"HRE\x01" + xxh3_64_intdigest(body).to_bytes(8, "little") + body)


def test_another_layout_is_named() -> None:
    value = bytearray.fromhex(GOLDEN)
    value[3] = 9
    with pytest.raises(CodecError, match="expected layout 1, got 9"):
        decode_example(bytes(value))


def test_an_impossible_example_is_not_encoded() -> None:
    with pytest.raises(CodecError, match="no more new"):
        encode_example(replace(golden(), num_new=3))
    with pytest.raises(CodecError, match="bytes of columns"):
        encode_example(replace(golden(), open_record_ms=np.empty(0, np.int64)))
    assert issubclass(CodecError, HeadraceError)
