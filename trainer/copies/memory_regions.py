"""The regions (`trainer.copies.regions.Region`) of the memory: its rows, and what it counts of two choices in a row."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from model.dirty import DirtyBits
from model.memory import Memory
from model.memory_pairs import PAIRS
from model.memory_version import NEIGHBOURS, ROWS
from trainer.copies.rows import Arrays, copied

Int64 = NDArray[np.int64]
MEMORY_ROWS = (*ROWS, *NEIGHBOURS)


class MemoryRegion:
    """The memory's rows."""

    name = "memory"

    def __init__(self, memory: Memory, *, for_version: bool) -> None:
        self._memory, self._for_version = memory, for_version

    @property
    def num_rows(self) -> int:
        """See `Region`."""
        return self._memory.num_rows

    @property
    def dirty(self) -> DirtyBits:
        """See `Region`."""
        return self._memory.arrays.dirty

    @property
    def row_bytes(self) -> int:
        """See `Region`."""
        return 20 * self._memory.arrays.width + 37 + 4 * self._memory.arrays.num_hours

    def take(self, rows_U: Int64) -> Arrays:
        """See `Region`; ``heat`` is (U, 3). For a version, also which neighbours' counts have changed."""
        arrays = self._memory.arrays
        moved: Arrays = {}
        if self._for_version:
            moved["moved"] = arrays.moved[rows_U]
            arrays.moved[rows_U] = 0
        return {
            **moved,
            **{name: copied(getattr(arrays, name), rows_U) for name in MEMORY_ROWS},
            "heat": np.stack([copied(heat_V, rows_U) for heat_V in arrays.heat], axis=1),
        }


class PairsRegion:
    """What the memory counts of two choices in a row, by slot."""

    name = "memory_pairs"

    def __init__(self, memory: Memory, *, for_version: bool) -> None:
        self._memory, self._for_version = memory, for_version
        self.row_bytes = sum(column.itemsize * math.prod(column.shape[1:]) for column in self._columns.values()) + 1

    @property
    def num_rows(self) -> int:
        """See `Region`."""
        return self._memory.arrays.num_pairs

    @property
    def dirty(self) -> DirtyBits:
        """See `Region`."""
        return self._memory.arrays.pair_dirty

    @property
    def _columns(self) -> Arrays:
        return {name: getattr(self._memory.arrays, name) for name in PAIRS}

    def mark_used(self, bit: int) -> None:
        """See `trainer.copies.regions.SparseRegion`."""
        arrays = self._memory.arrays
        arrays.pair_dirty[arrays.pair_row[:, 0] > 0] |= np.uint8(bit)

    def take(self, rows_U: Int64) -> Arrays:
        """See `Region`. For a version, also which successors have changed."""
        arrays, moved = self._memory.arrays, Arrays()
        if self._for_version:
            moved["moved"] = arrays.pair_moved[rows_U]
            arrays.pair_moved[rows_U] = 0
        return {**moved, **{name: copied(column, rows_U) for name, column in self._columns.items()}}
