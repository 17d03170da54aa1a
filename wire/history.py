"""Users' histories as a reader of ``headrace.sequences.v1`` keeps them: segments folded into one array per user.

Fold every accepted example, in the order of the log (or of the steps that train it), and a user's array holds the
user's last interactions exactly as the worker has them. Reading the compacted topic from its start gives the same,
since it keeps the newest record of each interaction (`state.restore` has the proof).

One row per interaction, 32 bytes plus 8 per feature; item_hash 0 marks a row that has not arrived.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.example import Example, Int64, Interactions, no_interactions

Rows = NDArray[np.void]
"""(n,) structured: item, time, domain, bits, value, features (`row_type`)."""
OVERHEAD_BYTES = 400
"""Memory that a user takes besides the rows: objects and a place in a dictionary."""


def row_type(num_features: int) -> np.dtype[np.void]:
    """The layout of one interaction."""
    fields = [("item", "<i8"), ("time", "<i8"), ("domain", "<i8"), ("bits", "<u4"), ("value", "<f4")]
    return np.dtype([*fields, ("features", "<i8", (num_features,))])


class History:
    """One user's last interactions: places ``start`` to ``end - 1`` of the user's lifetime."""

    __slots__ = ("_max_context", "_rows", "_segment_len", "address", "end", "start", "user_features")

    def __init__(self, num_features: int, max_context: int, segment_len: int) -> None:
        self._max_context, self._segment_len = max_context, segment_len
        self._rows = np.zeros(0, row_type(num_features))
        self.address: int = self._rows.ctypes.data  # of the first row in memory
        self.start = self.end = 0
        self.user_features: Int64 = np.zeros(0, np.int64)

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        """A copy's rows are elsewhere."""
        for name, value in state[1].items():
            setattr(self, name, value)
        self.address = self._rows.ctypes.data

    @property
    def num_bytes(self) -> int:
        """Memory of the rows and their bookkeeping."""
        return int(self._rows.nbytes) + OVERHEAD_BYTES

    @property
    def buffer(self) -> Rows:
        """The array that holds the rows; replaced when it becomes too small."""
        return self._rows

    def window(self, first: int, last: int) -> tuple[int, Rows]:
        """The kept rows among the places ``first`` to ``last - 1``, as a view, and the first one's place. Rows that
        have not arrived are included, with item 0."""
        first, last = max(first, self.start), min(last, self.end)
        return first, self._rows[first - self.start : max(first, last) - self.start]

    def rows(self, first: int, last: int) -> Rows:
        """The rows of the places ``first`` to ``last - 1`` that are here, oldest first. A view if none is missing."""
        chosen = self.window(first, last)[1]
        present = chosen["item"] != 0
        return chosen if present.all() else chosen[present]

    def fold(self, example: Example) -> None:
        """Put an example's interactions in place. Nothing is dropped until `forget`."""
        source = example.interactions
        num = len(source.item_hash)
        if not num:
            return
        first = example.first_index
        at, end = first - self.start, first + num
        if at >= 0 and first <= self.end and at + num <= len(self._rows):  # usual: no other rows are concerned
            self.end = max(self.end, end)
            _fill(self._rows[at : at + num], source)
        else:
            _fill(self._reach(first, num), source)
        self.user_features = example.user_feature_hash

    def _reach(self, first: int, num: int) -> Rows:
        """A view of ``num`` places, which may be new."""
        if self.start == self.end or first - self.end > self._max_context + self._segment_len:
            self._rows, self.start, self.end = self._rows[:0], first, first
        self._span(min(self.start, first), max(self.end, first + num))
        return self._rows[first - self.start : first - self.start + num]

    @property
    def kept_from(self) -> int:
        """The first place that is kept: segments enough for ``max_context`` interactions, however full the last is."""
        num_slots = -(-self._max_context // self._segment_len) + 1
        return max(0, (self.end - 1) // self._segment_len - num_slots + 1) * self._segment_len

    def forget(self) -> None:
        """Drop rows older than the kept segments."""
        if self.start < self.kept_from:
            self._span(self.kept_from, self.end)

    def _span(self, start: int, end: int) -> None:
        """Make room for ``start`` to ``end - 1``, keeping the present rows."""
        if start == self.start and end - start <= len(self._rows):
            self.end = end
            return
        wanted = end - start
        most = self._max_context + 2 * self._segment_len
        rows = np.zeros(max(wanted, min(2 * wanted, most)), self._rows.dtype)
        first, last = max(start, self.start), min(end, self.end)
        if last > first:
            rows[first - start : last - start] = self._rows[first - self.start : last - self.start]
        self._rows, self.address, self.start, self.end = rows, rows.ctypes.data, start, end


class Histories:
    """User → `History`. Of each, the segments that hold the last ``max_context`` interactions are kept."""

    def __init__(self, max_context: int) -> None:
        self._max_context = max_context
        self.users: OrderedDict[str, History] = OrderedDict()
        self.num_bytes = self.num_rows = 0

    def __len__(self) -> int:
        return len(self.users)

    def fold(self, example: Example) -> History:
        """Fold one accepted example in; returns the user's updated history."""
        history = self.gather(example)
        self.settle(history)
        return history

    def gather(self, example: Example) -> History:
        """`fold`, but nothing is dropped until `settle`, so that several examples of a user are all there."""
        history = self.users.get(example.user)
        if history is None:
            num_features = example.interactions.feature_hash.shape[1]
            history = self.users[example.user] = History(num_features, self._max_context, example.segment_len)
            self.num_bytes += history.num_bytes
        before, num_before = history.buffer, history.end - history.start
        history.fold(example)
        self._count(history, before, num_before)
        return history

    def settle(self, history: History) -> None:
        """Drop what lies beyond a user's kept segments."""
        if history.start >= history.kept_from:
            return
        before, num_before = history.buffer, history.end - history.start
        history.forget()
        self._count(history, before, num_before)

    def _count(self, history: History, before: Rows, num_before: int) -> None:
        """Note that a user had the buffer ``before``, and this many rows."""
        self.num_rows += history.end - history.start - num_before
        if history.buffer is not before:
            self.num_bytes += history.buffer.nbytes - before.nbytes

    def drop(self, user: str) -> None:
        """Forget a user."""
        history = self.users.pop(user)
        self.num_bytes -= history.num_bytes
        self.num_rows -= history.end - history.start


def rows_of(source: Interactions) -> Rows:
    """The rows of interactions."""
    rows = np.empty(len(source), row_type(source.feature_hash.shape[1]))
    _fill(rows, source)
    return rows


def _fill(target: Rows, source: Interactions) -> None:
    target["item"], target["time"] = source.item_hash, source.timestamp_ms
    target["domain"], target["bits"] = source.domain_hash, source.action_bits
    target["value"] = source.value
    if source.feature_hash.shape[1]:
        target["features"] = source.feature_hash


def interactions_of(rows: Rows) -> Interactions:
    """The columns of rows; views of them."""
    if not len(rows):
        return no_interactions(rows.dtype["features"].shape[0])
    return Interactions(rows["item"], rows["bits"], rows["time"], rows["domain"], rows["value"], rows["features"])
