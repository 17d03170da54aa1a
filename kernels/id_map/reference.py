"""The definition of the id map: plain Python dicts."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class ReferenceTable:
    """Known ids with rows, and ids seen too few times to have one; the work behind `kernels.IdMap`."""

    def __init__(self, capacity_hint: int, admit_after: int) -> None:
        del capacity_hint  # dicts grow by themselves
        self._admit_after = admit_after
        self._num_rows = 0
        self._row_of: dict[int, int] = {}
        self._id_of: dict[int, int] = {}
        self._last_seen: dict[int, int] = {}
        self._pending: dict[int, tuple[int, int]] = {}
        self._free: list[int] = []

    address = None
    """C++ cannot read it."""

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def num_rows(self) -> int:
        """One above the highest row ever assigned."""
        return self._num_rows

    @property
    def num_pending(self) -> int:
        """Ids seen too few times for a row."""
        return len(self._pending)

    def lookup(self, ids_N: Ids, first: int = 0) -> Ids:
        """Rows, numbered from ``first`` on, and one less for unknown ids."""
        return np.array([first + self._row_of.get(i, -1) for i in ids_N.tolist()], dtype=np.int64)

    def insert(self, ids_N: Ids, now_ms: int) -> Ids:
        """Rows after seeing the ids in order."""
        return np.array([self._see(i, now_ms) for i in ids_N.tolist()], dtype=np.int64)

    def _see(self, key: int, now_ms: int) -> int:
        row = self._row_of.get(key, -1)
        if row >= 0:
            self._last_seen[row] = max(self._last_seen[row], now_ms)
            return row
        count, last_seen = self._pending.get(key, (0, now_ms))
        if count + 1 < self._admit_after:
            self._pending[key] = (count + 1, max(last_seen, now_ms))
            return -1
        self._pending.pop(key, None)
        return self._admit(key, max(last_seen, now_ms))

    def _admit(self, key: int, last_seen_ms: int) -> int:
        if self._free:
            row = heapq.heappop(self._free)
        else:
            row, self._num_rows = self._num_rows, self._num_rows + 1
        self._row_of[key], self._id_of[row], self._last_seen[row] = row, key, last_seen_ms
        return row

    def evict(self, before_ms: int) -> tuple[Ids, Ids]:
        """The ids and rows dropped, by row."""
        self._pending = {key: seen for key, seen in self._pending.items() if seen[1] >= before_ms}
        return self._drop([row for row, seen in self._last_seen.items() if seen < before_ms])

    def remove(self, ids_N: Ids) -> tuple[Ids, Ids]:
        """Those of these ids that had a row, and the rows, by row."""
        gone = set(ids_N.tolist())
        self._pending = {key: seen for key, seen in self._pending.items() if key not in gone}
        return self._drop([self._row_of[key] for key in gone if key in self._row_of])

    def _drop(self, rows: list[int]) -> tuple[Ids, Ids]:
        rows = sorted(rows)
        ids = [self._id_of.pop(row) for row in rows]
        for key, row in zip(ids, rows, strict=True):
            del self._row_of[key], self._last_seen[row]
            heapq.heappush(self._free, row)
        return np.array(ids, dtype=np.int64), np.array(rows, dtype=np.int64)

    def live(self) -> tuple[Ids, Ids, Ids]:
        """Rows in use, ascending, with their ids and when each was last seen."""
        rows = sorted(self._id_of)
        return (
            np.array(rows, dtype=np.int64),
            np.array([self._id_of[r] for r in rows], dtype=np.int64),
            np.array([self._last_seen[r] for r in rows], dtype=np.int64),
        )

    def pending(self) -> tuple[Ids, Ids, Ids]:
        """Ids without a row, ascending, with their sightings and when each was last seen."""
        ids = sorted(self._pending)
        return (
            np.array(ids, dtype=np.int64),
            np.array([self._pending[i][0] for i in ids], dtype=np.int64),
            np.array([self._pending[i][1] for i in ids], dtype=np.int64),
        )

    def ids(self) -> Ids:
        """The id of every row ever assigned, 0 for a free one."""
        return np.array([self._id_of.get(row, 0) for row in range(self._num_rows)], dtype=np.int64)

    def rows(self, rows_N: Ids) -> tuple[Ids, Ids]:
        """Ids of rows and when each was last seen; zeros for a free one."""
        ids = [self._id_of.get(row, 0) for row in rows_N.tolist()]
        last_seen = [self._last_seen[row] if row in self._id_of else 0 for row in rows_N.tolist()]
        return np.array(ids, dtype=np.int64), np.array(last_seen, dtype=np.int64)

    def load(self, live: tuple[Ids, Ids, Ids], pending: tuple[Ids, Ids, Ids], num_rows: int) -> None:
        """Fill an empty table."""
        rows, ids, last_seen = (x.tolist() for x in live)
        if len({*ids, *pending[0].tolist()}) != len(ids) + len(pending[0]):
            raise ValueError("state: expected every id once, got a repeat")
        self._num_rows = num_rows
        self._row_of = dict(zip(ids, rows, strict=True))
        self._id_of = dict(zip(rows, ids, strict=True))
        self._last_seen = dict(zip(rows, last_seen, strict=True))
        self._pending = {i: (n, t) for i, n, t in zip(*(x.tolist() for x in pending), strict=True)}
        self._free = [row for row in range(num_rows) if row not in self._id_of]
