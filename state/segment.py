"""A segment of a user's sequence: in memory as columns that grow, at rest as the bytes that also go on the wire.

Ids of actions lie in the order of their interactions, and within one in the order in which they came.

What is stored of a segment, little-endian:

    0   8   timestamp of its first interaction
    8   2   n, interactions
    10  2   action ids
    12  1   flags (`wire.example_codec`: LONG_TIMES, DOMAINS, VALUES, FEATURES, SESSIONS, IDS)
    13  1   bytes of an interaction's action bits
    14  4   the segment's number, its lower 32 bits
    18      columns of the n interactions, then the ids, as `wire.example_codec` lays them out
"""

from __future__ import annotations

import math
import struct
from array import array
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wire.action import Action
from wire.config import MAX_IDS
from wire.example import Example
from wire.example_codec import DOMAINS, FEATURES, IDS, LONG_TIMES, SESSIONS, VALUES

_HEAD = struct.Struct("<qHHBBI")
_NUMBER = struct.Struct("<I")
_NUMBER_AT = 14
COLUMNS_START = _HEAD.size
_ALL = DOMAINS | SESSIONS | VALUES | FEATURES
_BITS_CODES = {1: "B", 2: "H", 4: "I"}
_NO_HASH, _NO_VALUE = bytes(8), array("f", (math.nan,)).tobytes()


class Cut(NamedTuple):
    """Interactions of a segment as the codec lays them out: the time of the first one, how many they are, their ids,
    flags, bytes of the bits; and the columns, ids among them."""

    first_ms: int
    num: int
    num_ids: int
    flags: int
    bits_width: int
    columns: bytes


def describe(stored: bytes) -> tuple[int, int, int, int, int, int]:
    """(first timestamp, interactions, ids, flags, bytes of the bits, lower half of the number) of a stored segment."""
    return _HEAD.unpack_from(stored)


def is_segment(stored: bytes | None, index: int) -> bool:
    """Whether these bytes are segment ``index``, not another one of its slot."""
    return stored is not None and _NUMBER.unpack_from(stored, _NUMBER_AT)[0] == index & 0xFFFF_FFFF


def ids_of(stored: bytes) -> bytes:
    """The column of ids of a stored segment."""
    num_ids: int = _HEAD.unpack_from(stored)[2]
    return stored[len(stored) - 8 * num_ids :]


def may_hold(stored: bytes, item: bytes) -> bool:
    """Whether a stored segment has an interaction on the item, or, rarely, only bytes that look like it."""
    num: int = _HEAD.unpack_from(stored)[1]
    return stored.find(item, COLUMNS_START, COLUMNS_START + 8 * num) >= 0


def holds(column: bytes | bytearray, key: bytes) -> bool:
    """Whether a column of hashes holds this one."""
    at = column.find(key)
    while at >= 0 and at % 8:
        at = column.find(key, at + 1)
    return at >= 0


class Segment:
    """Interactions ``index · segment_len`` … of a user's lifetime. A column that holds nothing yet is left empty."""

    __slots__ = (
        "bits", "domains", "features", "flags", "id_counts", "ids", "index", "items", "num_features", "packed",
        "sessions", "times", "values",
    )  # fmt: skip

    def __init__(self, index: int, num_features: int) -> None:
        self.index = index
        self.num_features = num_features
        self.flags = 0
        self.items = bytearray()
        self.times = array("q")
        self.bits = array("I")
        self.domains = array("q")
        self.values = array("f")
        self.features = array("q")
        self.sessions = array("q")
        self.id_counts = array("B")
        self.ids = bytearray()
        self.packed: bytes | None = None
        """The stored form, until the next change."""

    def __len__(self) -> int:
        return len(self.times)

    def find(self, item: bytes, timestamp_ms: int, window_ms: int, session_hash: int) -> int:
        """Place of the newest interaction on ``item`` within the window, and of the session if one is named; or -1."""
        items, times = self.items, self.times
        at = items.rfind(item)
        while at >= 0:
            if at % 8 == 0:
                place = at // 8
                distance_ms = timestamp_ms - times[place]
                if distance_ms > window_ms:
                    return -1  # and what lies before it is older still
                if distance_ms >= -window_ms and (not session_hash or self._session(place) == session_hash):
                    return place
            at = items.rfind(item, 0, at + 7)
        return -1

    def append(self, item: bytes, action: Action, timestamp_ms: int) -> None:
        """Begin an interaction with this action."""
        self.packed = None
        given = self.flags
        if given & _ALL != _ALL:
            if action.domain_hash:
                given |= DOMAINS
            if action.session_hash:
                given |= SESSIONS
            if action.value == action.value:  # not NaN: a value was given
                given |= VALUES
            if self.num_features and any(action.feature_hash):
                given |= FEATURES
            if given != self.flags:
                self._fill(given)
        self.items += item
        self.times.append(timestamp_ms)
        self.bits.append(action.bits)
        if given & DOMAINS:
            self.domains.append(action.domain_hash)
        if given & SESSIONS:
            self.sessions.append(action.session_hash)
        if given & VALUES:
            self.values.append(action.value)
        if given & FEATURES:
            self.features.extend(action.feature_hash)
        if given & IDS:
            self.id_counts.append(0)

    def join(self, place: int, action: Action) -> tuple[int, bool]:
        """Add an action to an interaction: the kinds that are new to it, and whether anything of it has changed."""
        old_bits = self.bits[place]
        new_bits = action.bits & ~old_bits
        changed = bool(new_bits)
        if changed:
            self.bits[place] = old_bits | new_bits
        if action.domain_hash:
            changed |= self._put(DOMAINS, self.domains, place, action.domain_hash)
        if action.value == action.value:
            changed |= self._put(VALUES, self.values, place, array("f", (action.value,))[0])
        if self.num_features and any(action.feature_hash):
            first = place * self.num_features
            for column, feature_hash in enumerate(action.feature_hash):
                if feature_hash:
                    changed |= self._put(FEATURES, self.features, first + column, feature_hash)
        if changed:
            self.packed = None
        return new_bits, changed

    def remember(self, place: int, id_hash: bytes) -> None:
        """An action with this id is in the interaction at ``place``; beyond `MAX_IDS` its oldest one is forgotten."""
        self.packed = None
        counts, ids = self.id_counts, self.ids
        if not self.flags & IDS:
            self.flags |= IDS
            counts.frombytes(bytes(len(self)))
        if place == len(counts) - 1:
            ids += id_hash
            end = len(ids)
        else:
            end = 8 * sum(counts[: place + 1])
            ids[end:end] = id_hash
            end += 8
        counts[place] += 1
        if counts[place] > MAX_IDS:
            counts[place] = MAX_IDS
            first = end - 8 * (MAX_IDS + 1)
            del ids[first : first + 8]

    def pack(self) -> bytes:
        """The stored form."""
        if self.packed is None:
            first_ms, num, num_ids, flags, width, columns = self.cut(0, len(self))
            self.packed = _HEAD.pack(first_ms, num, num_ids, flags, width, self.index & 0xFFFF_FFFF) + columns
        return self.packed

    def cut(self, first: int, end: int) -> Cut:
        """The interactions at the places ``first`` … ``end - 1``, of which there is at least one."""
        times, bits, flags = self.times[first:end], self.bits[first:end], self.flags
        num, first_ms, long_times = len(times), times[0], 0
        if num == 1:
            time_column, width = b"\0\0\0\0", _width(bits[0])
        else:
            width = _width(max(bits))
            try:
                time_column = array("I", [time_ms - first_ms for time_ms in times]).tobytes()
            except OverflowError:
                long_times, time_column = LONG_TIMES, times.tobytes()
        bits_column = bits.tobytes() if width == 4 else array(_BITS_CODES[width], bits.tolist()).tobytes()
        if num == len(self.times):  # each column that is there holds something
            num_ids = len(self.ids) // 8
            columns = b"".join((
                self.items, time_column, bits_column, self.domains, self.values, self.features, self.sessions,
                self.id_counts, self.ids,
            ))  # fmt: skip
            return Cut(first_ms, num, num_ids, flags | long_times, width, columns)
        parts: list[bytes | bytearray] = [self.items[8 * first : 8 * end], time_column, bits_column]
        given, width_F = long_times, self.num_features
        for flag, column, row_len, nothing in (
            (DOMAINS, self.domains, 1, _NO_HASH), (VALUES, self.values, 1, _NO_VALUE),
            (FEATURES, self.features, width_F, _NO_HASH * width_F), (SESSIONS, self.sessions, 1, _NO_HASH),
        ):  # fmt: skip
            if flags & flag:
                rows = column[first * row_len : end * row_len].tobytes()
                if rows != nothing * num:
                    given |= flag
                    parts.append(rows)
        num_ids = 0
        if flags & IDS:
            counts = self.id_counts[first:end]
            num_ids = sum(counts)
            if num_ids:
                given |= IDS
                stop = len(self.ids) - 8 * sum(self.id_counts[end:])
                parts += [counts.tobytes(), self.ids[stop - 8 * num_ids : stop]]
        return Cut(first_ms, num, num_ids, given, width, b"".join(parts))

    @classmethod
    def unpack(cls, index: int, stored: bytes, num_features: int) -> Segment:
        """From the stored form. Raises ValueError or struct.error for bytes that are none."""
        segment = cls(index, num_features)
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

    @classmethod
    def of(cls, example: Example) -> Segment:
        """What an example holds of its segment, as if nothing came before."""
        segment = cls(example.segment, example.interactions.feature_hash.shape[1])
        segment.put(example)
        return segment

    def put(self, example: Example) -> None:
        """Take over an example's interactions. Places before them that have not come hold item 0 until they do."""
        first, rows = example.first, example.interactions
        end = first + len(rows)
        self.packed = None
        self._reach(end)
        self.items[8 * first : 8 * end] = rows.item_hash.tobytes()
        self.times[first:end] = array("q", rows.timestamp_ms.tobytes())
        self.bits[first:end] = array("I", rows.action_bits.tobytes())
        width = self.num_features
        optional: tuple[tuple[int, array[Any], NDArray[Any], Any, int], ...] = (
            (DOMAINS, self.domains, rows.domain_hash, rows.domain_hash.any(), 1),
            (VALUES, self.values, rows.value, not np.isnan(rows.value).all(), 1),
            (FEATURES, self.features, rows.feature_hash, rows.feature_hash.any(), width),
            (SESSIONS, self.sessions, example.session_hash, example.session_hash.any(), 1),
        )
        for flag, column, source, is_given, row_len in optional:
            if is_given or self.flags & flag:
                self._fill(self.flags | flag)
                column[first * row_len : end * row_len] = array(column.typecode, source.tobytes())
        self._put_ids(first, end, example)

    def _put_ids(self, first: int, end: int, example: Example) -> None:
        if not len(example.action_ids) and not self.flags & IDS:
            return
        self._fill(self.flags | IDS)
        counts = self.id_counts
        start, stop = 8 * sum(counts[:first]), 8 * sum(counts[:end])
        self.ids[start:stop] = example.action_ids.tobytes()
        counts[first:end] = array("B", example.id_counts.tobytes() or bytes(end - first))

    def _reach(self, num: int) -> None:
        """Have room for ``num`` interactions."""
        missing = num - len(self)
        if missing <= 0:
            return
        self.items += bytes(8 * missing)
        self.times.frombytes(bytes(8 * missing))
        self.bits.frombytes(bytes(4 * missing))
        flags, self.flags = self.flags, 0
        self._fill(flags)

    def _session(self, place: int) -> int:
        return self.sessions[place] if self.flags & SESSIONS else 0

    def _put(self, flag: int, column: array[Any], at: int, entry: float) -> bool:
        if not self.flags & flag:
            self._fill(self.flags | flag)
        if column[at] == entry:
            return False
        column[at] = entry
        return True

    def _fill(self, flags: int) -> None:
        """Columns that are too short so far get an entry for every interaction."""
        num, begun = len(self), flags & ~self.flags
        self.flags = flags
        if begun & DOMAINS:
            self.domains.frombytes(bytes(8 * (num - len(self.domains))))
        if begun & SESSIONS:
            self.sessions.frombytes(bytes(8 * (num - len(self.sessions))))
        if begun & FEATURES:
            self.features.frombytes(bytes(8 * (num * self.num_features - len(self.features))))
        if begun & VALUES:
            self.values.extend([math.nan] * (num - len(self.values)))
        if begun & IDS:
            self.id_counts.frombytes(bytes(num - len(self.id_counts)))


def _width(most: int) -> int:
    return 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4
