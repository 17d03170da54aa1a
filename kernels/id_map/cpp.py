"""The id map in C++ behind a handle: the same table as `ReferenceTable`."""

from __future__ import annotations

import weakref
from ctypes import CDLL, c_int64, c_void_p
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kernels.library import load, pointer, pointers

Ids = NDArray[np.int64]
Columns = tuple[Ids, Ids, Ids]


@cache
def _library() -> CDLL:
    library = load()
    signatures = {
        "new": (c_void_p, [c_int64, c_int64]),
        "delete": (None, [c_void_p]),
        "sizes": (None, [c_void_p, c_void_p]),
        "lookup": (None, [c_void_p, c_void_p, c_int64, c_int64, c_void_p]),
        "insert": (c_int64, [c_void_p, c_void_p, c_int64, c_int64, c_void_p]),
        "evict": (c_int64, [c_void_p, c_int64, c_void_p, c_void_p]),
        "remove": (c_int64, [c_void_p, c_void_p, c_int64, c_void_p, c_void_p]),
        "live": (None, [c_void_p, c_void_p, c_void_p, c_void_p]),
        "pending": (c_int64, [c_void_p, c_void_p, c_void_p, c_void_p]),
        "ids": (None, [c_void_p, c_void_p]),
        "rows": (None, [c_void_p, c_void_p, c_int64, c_void_p, c_void_p]),
        "load_live": (c_int64, [c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p]),
        "load_pending": (c_int64, [c_void_p, c_int64, c_void_p, c_void_p, c_void_p]),
    }
    for name, (result, arguments) in signatures.items():
        entry = getattr(library, f"id_map_{name}")
        entry.restype, entry.argtypes = result, arguments
    return library


def _checked(status: int) -> int:
    if status == -2:
        raise ValueError("state: expected every id once, got a repeat")
    if status < 0:
        raise MemoryError("IdMap: no memory to grow (or more than 2^31 - 1 rows); evict, or give the process more")
    return status


class CppTable:
    """See `kernels.id_map.reference.ReferenceTable`."""

    def __init__(self, capacity_hint: int, admit_after: int) -> None:
        self._c = _library()
        self._map = self._c.id_map_new(capacity_hint, admit_after)
        if not self._map:
            raise MemoryError(f"IdMap: no memory for {capacity_hint} ids; lower capacity_hint")
        weakref.finalize(self, self._c.id_map_delete, self._map)
        self._known_sizes: list[int] | None = None
        """As of the last change, once asked for."""

    @property
    def address(self) -> int | None:
        """Where C++ finds it."""
        address: int = self._map
        return address

    def _sizes(self) -> list[int]:
        if self._known_sizes is None:
            sizes = np.empty(3, dtype=np.int64)
            self._c.id_map_sizes(self._map, pointer(sizes))
            self._known_sizes = sizes.tolist()
        return self._known_sizes

    def __len__(self) -> int:
        return self._sizes()[0]

    @property
    def num_rows(self) -> int:
        """One above the highest row ever assigned."""
        return self._sizes()[1]

    @property
    def num_pending(self) -> int:
        """Ids seen too few times for a row."""
        return self._sizes()[2]

    def lookup(self, ids_N: Ids, first: int = 0) -> Ids:
        """Rows, numbered from ``first`` on, and one less for unknown ids."""
        rows_N = np.empty_like(ids_N)
        self._c.id_map_lookup(self._map, pointer(ids_N), len(ids_N), first, pointer(rows_N))
        return rows_N

    def insert(self, ids_N: Ids, now_ms: int) -> Ids:
        """Rows after seeing the ids in order."""
        rows_N = np.empty_like(ids_N)
        status = self._c.id_map_insert(self._map, pointer(ids_N), len(ids_N), now_ms, pointer(rows_N))
        self._known_sizes = None  # afterwards: another thread may have asked meanwhile
        _checked(status)
        return rows_N

    def evict(self, before_ms: int) -> tuple[Ids, Ids]:
        """The ids and rows dropped, by row."""
        ids, rows = np.empty(len(self), dtype=np.int64), np.empty(len(self), dtype=np.int64)
        status = self._c.id_map_evict(self._map, before_ms, pointer(ids), pointer(rows))
        self._known_sizes = None
        count = _checked(status)
        return ids[:count].copy(), rows[:count].copy()

    def remove(self, ids_N: Ids) -> tuple[Ids, Ids]:
        """Those of these ids that had a row, and the rows, by row."""
        ids, rows = np.empty_like(ids_N), np.empty_like(ids_N)
        status = self._c.id_map_remove(self._map, pointer(ids_N), len(ids_N), pointer(ids), pointer(rows))
        self._known_sizes = None
        count = _checked(status)
        return ids[:count].copy(), rows[:count].copy()

    def live(self) -> Columns:
        """Rows in use, ascending, with their ids and when each was last seen."""
        rows, ids, last_seen = (np.empty(len(self), dtype=np.int64) for _ in range(3))
        self._c.id_map_live(self._map, *pointers(rows, ids, last_seen))
        return rows, ids, last_seen

    def pending(self) -> Columns:
        """Ids without a row, ascending, with their sightings and when each was last seen."""
        ids, counts, last_seen = (np.empty(self.num_pending, dtype=np.int64) for _ in range(3))
        _checked(self._c.id_map_pending(self._map, *pointers(ids, counts, last_seen)))
        return ids, counts, last_seen

    def ids(self) -> Ids:
        """The id of every row ever assigned, 0 for a free one."""
        ids = np.empty(self.num_rows, dtype=np.int64)
        self._c.id_map_ids(self._map, pointer(ids))
        return ids

    def rows(self, rows_N: Ids) -> tuple[Ids, Ids]:
        """Ids of rows and when each was last seen; zeros for a free one."""
        ids, last_seen = np.empty_like(rows_N), np.empty_like(rows_N)
        self._c.id_map_rows(self._map, pointer(rows_N), len(rows_N), pointer(ids), pointer(last_seen))
        return ids, last_seen

    def load(self, live: Columns, pending: Columns, num_rows: int) -> None:
        """Fill an empty table."""
        rows, ids, last_seen = live
        status = self._c.id_map_load_live(self._map, num_rows, len(rows), *pointers(rows, ids, last_seen))
        self._known_sizes = None
        _checked(status)
        ids, counts, last_seen = pending
        status = self._c.id_map_load_pending(self._map, len(ids), *pointers(ids, counts, last_seen))
        self._known_sizes = None
        _checked(status)
