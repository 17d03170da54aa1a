"""Users' histories as a reader of ``headrace.sequences.v1`` keeps them: segments folded into one array per user.

Fold every accepted example, in the order of the log (or of the steps that train it), and a user's array holds the
user's last interactions exactly as the worker has them. Reading the compacted topic from its start gives the same,
since it keeps the newest record of each interaction (`state.restore` has the proof).

One row per interaction (`wire.example.row_type`); item 0 marks a row that has not arrived.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from ctypes import addressof, c_char
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
        "_max_context", "_rows", "_segment_len", "address", "end", "full_at", "raw", "row_bytes", "start",
        "user_features",
    )  # fmt: skip

    def __init__(self, num_features: int, max_context: int, segment_len: int) -> None:
        self._max_context, self._segment_len = max_context, segment_len
        self._place(bytearray(), row_type(num_features))
        self.start = self.end = 0
        self.full_at = 0
        """Up to this place, no end leaves segments that are not kept."""
        self.user_features: Int64 = np.zeros(0, np.int64)

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        return None, {name: getattr(self, name) for name in self.__slots__ if name not in ("address", "raw")}

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        """A copy's rows are elsewhere."""
        for name, value in state[1].items():
            setattr(self, name, value)
        self._place(bytearray(self._rows.tobytes()), self._rows.dtype)

    def _place(self, rows: bytearray, layout: np.dtype[np.void]) -> None:
        self.raw, self.row_bytes = rows, layout.itemsize
        self._rows = np.ndarray(len(rows) // layout.itemsize, layout, rows)
        self.address = addressof(c_char.from_buffer(rows)) if rows else 0  # of the first row in memory

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

    def fold(self, lesson: Lesson) -> None:
        """Put a record's interactions in place. Nothing is dropped until `forget`."""
        rows = lesson.rows
        if not len(rows):
            return
        if rows.itemsize != self.row_bytes:
            raise ValueError(f"example {lesson.number}: expected rows of {self.row_bytes} bytes, got {rows.itemsize}")
        at = self._reach(lesson.first_index, len(rows)) * self.row_bytes
        self.raw[at : at + rows.nbytes] = rows.tobytes()
        self.user_features = lesson.user_feature_hash

    def _reach(self, first: int, num: int) -> int:
        """Make room for ``num`` places, which may be new; where the first is now."""
        is_apart = first - self.end > self._max_context + self._segment_len or self.start - first > FARTHEST_BACK
        if self.start == self.end or is_apart:
            self.start = self.end = first
            self._move(first, first + num)
        else:
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
        else:
            self._move(start, end)

    def _move(self, start: int, end: int) -> None:
        """`_span` in other memory."""
        wanted = end - start
        most = self._max_context + 2 * self._segment_len
        size = self.row_bytes
        rows = bytearray(max(wanted, min(2 * wanted, most)) * size)
        first, last = max(start, self.start), min(end, self.end)
        if last > first:
            kept = self.raw[(first - self.start) * size : (last - self.start) * size]
            rows[(first - start) * size : (last - start) * size] = kept
        self._place(rows, self._rows.dtype)
        self.start, self.end = start, end
        self.full_at = (start // self._segment_len + self._num_slots) * self._segment_len


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
        return self.gather_all((lesson,))[0]

    def gather_all(self, lessons: Iterable[Lesson]) -> list[History]:
        """`gather` each of them, in order."""
        find, touched = self.users.get, list[History]()
        for lesson in lessons:  # this takes most of the time that a record takes, so it calls as little as possible
            history, rows = find(lesson.user) or self.begin(lesson), lesson.rows
            # As bytes: between structured arrays NumPy copies field by field, and a view costs more than copying.
            data, size, first = rows.tobytes(), history.row_bytes, lesson.segment * lesson.segment_len + lesson.first
            at = (first - history.start) * size
            stop = at + len(data)
            if at >= 0 and first <= history.end and stop <= len(history.raw) and data and rows.itemsize == size:
                history.raw[at:stop] = data
                history.user_features = lesson.user_feature_hash
                if (end := history.start + stop // size) > history.end:
                    self.num_rows += end - history.end
                    history.end = end
            else:
                self._fold(history, lesson)
            touched.append(history)
        return touched

    def _fold(self, history: History, lesson: Lesson) -> None:
        """Any record, also one for which rows must move."""
        before, num_before = history.buffer, history.end - history.start
        history.fold(lesson)
        self._count(history, before, num_before)

    def begin(self, lesson: Lesson) -> History:
        """The history of a user whom the lesson is the first of."""
        history = History(num_features_of(lesson.rows), self._max_context, lesson.segment_len)
        self.users[lesson.user] = history
        self.num_bytes += history.num_bytes
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
