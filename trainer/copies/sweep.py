"""Copies a learner in slices between its steps, into one consistent snapshot.

Rows are copied a slice at a time while training continues. A row that changes after it was copied is marked dirty
(`model.dirty`) and copied again, as often as it takes. As soon as the rest fits into one slice, it is copied between
two steps, and all pieces together are the learner at that moment. (This is the pre-copy method of Clark et al., "Live
migration of virtual machines", NSDI 2005.) The learner and its copy never share a row, and no step has to announce what
it will change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.dirty import clear, is_dirty
from trainer.copies.regions import Entries, Region, SparseRegion
from trainer.copies.rows import NO_ROWS, Arrays, Piece

Int64 = NDArray[np.int64]
MOST_PIECE_BYTES = 1 << 20


class Sweep:
    """Copies all rows (``whole``), or those marked with ``bit``, and hands each piece to ``give``.

    A later piece replaces earlier ones of the same rows. One sweep at a time for each bit. Call `advance` between steps
    until it returns True, then `finish`.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        entries: Sequence[Entries],
        bit: int,
        give: Callable[[Piece], None],
        *,
        whole: bool,
    ) -> None:
        self._regions, self._entries, self._bit, self._give = regions, entries, bit, give
        dense = [index for index, region in enumerate(regions) if not isinstance(region, SparseRegion)]
        self._cursors = deque[list[int]]([index, 0] for index in (dense if whole else []))
        for region in regions:
            if whole and isinstance(region, SparseRegion):
                region.mark_used(bit)
        self._keys = deque[tuple[Entries, list[Any]]]((each, each.start_whole()) for each in entries if whole)
        self._first_key = 0
        self._left_bytes: int | None = None
        """What the last slice left dirty."""

    def advance(self, budget_bytes: int) -> bool:
        """Copy about ``budget_bytes``, and as much as has become dirty since the last slice, so that each one leaves
        less than the one before. True once no more than that is left: time to `finish`."""
        budget = self._take_whole(budget_bytes)
        if budget <= 0 or self._cursors or self._keys:
            return False
        dirty = list(self._dirty())
        left = self._bytes_of(dirty)
        if self._left_bytes is not None:
            budget += max(0, left - self._left_bytes)
        if left <= budget:
            return True
        self._left_bytes = left - budget
        self._take_changed(budget, dirty)
        return False

    def finish(self) -> None:
        """Copy all that is left: the pieces together are now the learner as it is."""
        while self._cursors or self._keys:
            self._take_whole(1 << 62)
        self._take_changed(1 << 62, self._dirty())

    def left_bytes(self) -> int:
        """Bytes of the rows and entries that are dirty."""
        return self._bytes_of(self._dirty())

    def _bytes_of(self, dirty: Iterable[tuple[Region, Int64]]) -> int:
        rows = sum(len(rows_U) * region.row_bytes for region, rows_U in dirty)
        return rows + sum(each.num_changed * each.ENTRY_BYTES for each in self._entries)

    # The first pass: rows one after the other

    def _take_whole(self, budget: int) -> int:
        """Continue the first pass; returns what is left of the budget."""
        while budget > 0 and self._cursors:
            index, start = self._cursors[0]
            region = self._regions[index]
            num = max(1, min(budget, MOST_PIECE_BYTES) // region.row_bytes)
            stop = min(region.num_rows, start + num)
            budget -= self._take(region, np.arange(start, stop))
            self._cursors[0][1] = stop
            if stop == region.num_rows:
                self._cursors.popleft()
        while budget > 0 and self._keys:
            entries, keys = self._keys[0]
            num = max(1, min(budget, MOST_PIECE_BYTES) // entries.ENTRY_BYTES)
            taken = keys[self._first_key : self._first_key + num]
            if taken:
                self._emit(entries.name, NO_ROWS, entries.take(taken))
            budget -= len(taken) * entries.ENTRY_BYTES
            self._first_key += len(taken)
            if self._first_key == len(keys):
                self._keys.popleft()
                self._first_key = 0
        return budget

    # Then what has changed

    def _dirty(self) -> Iterator[tuple[Region, Int64]]:
        for region in self._regions:
            yield region, np.flatnonzero(is_dirty(region.dirty[: region.num_rows], self._bit))

    def _take_changed(self, budget: int, dirty: Iterable[tuple[Region, Int64]]) -> None:
        for region, rows_U in dirty:
            size = max(1, MOST_PIECE_BYTES // region.row_bytes)
            for start in range(0, len(rows_U), size):
                if budget <= 0:
                    return
                budget -= self._take(region, rows_U[start : start + min(size, 1 + budget // region.row_bytes)])
        for entries in self._entries:
            while entries.num_changed and budget > 0:
                num = max(1, min(budget, MOST_PIECE_BYTES) // entries.ENTRY_BYTES)
                self._emit(entries.name, NO_ROWS, entries.take_changed(num))
                budget -= num * entries.ENTRY_BYTES

    def _take(self, region: Region, rows_U: Int64) -> int:
        columns = region.take(rows_U)
        dirty = region.dirty
        if len(rows_U) and rows_U[-1] - rows_U[0] == len(rows_U) - 1:
            clear(dirty[rows_U[0] : rows_U[-1] + 1], self._bit)
        else:
            dirty[rows_U] &= np.uint8(0xFF ^ self._bit)
        return self._emit(region.name, rows_U, columns)

    def _emit(self, region: str, rows_U: Int64, columns: Arrays) -> int:
        piece = Piece(region, rows_U, columns)
        self._give(piece)
        return piece.num_bytes
