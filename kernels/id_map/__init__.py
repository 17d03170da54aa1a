"""Id map: 64-bit ids of a changing vocabulary → rows of a table that only grows.

Collisionless (two ids never share a row), and determined by the order of calls, so a replay gives every id the same
row. Ids may be any int64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.id_map.cpp import CppTable
from kernels.id_map.reference import ReferenceTable

Ids = NDArray[np.int64]
Columns = tuple[Ids, Ids, Ids]
_STATE_KEYS = ("rows", "ids", "last_seen_ms", "pending_ids", "pending_counts", "pending_last_seen_ms")


class _Table(Protocol):
    def __len__(self) -> int: ...
    @property
    def address(self) -> int | None: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_pending(self) -> int: ...
    def lookup(self, ids_N: Ids, first: int = 0) -> Ids: ...
    def insert(self, ids_N: Ids, now_ms: int) -> Ids: ...
    def evict(self, before_ms: int) -> tuple[Ids, Ids]: ...
    def remove(self, ids_N: Ids) -> tuple[Ids, Ids]: ...
    def live(self) -> Columns: ...
    def pending(self) -> Columns: ...
    def ids(self) -> Ids: ...
    def rows(self, rows_N: Ids) -> tuple[Ids, Ids]: ...
    def load(self, live: Columns, pending: Columns, num_rows: int) -> None: ...


class IdMap:
    """Rows for ids. ``len(map)`` is how many ids have one.

    ``capacity_hint``: how many ids to make room for at once (the map grows beyond that). ``admit_after``: how many
    sightings an id needs to get a row. ``backend``: "cpp" ("auto") or "reference". Not safe for concurrent writers.
    """

    def __init__(self, capacity_hint: int = 0, *, admit_after: int = 1, backend: str = "auto") -> None:
        if capacity_hint < 0 or admit_after < 1:
            raise ValueError(
                f"capacity_hint, admit_after: expected at least 0 and 1, got {capacity_hint}, {admit_after}"
            )
        if backend not in ("auto", "cpp", "reference"):
            raise ValueError(f"backend: expected auto, cpp or reference, got {backend!r}")
        self._capacity_hint = capacity_hint
        self._admit_after = admit_after
        self._backend = backend
        self._table = self._new_table(capacity_hint, admit_after)

    def _new_table(self, capacity_hint: int, admit_after: int) -> _Table:
        table = ReferenceTable if self._backend == "reference" else CppTable
        return table(capacity_hint, admit_after)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def address(self) -> int | None:
        """Where C++ finds the map, until it is loaded; None if it is not in C++."""
        return self._table.address

    @property
    def admit_after(self) -> int:
        """How many sightings an id needs to get a row."""
        return self._admit_after

    @property
    def num_rows(self) -> int:
        """One above the highest row ever assigned: how many rows a table must have."""
        return self._table.num_rows

    @property
    def num_pending(self) -> int:
        """How many ids were seen, but not often enough to get a row."""
        return self._table.num_pending

    def lookup(self, ids_N: Ids, first: int = 0) -> Ids:
        """(N,) rows, numbered from ``first`` on, and one less for an id without one. Does not count as a sighting."""
        return self._table.lookup(_checked_ids(ids_N), first)

    def insert(self, ids_N: Ids, now_ms: int) -> Ids:
        """Count one sighting of each id, in order, also of repeats; (N,) rows, -1 for ids not admitted yet.

        A new row is the lowest freed one, else the next. ``now_ms`` becomes the time at which the ids were last seen,
        unless that is later already.
        """
        return self._table.insert(_checked_ids(ids_N), _checked_ms(now_ms, "now_ms"))

    def evict(self, before_ms: int) -> tuple[Ids, Ids]:
        """Forget ids last seen before ``before_ms``; (ids, rows) of those that had a row, by row."""
        return self._table.evict(_checked_ms(before_ms, "before_ms"))

    def remove(self, ids_N: Ids) -> tuple[Ids, Ids]:
        """Forget these ids, whenever they were seen; (ids, rows) of those that had a row, by row."""
        return self._table.remove(_checked_ids(ids_N))

    def live_rows(self) -> Ids:
        """Rows in use, ascending."""
        return self._table.live()[0]

    def ids_of_rows(self, rows_N: Ids | None = None) -> Ids:
        """(N,) ids of rows, or of all ``num_rows`` rows; 0 for a free row (see `live_rows`).

        Raises IndexError for a row that was never assigned.
        """
        return self._table.ids() if rows_N is None else self.of_rows(rows_N)[0]

    def of_rows(self, rows_N: Ids) -> tuple[Ids, Ids]:
        """(N,) ids of rows and (N,) when each was last seen (ms); zeros for a free row.

        Raises IndexError for a row that was never given.
        """
        rows_N = _checked_ids(rows_N, "rows_N")
        if len(rows_N) and (rows_N.min() < 0 or rows_N.max() >= self.num_rows):
            raise IndexError(f"rows_N: expected rows 0 to {self.num_rows - 1}, got {rows_N.min()} to {rows_N.max()}")
        return self._table.rows(rows_N)

    def pending(self) -> Columns:
        """Ids that have no row yet, ascending; how often each was seen, and when last (ms)."""
        return self._table.pending()

    def state_dict(self) -> dict[str, Ids]:
        """The whole state as int64 arrays; equal maps give equal arrays, whatever their history."""
        columns = dict(zip(_STATE_KEYS, (*self._table.live(), *self._table.pending()), strict=True))
        return {
            **columns,
            "num_rows": np.array([self.num_rows], dtype=np.int64),
            "admit_after": np.array([self._admit_after], dtype=np.int64),
        }

    def load_state_dict(self, state: Mapping[str, Ids]) -> None:
        """Become the map that ``state`` was taken from. Raises ValueError if it is not such a state."""
        expected = {*_STATE_KEYS, "num_rows", "admit_after"}
        if set(state) != expected:
            raise ValueError(f"state: expected keys {sorted(expected)}, got {sorted(state)}")
        columns = [_checked_ids(np.asarray(state[key]), key) for key in _STATE_KEYS]
        num_rows, admit_after = int(state["num_rows"][0]), int(state["admit_after"][0])
        _check_state(columns, num_rows, admit_after)
        table = self._new_table(max(self._capacity_hint, len(columns[0]) + len(columns[3])), admit_after)
        table.load((columns[0], columns[1], columns[2]), (columns[3], columns[4], columns[5]), num_rows)
        self._admit_after, self._table = admit_after, table


def _checked_ids(ids_N: Ids, name: str = "ids_N") -> Ids:
    ids_N = np.asarray(ids_N)
    if ids_N.ndim != 1 or ids_N.dtype != np.int64:
        raise ValueError(f"{name}: expected a 1-d int64 array, got {ids_N.dtype} of shape {ids_N.shape}")
    return np.ascontiguousarray(ids_N)


def _checked_ms(ms: int, name: str) -> int:
    if not -(2**63) <= int(ms) < 2**63:
        raise ValueError(f"{name}: expected milliseconds that fit in 64 bits, got {ms}")
    return int(ms)


def _check_state(columns: list[Ids], num_rows: int, admit_after: int) -> None:
    rows, ids, last_seen, pending_ids, counts, pending_seen = columns
    if not (len(rows) == len(ids) == len(last_seen) and len(pending_ids) == len(counts) == len(pending_seen)):
        raise ValueError("state: expected columns of equal length, got " + str([len(c) for c in columns]))
    if admit_after < 1 or (len(counts) and not 1 <= counts.min() <= counts.max() < admit_after):
        raise ValueError(f"state: expected pending counts of 1 to admit_after - 1 = {admit_after - 1}")
    if (rows[1:] <= rows[:-1]).any() or (len(rows) and (rows[0] < 0 or rows[-1] >= num_rows)):
        raise ValueError(f"state: expected rows ascending in 0 to {num_rows - 1}")
