"""Users' histories as a reader of ``headrace.sequences.v1`` keeps them: segments folded into one array a user.

Fold every accepted example, in the order of the log (or of the steps that train it), and a user's array holds his last
interactions exactly as the worker has them. Reading the compacted topic from its start gives the same, since it keeps
each segment's newest record, in whatever order the segments come.

One row an interaction, 32 bytes and 8 more a feature; item_hash 0 marks a row of a segment that has not come.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wire.example import Example, Int64, Interactions, no_interactions

Rows = NDArray[np.void]
"""(n,) structured: item, time, domain, bits, value, features (`row_type`)."""
OVERHEAD_BYTES = 400
"""What a user costs beside his rows: objects and a place in a dictionary."""


def row_type(num_features: int) -> np.dtype[np.void]:
    """The layout of one interaction."""
    fields = [("item", "<i8"), ("time", "<i8"), ("domain", "<i8"), ("bits", "<u4"), ("value", "<f4")]
    return np.dtype([*fields, ("features", "<i8", (num_features,))])


class History:
    """One user's last interactions: places ``start`` … ``end - 1`` of his lifetime."""

    __slots__ = ("_capacity", "_rows", "end", "start", "user_features")

    def __init__(self, num_features: int, capacity: int) -> None:
        self._capacity = capacity
        self._rows = np.zeros(0, row_type(num_features))
        self.start = self.end = 0
        self.user_features: Int64 = np.zeros(0, np.int64)

    @property
    def num_bytes(self) -> int:
        """Memory of the rows, and what is around them."""
        return int(self._rows.nbytes) + OVERHEAD_BYTES

    def rows(self, first: int, last: int) -> Rows:
        """Those of the places ``first`` … ``last - 1`` that are here, oldest first. A view where nothing is missing."""
        chosen = self._rows[max(first, self.start) - self.start : max(0, min(last, self.end) - self.start)]
        present = chosen["item"] != 0
        return chosen if present.all() else chosen[present]

    def fold(self, example: Example) -> None:
        """Put the segment in its place; forget whole segments beyond the capacity."""
        num, first = len(example.interactions), example.first_index
        if not num or first + num <= self.end - self._capacity:
            return
        if self.start == self.end:
            self.start = self.end = first
        end = max(self.end, first + num)
        start = max(min(self.start, first), _down(end - self._capacity, example.segment_len))
        self._span(start, end)
        at, skipped = max(first - start, 0), max(start - first, 0)
        target, source = self._rows[at : at + num - skipped], example.interactions
        target["item"], target["time"] = source.item_hash[skipped:], source.timestamp_ms[skipped:]
        target["domain"], target["bits"] = source.domain_hash[skipped:], source.action_bits[skipped:]
        target["value"] = source.value[skipped:]
        if source.feature_hash.shape[1]:
            target["features"] = source.feature_hash[skipped:]
        self.user_features = example.user_feature_hash

    def _span(self, start: int, end: int) -> None:
        """Make the array hold ``start`` … ``end - 1``, keeping what is there."""
        if start == self.start and end - start <= len(self._rows):
            self.end = end
            return
        wanted = end - start
        rows = np.zeros(max(wanted, min(2 * wanted, self._capacity)), self._rows.dtype)
        first, last = max(start, self.start), min(end, self.end)
        if last > first:
            rows[first - start : last - start] = self._rows[first - self.start : last - self.start]
        self._rows, self.start, self.end = rows, start, end


class Histories:
    """User → `History`. ``max_context`` interactions are kept of each, and the segment that it ends in."""

    def __init__(self, max_context: int) -> None:
        self._max_context = max_context
        self.users: dict[str, History] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self.users)

    def fold(self, example: Example) -> History:
        """Take in one accepted example; the user's history with it."""
        history = self.users.get(example.user)
        if history is None:
            num_features = example.interactions.feature_hash.shape[1]
            capacity = _down(self._max_context, example.segment_len) + 2 * example.segment_len
            history = self.users[example.user] = History(num_features, capacity)
            self.num_bytes += history.num_bytes
        before = history.num_bytes
        history.fold(example)
        self.num_bytes += history.num_bytes - before
        return history

    def forget(self, user: str) -> None:
        """Drop a user."""
        self.num_bytes -= self.users.pop(user).num_bytes


def interactions_of(rows: Rows) -> Interactions:
    """The columns of rows; views of them."""
    if not len(rows):
        return no_interactions(rows.dtype["features"].shape[0])
    return Interactions(rows["item"], rows["bits"], rows["time"], rows["domain"], rows["value"], rows["features"])


def _down(index: int, segment_len: int) -> int:
    return max(0, index // segment_len * segment_len)
