"""A segment at rest: the bytes that are stored, which are also those of the columns in an example.

What is stored of a segment, little-endian:

    0   8   timestamp of its first interaction
    8   2   n, the number of interactions
    10  2   number of action ids
    12  1   flags (`wire.example_codec`: LONG_TIMES, DOMAINS, VALUES, FEATURES, SESSIONS, IDS)
    13  1   bytes per interaction of the action bits
    14  4   the segment's number, its lower 32 bits
    18      columns of the n interactions, then the ids, as `wire.example_codec` lays them out
"""

from __future__ import annotations

import math
import struct
from array import array
from typing import Any, NamedTuple

from state.segment import Segment
from wire.example_codec import DOMAINS, FEATURES, IDS, LONG_TIMES, SESSIONS, VALUES, bits_width

_HEAD = struct.Struct("<qHHBBI")
_NUMBER = struct.Struct("<I")
_NUMBER_AT = 14
COLUMNS_START = _HEAD.size
_BITS_CODES = {1: "B", 2: "H", 4: "I"}
_NO_HASH, _NO_VALUE = bytes(8), array("f", (math.nan,)).tobytes()


class Cut(NamedTuple):
    """Interactions of a segment as the codec lays them out: the first one's time, their number, the number of their
    ids, flags, bytes per entry of the action bits; and the columns, ids included."""

    first_ms: int
    num: int
    num_ids: int
    flags: int
    bits_width: int
    columns: bytes


def describe(stored: bytes) -> tuple[int, int, int, int, int, int]:
    """A stored segment's header: first timestamp, interactions, ids, flags, bytes per entry of the action bits, lower
    half of the number."""
    return _HEAD.unpack_from(stored)


def is_segment(stored: bytes | None, index: int) -> bool:
    """Whether these bytes are segment ``index``, not another one of its slot."""
    return stored is not None and _NUMBER.unpack_from(stored, _NUMBER_AT)[0] == index & 0xFFFF_FFFF


def ids_of(stored: bytes) -> bytes:
    """The column of ids of a stored segment."""
    num_ids: int = _HEAD.unpack_from(stored)[2]
    return stored[len(stored) - 8 * num_ids :]


def may_hold(stored: bytes, item: bytes) -> bool:
    """False if a stored segment has no interaction on the item. Rarely true without one: the bytes may coincide."""
    num: int = _HEAD.unpack_from(stored)[1]
    return stored.find(item, COLUMNS_START, COLUMNS_START + 8 * num) >= 0


def pack(segment: Segment) -> bytes:
    """The stored form."""
    if segment.packed is None:
        first_ms, num, num_ids, flags, width, columns = cut(segment, 0, len(segment))
        segment.packed = _HEAD.pack(first_ms, num, num_ids, flags, width, segment.index & 0xFFFF_FFFF) + columns
    return segment.packed


def cut(segment: Segment, first: int, end: int) -> Cut:
    """The interactions at the places ``first`` to ``end - 1``: at least one."""
    times, bits, flags = segment.times[first:end], segment.bits[first:end], segment.flags
    num, first_ms, long_times = len(times), times[0], 0
    if num == 1:
        time_column, width = b"\0\0\0\0", bits_width(bits[0])
    else:
        width = bits_width(max(bits))
        try:
            time_column = array("I", [time_ms - first_ms for time_ms in times]).tobytes()
        except OverflowError:
            long_times, time_column = LONG_TIMES, times.tobytes()
    bits_column = bits.tobytes() if width == 4 else array(_BITS_CODES[width], bits.tolist()).tobytes()
    if num == len(segment):  # every column of `flags` holds something, so none is left out
        num_ids = len(segment.ids) // 8
        columns = b"".join((
            segment.items, time_column, bits_column, segment.domains, segment.values, segment.features,
            segment.sessions, segment.id_counts, segment.ids,
        ))  # fmt: skip
        return Cut(first_ms, num, num_ids, flags | long_times, width, columns)
    parts: list[bytes | bytearray] = [segment.items[8 * first : 8 * end], time_column, bits_column]
    given, width_F = long_times, segment.num_features
    for flag, column, row_len, nothing in (
        (DOMAINS, segment.domains, 1, _NO_HASH), (VALUES, segment.values, 1, _NO_VALUE),
        (FEATURES, segment.features, width_F, _NO_HASH * width_F), (SESSIONS, segment.sessions, 1, _NO_HASH),
    ):  # fmt: skip
        if flags & flag:
            rows = column[first * row_len : end * row_len].tobytes()
            if rows != nothing * num:
                given |= flag
                parts.append(rows)
    num_ids = 0
    if flags & IDS:
        counts = segment.id_counts[first:end]
        num_ids = sum(counts)
        if num_ids:
            given |= IDS
            stop = len(segment.ids) - 8 * sum(segment.id_counts[end:])
            parts += [counts.tobytes(), segment.ids[stop - 8 * num_ids : stop]]
    return Cut(first_ms, num, num_ids, given, width, b"".join(parts))


def unpack(index: int, stored: bytes, num_features: int) -> Segment:
    """From the stored form. Raises ValueError or struct.error for bytes that are not one."""
    segment = Segment(index, num_features)
    first_ms, num, num_ids, flags, width, _ = _HEAD.unpack_from(stored)
    segment.flags = flags & ~LONG_TIMES
    at = COLUMNS_START + 8 * num
    segment.items += stored[COLUMNS_START:at]
    if flags & LONG_TIMES:
        segment.times.frombytes(stored[at : at + 8 * num])
    else:
        shifted = array("I", stored[at : at + 4 * num])
        segment.times.extend([first_ms + offset_ms for offset_ms in shifted])
    at += (8 if flags & LONG_TIMES else 4) * num
    segment.bits.fromlist(array(_BITS_CODES[width], stored[at : at + width * num]).tolist())
    at += width * num
    optional: tuple[tuple[int, array[Any], int], ...] = (
        (DOMAINS, segment.domains, 8), (VALUES, segment.values, 4), (FEATURES, segment.features, 8 * num_features),
        (SESSIONS, segment.sessions, 8), (IDS, segment.id_counts, 1),
    )  # fmt: skip
    for flag, column, row_bytes in optional:
        if flags & flag:
            column.frombytes(stored[at : at + row_bytes * num])
            at += row_bytes * num
    segment.ids += stored[at:]
    if not num or len(stored) != at + 8 * num_ids or sum(segment.id_counts) != num_ids:
        raise ValueError(f"expected {at + 8 * num_ids} bytes, got {len(stored)}")
    if not is_segment(stored, index):
        raise ValueError(f"expected segment {index}, got another one")
    segment.packed = stored
    return segment
