"""Users' histories as a reader of ``headrace.sequences.v1`` keeps them: segments folded into one array per user.

Fold every accepted example, in the order of the log (or of the steps that train it), and a user's array holds the
user's last interactions exactly as the worker has them. Reading the compacted topic from its start gives the same,
since it keeps the newest record of each interaction (`state.restore` has the proof).

One row per interaction (`wire.example.row_type`); item 0 marks a row that has not arrived.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from wire.example import Int64, Lesson, Rows, num_features_of, row_type

FARTHEST_BACK = 1 << 20
"""How far before a user's first kept row another may lie. No worker keeps so much of a user: what lies farther back
stands beside a record whose segment was wrong, and the history starts anew from it, without room for all between."""
OVERHEAD_BYTES = 400
"""Memory that a user takes besides the rows: objects and a place in a dictionary."""


class History:
    """One user's last interactions: places ``start`` to ``end - 1`` of the user's lifetime."""

    __slots__ = (
        "_bytes", "_max_context", "_rows", "_segment_len", "address", "end", "full_at", "start", "user_features",
    )  # fmt: skip

    def __init__(self, num_features: int, max_context: int, segment_len: int) -> None:
        self._max_context, self._segment_len = max_context, segment_len
        self._place(bytearray(), row_type(num_features))
        self.start = self.end = 0
        self._begin(0)
        self.user_features: Int64 = np.zeros(0, np.int64)

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        return None, {name: getattr(self, name) for name in self.__slots__ if name not in ("_bytes", "address")}

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        """A copy's rows are elsewhere."""
        for name, value in state[1].items():
            setattr(self, name, value)
        self._place(bytearray(self._rows.tobytes()), self._rows.dtype)

    def _place(self, rows: bytearray, layout: np.dtype[np.void]) -> None:
        self._bytes, self._rows = rows, np.ndarray(len(rows) // layout.itemsize, layout, rows)
        self.address: int = self._rows.ctypes.data  # of the first row in memory

    def _begin(self, start: int) -> None:
        """Let ``start`` be the first place. Up to ``full_at``, no end leaves segments that are not kept."""
        self.start = start
        self.full_at = (start // self._segment_len + self._num_slots) * self._segment_len

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

    def fold(self, lesson: Lesson) -> bool:
        """Put a record's interactions in place; whether other rows stayed where they are. Nothing is dropped until
        `forget`."""
        rows = lesson.rows
        num = len(rows)
        if not num:
            return True
        if rows.itemsize != self._rows.itemsize:
            raise ValueError(
                f"example {lesson.number}: expected rows of {self._rows.itemsize} bytes, got {rows.itemsize}"
            )
        first = lesson.first_index
        at, end = first - self.start, first + num
        is_usual = at >= 0 and first <= self.end and at + num <= len(self._rows)
        if is_usual:
            if end > self.end:
                self.end = end
        else:
            at = self._reach(first, num)
        # As bytes: between structured arrays NumPy copies field by field, and a view costs more than copying.
        self._bytes[at * rows.itemsize : (at + num) * rows.itemsize] = rows.tobytes()
        self.user_features = lesson.user_feature_hash
        return is_usual

    def _reach(self, first: int, num: int) -> int:
        """Make room for ``num`` places, which may be new; where the first is now."""
        is_apart = first - self.end > self._max_context + self._segment_len or self.start - first > FARTHEST_BACK
        if self.start == self.end or is_apart:
            self._place(bytearray(), self._rows.dtype)
            self.end = first
            self._begin(first)
        self._span(min(self.start, first), max(self.end, first + num))
        return first - self.start

    @property
    def _num_slots(self) -> int:
        """How many segments are kept: enough for ``max_context`` interactions, however full the last is."""
        return -(-self._max_context // self._segment_len) + 1

    def forget(self) -> None:
        """Drop rows older than the kept segments."""
        if self.end > self.full_at:
            self._span(((self.end - 1) // self._segment_len - self._num_slots + 1) * self._segment_len, self.end)

    def _span(self, start: int, end: int) -> None:
        """Make room for ``start`` to ``end - 1``, keeping the present rows."""
        if start == self.start and end - start <= len(self._rows):
            self.end = end
            return
        wanted = end - start
        most = self._max_context + 2 * self._segment_len
        size = self._rows.itemsize
        rows = bytearray(max(wanted, min(2 * wanted, most)) * size)
        first, last = max(start, self.start), min(end, self.end)
        if last > first:
            kept = self._bytes[(first - self.start) * size : (last - self.start) * size]
            rows[(first - start) * size : (last - start) * size] = kept
        self._place(rows, self._rows.dtype)
        self.end = end
        self._begin(start)


class Histories:
    """User → `History`. Of each, the segments that hold the last ``max_context`` interactions are kept."""

    def __init__(self, max_context: int) -> None:
        self._max_context = max_context
        self.users: OrderedDict[str, History] = OrderedDict()
        self.num_bytes = self.num_rows = 0

    def __len__(self) -> int:
        return len(self.users)

    def fold(self, lesson: Lesson) -> History:
        """Fold one accepted record in; returns the user's updated history."""
        history = self.gather(lesson)
        self.settle(history)
        return history

    def gather(self, lesson: Lesson) -> History:
        """`fold`, but nothing is dropped until `settle`, so that several records of a user are all there."""
        history = self.users.get(lesson.user)
        if history is None:
            num_features = num_features_of(lesson.rows)
            history = self.users[lesson.user] = History(num_features, self._max_context, lesson.segment_len)
            self.num_bytes += history.num_bytes
        before, start, end = history.buffer, history.start, history.end
        if history.fold(lesson):
            self.num_rows += history.end - end
        else:
            self._count(history, before, end - start)
        return history

    def settle(self, history: History) -> None:
        """Drop what lies beyond a user's kept segments."""
        if history.end <= history.full_at:
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
