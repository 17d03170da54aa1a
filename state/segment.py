"""A segment of a user's sequence: in memory as columns that grow, at rest as the bytes that also go on the wire.

What is stored of a segment, little-endian:

    0   8   timestamp of its first interaction
    8   2   n, interactions
    10  2   action ids
    12  1   flags (`wire.example_codec`: LONG_TIMES, DOMAINS, VALUES, FEATURES, SESSIONS)
    13  1   bytes of an interaction's action bits
    14      columns of the n interactions, then the ids, as `wire.example_codec` lays them out
"""

from __future__ import annotations

import math
import struct
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.action import Action
from wire.example import Example
from wire.example_codec import DOMAINS, FEATURES, LONG_TIMES, SESSIONS, VALUES

_HEAD = struct.Struct("<qHHBB")
COLUMNS_START = _HEAD.size
_ALL = DOMAINS | SESSIONS | VALUES | FEATURES
_BITS_CODES = {1: "B", 2: "H", 4: "I"}


def describe(stored: bytes) -> tuple[int, int, int, int, int]:
    """(first timestamp, interactions, ids, flags, bytes of the bits) of a stored segment."""
    return _HEAD.unpack_from(stored)


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
        "bits", "domains", "features", "flags", "ids", "index", "items", "num_features", "packed", "sessions", "times",
        "values",
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
        if given != _ALL:
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

    def remember(self, id_hash: bytes, max_ids: int) -> None:
        """An action with this id is in; beyond ``max_ids`` the oldest is forgotten."""
        self.packed = None
        self.ids += id_hash
        if len(self.ids) > 8 * max_ids:
            del self.ids[:8]

    def pack(self) -> bytes:
        """The stored form."""
        if self.packed is not None:
            return self.packed
        times, flags, first_ms = self.times, self.flags, self.times[0]
        width = _width(max(self.bits))
        if times[-1] - first_ms < 1 << 32:
            time_column = array("I", [time_ms - first_ms for time_ms in times]).tobytes()
        else:
            flags |= LONG_TIMES
            time_column = times.tobytes()
        head = _HEAD.pack(first_ms, len(times), len(self.ids) // 8, flags, width)
        bits = self.bits.tobytes() if width == 4 else array(_BITS_CODES[width], self.bits.tolist()).tobytes()
        self.packed = b"".join((
            head, self.items, time_column, bits, self.domains, self.values, self.features, self.sessions, self.ids,
        ))  # fmt: skip
        return self.packed

    @classmethod
    def unpack(cls, index: int, stored: bytes, num_features: int) -> Segment:
        """From the stored form. Raises ValueError or struct.error for bytes that are none."""
        segment = cls(index, num_features)
        first_ms, num, num_ids, flags, width = _HEAD.unpack_from(stored)
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
        optional = (
            (DOMAINS, segment.domains, 8), (VALUES, segment.values, 4), (FEATURES, segment.features, 8 * num_features),
            (SESSIONS, segment.sessions, 8),
        )  # fmt: skip
        for flag, column, row_bytes in optional:
            if flags & flag:
                column.frombytes(stored[at : at + row_bytes * num])
                at += row_bytes * num
        segment.ids += stored[at:]
        if not num or len(stored) != at + 8 * num_ids:
            raise ValueError(f"expected {at + 8 * num_ids} bytes, got {len(stored)}")
        segment.packed = stored
        return segment

    @classmethod
    def of(cls, example: Example) -> Segment:
        """The segment of an example."""
        rows = example.interactions
        num_features = rows.feature_hash.shape[1]
        segment = cls(example.segment, num_features)
        segment.items += rows.item_hash.tobytes()
        segment.times.frombytes(rows.timestamp_ms.tobytes())
        segment.bits.frombytes(rows.action_bits.tobytes())
        segment.ids += example.action_ids.tobytes()
        optional: tuple[tuple[int, array[Any], NDArray[Any], Any], ...] = (
            (DOMAINS, segment.domains, rows.domain_hash, rows.domain_hash.any()),
            (VALUES, segment.values, rows.value, not np.isnan(rows.value).all()),
            (FEATURES, segment.features, rows.feature_hash, rows.feature_hash.any()),
            (SESSIONS, segment.sessions, example.session_hash, example.session_hash.any()),
        )
        for flag, column, source, is_given in optional:
            if is_given:
                segment.flags |= flag
                column.frombytes(source.tobytes())
        return segment

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
        """Columns that were empty so far get an entry for every interaction."""
        num, begun = len(self), flags & ~self.flags
        self.flags = flags
        if begun & DOMAINS:
            self.domains.frombytes(bytes(8 * num))
        if begun & SESSIONS:
            self.sessions.frombytes(bytes(8 * num))
        if begun & FEATURES:
            self.features.frombytes(bytes(8 * num * self.num_features))
        if begun & VALUES:
            self.values.extend([math.nan] * num)


def _width(most: int) -> int:
    return 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4
