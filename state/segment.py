"""A segment of a user's sequence in memory, as columns that grow. `state.segment_codec` has its stored form.

Action ids are kept in the order of their interactions, and within an interaction in the order of arrival.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.action import Action
from wire.config import MAX_IDS
from wire.example import Example, num_features_of
from wire.example_codec import DOMAINS, FEATURES, IDS, SESSIONS, VALUES

_ALL = DOMAINS | SESSIONS | VALUES | FEATURES


def holds(column: bytes | bytearray, key: bytes) -> bool:
    """Whether a column of hashes contains this one."""
    at = column.find(key)
    while at >= 0 and at % 8:
        at = column.find(key, at + 1)
    return at >= 0


class Segment:
    """Interactions of a user's lifetime from ``index * segment_len`` on. A column stays empty while none has it."""

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
        """Place of the newest interaction on ``item`` within the window, and in the session if one is named; or -1."""
        items, times = self.items, self.times
        at = items.rfind(item)
        while at >= 0:
            if at % 8 == 0:
                place = at // 8
                distance_ms = timestamp_ms - times[place]
                if distance_ms > window_ms:
                    return -1  # those before it are older still
                if distance_ms >= -window_ms and (not session_hash or self._session(place) == session_hash):
                    return place
            at = items.rfind(item, 0, at + 7)
        return -1

    def append(self, item: bytes, action: Action, timestamp_ms: int, columns: tuple[int, ...]) -> None:
        """Begin an interaction with this action; ``columns``: (F,) as `wire.example.Interactions.feature_hash`."""
        self.packed = None
        given = self.flags
        if given & _ALL != _ALL:
            if action.domain_hash:
                given |= DOMAINS
            if action.session_hash:
                given |= SESSIONS
            if action.value == action.value:  # not NaN: a value was given
                given |= VALUES
            if any(columns):
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
            self.features.extend(columns)
        if given & IDS:
            self.id_counts.append(0)

    def join(self, place: int, action: Action) -> tuple[int, bool]:
        """Add an action to an interaction. Returns the kinds that are new to it, and whether anything has changed."""
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
        """Add an action's id to the interaction at ``place``. Beyond `MAX_IDS`, the oldest is forgotten."""
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

    @classmethod
    def of(cls, example: Example) -> Segment:
        """A segment of only what an example holds."""
        segment = cls(example.segment, num_features_of(example.rows))
        segment.put(example)
        return segment

    def put(self, example: Example) -> None:
        """Put an example's interactions in place. Earlier places that have not arrived hold item 0 until they do."""
        first, rows = example.first, example.interactions
        end = first + len(rows)
        self.packed = None
        self._extend(end)
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

    def _extend(self, num: int) -> None:
        """Make room for ``num`` interactions."""
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
        """Begin the columns of ``flags``: every column gets an entry for each interaction."""
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
