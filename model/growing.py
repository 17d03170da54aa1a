"""An array of rows that grows in place, without a pause.

Address space is reserved for many rows, and the system backs a page with memory when it is first written. So a larger
table is a longer view of the same memory: nothing is copied, and unused rows take no memory. If the reservation is
refused (a limit on address space) or outgrown, it is replaced by another one, with a copy.
"""

from __future__ import annotations

import mmap
import sys
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

RESERVED_ROWS = 1 << 27
LEAST_ROWS = 64
HUGE_BYTES = 64 << 20
"""From this size on, huge pages are used: fewer page faults while it fills, fewer TLB misses when rows are read."""
_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""Keeps the system from counting the reservation as memory in use. Python has a name for this flag from 3.13 on."""


class GrowingRows:
    """``array``: (capacity, *shape), zeros at first; after `grow` a longer view of the same memory."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, reserved_rows: int = RESERVED_ROWS) -> None:
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._row_bytes = self._dtype.itemsize * prod(shape)
        self._wanted, self._is_huge = reserved_rows, False
        self._reserved, self._memory = self._reserve(LEAST_ROWS)
        self.array = self._view(LEAST_ROWS)

    def _reserve(self, num_rows: int) -> tuple[int, Any]:
        """Reserve as many rows as the system allows, at least ``num_rows``. Raises MemoryError."""
        reserved = max(self._wanted, num_rows)
        while True:
            try:
                memory = mmap.mmap(-1, reserved * self._row_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
            except (OSError, MemoryError) as error:
                if reserved == num_rows:
                    raise MemoryError(
                        f"expected memory for {num_rows:,} rows of {self._row_bytes} bytes, the system refused it "
                        f"({error}); evict (trainer.evict_after_days, max_items), or give the process more"
                    ) from error
                reserved = max(num_rows, reserved // 2)
            else:
                return reserved, memory

    def _view(self, num_rows: int) -> NDArray[Any]:
        flat = np.frombuffer(self._memory, self._dtype, num_rows * prod(self._shape))
        return flat.reshape(num_rows, *self._shape)

    def grow(self, num_rows: int) -> None:
        """Make room for ``num_rows`` rows, and at least half as many again as before. Raises MemoryError."""
        held = len(self.array)
        if num_rows <= held:
            return
        wanted = max(num_rows, held + held // 2)
        if num_rows > self._reserved:
            old = self.array
            self._reserved, self._memory = self._reserve(wanted)
            self._is_huge = False
            self._view(held)[:] = old
        self.array = self._view(min(wanted, self._reserved))
        self._want_huge_pages()

    def _want_huge_pages(self) -> None:
        if not self._is_huge and self.array.nbytes >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
            self._is_huge = True


class GrowingColumns:
    """Columns, by name, that grow in place."""

    def __init__(self) -> None:
        self._rows = dict[str, GrowingRows]()

    def longer(self, name: str, column: NDArray[Any], num_rows: int) -> NDArray[Any]:
        """``column`` with ``num_rows`` rows, zeros at the end: a longer view of the same memory if it came from here,
        otherwise a copy."""
        if not prod(column.shape[1:]):
            return np.zeros((num_rows, *column.shape[1:]), column.dtype)
        rows = self._rows.get(name)
        if rows is None or rows.array.ctypes.data != column.ctypes.data:
            rows = self._rows[name] = GrowingRows(column.shape[1:], column.dtype)
            rows.grow(num_rows)
            rows.array[: len(column)] = column
        rows.grow(num_rows)
        return rows.array[:num_rows]
