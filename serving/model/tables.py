"""The tables of a version, held twice, so that a new version costs its changed rows and not a copy of the table.

Two `TableSet`s take turns. Requests read one; the other catches up with what it missed, takes the new version's rows,
and then becomes the one that is read. The former one is changed again only when no request holds it any more
(`serving.versions.manager` counts them). Row numbers are the trainer's; row 0 is the cold row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import IdMap
from model.config import ModelConfig
from model.growing import GrowingColumns
from model.memory import Memory
from model.rates import Rates
from model.tokens import ITEMS
from wire.weights import Snapshot, TableRows

Int64 = NDArray[np.int64]
Derive = Callable[[Tensor], Tensor]
"""Rows (N, D) → what is derived from them (N, D'), row by row."""


def tensor_of(array: NDArray[Any], device: torch.device | None = None) -> Tensor:
    """An array as a tensor; copied only if the array is read-only."""
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device or torch.device("cpu"))


class RowTable:
    """A table: ``rows`` (V, D), ``derived`` values of them, ``live`` (V,), and key ↔ row. Grows in place, on a GPU by
    doubling."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device, backend: str) -> None:
        self._map = IdMap(1024, backend="reference" if backend == "reference" else "auto")
        self._row_of_slot = np.zeros(0, np.int64)
        self._device = device
        self.num_rows = 0
        self._rows = torch.zeros((0, width), dtype=dtype, device=device)
        self._derived: Tensor | None = None
        self._live = torch.zeros(0, dtype=torch.bool, device=device)
        self._keys = np.zeros(0, np.int64)
        self._columns = GrowingColumns()

    @property
    def rows(self) -> Tensor:
        """(V, D)."""
        return self._rows[: self.num_rows]

    @property
    def derived(self) -> Tensor:
        """(V, D') what is derived from the rows; the rows themselves if nothing is."""
        return self.rows if self._derived is None else self._derived[: self.num_rows]

    @property
    def live(self) -> Tensor:
        """(V,) bool: rows that belong to a key; never the cold row."""
        return self._live[: self.num_rows]

    @property
    def num_live(self) -> int:
        """How many keys have a row."""
        return int(self.live.sum())

    def keys_of(self, rows_N: Int64) -> Int64:
        """(N,) keys of rows."""
        return self._keys[rows_N]

    def lookup(self, keys_N: Int64) -> Int64:
        """(N,) rows; 0 (the cold row) for keys without one."""
        slots = self._map.lookup(keys_N)
        if not len(self._row_of_slot):
            return np.zeros(len(keys_N), np.int64)
        return np.where(slots < 0, 0, self._row_of_slot[slots])

    def apply(self, change: TableRows, derive: Derive | None = None) -> None:
        """Apply tombstones first (new keys may have got their rows), then the changed rows, in place."""
        self._bury(change.tombstones)
        if not len(change.row_index):
            return
        self._grow(int(change.row_index.max()) + 1)
        where = tensor_of(change.row_index, self._device)
        rows = tensor_of(change.rows, self._device).to(self._rows.dtype)
        self._rows[where] = rows
        if derive is not None:
            self._keep_derived(where, derive(rows))
        self._keys[change.row_index] = change.ids
        self._live[where] = where != 0
        self._remember(change.ids[change.row_index != 0], change.row_index[change.row_index != 0])

    def lengthen(self, num_rows: int) -> None:
        """Have at least ``num_rows`` rows; new ones belong to no key."""
        self._grow(num_rows)
        if self._derived is not None and len(self._derived) < len(self._rows):
            self._derived = self._longer("derived", self._derived, len(self._rows))

    def _remember(self, keys_N: Int64, rows_N: Int64) -> None:
        slots = self._map.insert(keys_N, 0)
        more = self._map.num_rows - len(self._row_of_slot)
        self._row_of_slot = np.append(self._row_of_slot, np.zeros(more, np.int64)) if more > 0 else self._row_of_slot
        self._row_of_slot[slots] = rows_N

    def _keep_derived(self, where: Tensor, derived: Tensor) -> None:
        if self._derived is None:
            self._derived = derived.new_zeros((0, derived.shape[1]))
        self._derived = self._longer("derived", self._derived, len(self._rows))
        self._derived[where] = derived

    def _bury(self, keys_N: Int64) -> None:
        slots = self._map.lookup(keys_N) if len(keys_N) else keys_N
        slots = slots[slots >= 0]
        rows = self._row_of_slot[slots] if len(slots) else slots
        self._row_of_slot[slots] = 0
        rows = rows[rows != 0]
        where = tensor_of(rows, self._device)
        self._keys[rows], self._live[where], self._rows[where] = 0, False, 0
        if self._derived is not None:
            self._derived[where] = 0

    def _grow(self, num_rows: int) -> None:
        if num_rows > len(self._keys):
            more = len(self._keys) // (8 if self._device.type == "cpu" else 1)
            capacity = max(num_rows, len(self._keys) + more, 64)
            self._rows = self._longer("rows", self._rows, capacity)
            self._live = self._longer("live", self._live, capacity)
            self._keys = self._columns.longer("keys", self._keys, capacity)
        self.num_rows = max(self.num_rows, num_rows)

    def _longer(self, name: str, column: Tensor, num_rows: int) -> Tensor:
        """``column`` with ``num_rows`` rows, zeros at the end: where it is on the host a longer view of the same
        memory."""
        if column.device.type == "cpu":
            return torch.from_numpy(self._columns.longer(name, column.numpy(), num_rows))
        longer = column.new_zeros((num_rows, *column.shape[1:]))
        longer[: len(column)] = column
        return longer

    def contents(self) -> TableRows:
        """Everything in the table, in the form of a base. Does not change the table."""
        live = self.live.cpu().numpy().copy()
        live[:1] = True
        rows = np.flatnonzero(live)
        weights = self.rows[tensor_of(rows, self._device)].cpu().numpy()
        return TableRows(self._keys[rows], rows, weights, np.zeros(0, np.int64))


class TableSet:
    """All tables of the weights, by name, the memory and the rates (None before the first version)."""

    def __init__(self, device: torch.device, backend: str) -> None:
        self.device, self.backend = device, backend
        self.tables: dict[str, RowTable] = {}
        self.memory: Memory | None = None
        self.rates: Rates | None = None

    def __getitem__(self, name: str) -> RowTable:
        return self.tables[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tables

    def apply(self, change: Snapshot, derive: Mapping[str, Derive], config: ModelConfig, *, is_base: bool) -> None:
        """Apply what a version carries; a base replaces everything."""
        if is_base:
            self.tables = {}
        self.apply_rows(change.tables, derive)
        if self.memory is None or self.rates is None or is_base:
            self.memory = Memory(config, backend=self.backend)
            self.rates = Rates(config, backend=self.backend, most_kept=1)
        self.memory.apply(change.memory, is_base=is_base)
        self.rates.apply(change.rates, is_base=is_base)
        if ITEMS in self.tables:  # a base has no row of an item that is gone, and the memory has a place for it
            self.tables[ITEMS].lengthen(self.memory.num_rows)

    def apply_rows(self, changes: Mapping[str, TableRows], derive: Mapping[str, Derive]) -> None:
        """Apply the embedding rows of a version."""
        for name, change in changes.items():
            if name not in self.tables:
                dtype = tensor_of(change.rows[:0]).dtype
                self.tables[name] = RowTable(change.rows.shape[1], dtype, self.device, self.backend)
            self.tables[name].apply(change, derive.get(name))

    def copy(self, derive: Mapping[str, Derive]) -> TableSet:
        """Another set with the same contents. Does not change this one."""
        other = TableSet(self.device, self.backend)
        other.apply_rows({name: table.contents() for name, table in self.tables.items()}, derive)
        for name, table in self.tables.items():
            other.tables[name].lengthen(table.num_rows)
        other.memory = self.memory.copy() if self.memory is not None else None
        other.rates = self.rates.copy() if self.rates is not None else None
        return other
