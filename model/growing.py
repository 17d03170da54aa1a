"""An array of rows that grows in place, without a pause.

Address space is reserved for many rows, and the system backs a page with memory when it is first written. So a larger
table is a longer view of the same memory: nothing is copied, and unused rows take no memory. Where address space is
limited or counted as memory, which the rest of the process needs too, no more is reserved than there are rows, and half
of that again; a reservation that is outgrown is replaced by another one, with a copy.

With `keep_in` the rows are in files instead, mapped into memory: the system keeps the pages that are used in memory,
and writes others to the disk when it needs room. The files have no names, so they end with the process, however it
ends. They are as long as the reservation, but have blocks for few more rows than there are, and before a row is
written: a full disk is an error of `grow`, not a signal in the middle of a step.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

RESERVED_ROWS = 1 << 27
LEAST_ROWS = 64
HUGE_BYTES = 64 << 20
"""From this size on, huge pages are used: fewer page faults while it fills, fewer TLB misses when rows are read."""
_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""Keeps the system from counting the reservation as memory in use. Python has a name for this flag from 3.13 on."""
_MORE_OF_MEMORY, _MORE_OF_A_FILE = 2, 8
"""What grows gets room for so large a part of its rows again. Unused memory costs nothing, unused blocks do."""
_folder: Path | None = None
_is_refused = False
"""Whether the system has refused a reservation: later ones would only take what is left from others."""


def keep_in(folder: str) -> None:
    """Keep the rows that this process reserves from now on in files of this folder; empty: in memory. Raises OSError
    if no file can be made there."""
    global _folder  # noqa: PLW0603  (like torch's number of threads: where a process has its memory)
    _folder = Path(folder) if folder else None
    if _folder is not None:
        try:
            _folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=_folder).close()
        except OSError as error:
            what = f"no tables can be kept there (tables_folder): {os.strerror(error.errno or errno.EIO).lower()}"
            raise OSError(error.errno, what, folder) from error


def _is_scarce() -> bool:
    """Whether a reservation would take something from the rest of the process: a limit on its address space or, with
    `keep_in`, on the size of its files; or a system that promises no more memory than it has."""
    limits = [resource.RLIMIT_AS, *([resource.RLIMIT_FSIZE] if _folder is not None else [])]
    if _is_refused or any(resource.getrlimit(each)[0] != resource.RLIM_INFINITY for each in limits):
        return True
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return False


class GrowingRows:
    """``array``: (capacity, *shape), zeros at first; after `grow` a longer view of the same memory.

    Raises MemoryError, or with `keep_in` OSError, if there is no room.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, reserved_rows: int = RESERVED_ROWS) -> None:
        self._file: IO[bytes] | None = None
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._row_bytes = self._dtype.itemsize * prod(shape)
        self._wanted, self._is_huge, self._folder = reserved_rows, False, _folder
        self._reserved, self._memory = self._reserve(LEAST_ROWS)
        self.array = self._view(LEAST_ROWS)

    def _reserve(self, num_rows: int) -> tuple[int, Any]:
        """Reserve many rows if the system allows it, at least ``num_rows``."""
        global _is_refused  # noqa: PLW0603  (like the folder)
        reserved = num_rows if _is_scarce() else max(self._wanted, num_rows)
        try:
            file, memory = self._map(reserved * self._row_bytes)
        except (OSError, MemoryError) as error:
            if reserved > num_rows:
                _is_refused = True
                return self._reserve(num_rows)
            raise self._refusal(num_rows, error) from error
        self._allocate(file, 0, num_rows)
        self._close()
        self._file = file
        return reserved, memory

    def _refusal(self, num_rows: int, error: OSError | MemoryError) -> OSError | MemoryError:
        if self._folder is not None:
            return self._full(num_rows * self._row_bytes, error)
        return MemoryError(
            f"expected memory for {num_rows:,} rows of {self._row_bytes} bytes, the system refused it ({error}); evict "
            "(trainer.evict_after_days, max_items), or give the process more"
        )

    def _map(self, num_bytes: int) -> tuple[IO[bytes] | None, mmap.mmap]:
        if self._folder is None:
            return None, mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        try:
            file.truncate(num_bytes)
            return file, mmap.mmap(file.fileno(), num_bytes, mmap.MAP_SHARED | _NORESERVE)
        except BaseException:
            file.close()
            raise

    def _allocate(self, file: IO[bytes] | None, held: int, num_rows: int) -> None:
        """Give the rows from ``held`` up to ``num_rows`` blocks on the disk, if they are in a file. Raises OSError."""
        if file is None or num_rows <= held:
            return
        num_bytes = (num_rows - held) * self._row_bytes
        try:
            os.posix_fallocate(file.fileno(), held * self._row_bytes, num_bytes)
        except OSError as error:
            if file is not self._file:
                file.close()
            raise self._full(num_bytes, error) from error

    def _full(self, num_bytes: int, error: OSError | MemoryError) -> OSError:
        number = error.errno if isinstance(error, OSError) else errno.ENOMEM
        reason = os.strerror(number or errno.ENOSPC).lower()
        what = f"no room for {num_bytes:,} more bytes of tables (tables_folder): {reason}"
        return OSError(number, what, str(self._folder))

    def _close(self) -> None:
        """Close the file, which stays until nothing is mapped from it any more."""
        if self._file is not None:
            self._file.close()

    def __del__(self) -> None:
        self._close()

    def _view(self, num_rows: int) -> NDArray[Any]:
        flat = np.frombuffer(self._memory, self._dtype, num_rows * prod(self._shape))
        return flat.reshape(num_rows, *self._shape)

    def grow(self, num_rows: int) -> None:
        """Make room for ``num_rows`` rows, and some more, so that this is seldom."""
        held = len(self.array)
        if num_rows <= held:
            return
        wanted = max(num_rows, held + held // (_MORE_OF_MEMORY if self._file is None else _MORE_OF_A_FILE))
        if num_rows > self._reserved:
            old = self.array
            self._reserved, self._memory = self._reserve(wanted)
            self._is_huge = False
            self._view(held)[:] = old
        wanted = min(wanted, self._reserved)
        self._allocate(self._file, held, wanted)
        self.array = self._view(wanted)
        self._want_huge_pages()

    def _want_huge_pages(self) -> None:
        is_worth_it = self._file is None and self.array.nbytes >= HUGE_BYTES
        if is_worth_it and not self._is_huge and hasattr(mmap, "MADV_HUGEPAGE"):
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

    def taken(self, name: str, column: NDArray[Any]) -> NDArray[Any]:
        """A copy of ``column`` that can grow in place."""
        self._rows.pop(name, None)
        return self.longer(name, column, len(column))
