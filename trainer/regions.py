"""The parts of a learner that grow with the catalogue and the users, each as rows that can be copied a few at a time.

A region knows which of its rows have changed (`model.marks`) and copies those that it is asked for. What is small and
changes with every step (dense weights, gains, metrics) is no region: it is copied whole, at one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from model.embedding import EmbeddingTable
from model.kept import KeptInputs
from model.marks import Marks
from model.memory import Memory
from trainer.rows import Arrays
from trainer.step import Learner

Int64 = NDArray[np.int64]
MEMORY_ROWS = ("num_neighbours", "seen", "first", "last", "neighbour_row", "after", "before", "direct", "weight")


class Region(Protocol):
    """Rows 0 … ``num_rows - 1``, with one byte of marks each."""

    @property
    def name(self) -> str:
        """Of the part."""

    @property
    def num_rows(self) -> int:
        """Rows in use, now."""

    @property
    def marks(self) -> Marks:
        """At least ``num_rows`` long; another array once there are more."""

    @property
    def row_bytes(self) -> int:
        """What a row's columns come to, roughly."""

    def take(self, rows_U: Int64) -> Arrays:
        """Columns (U, …) of these rows, which share nothing with the learner."""


class TableRegion:
    """An embedding table with its optimiser's state and its keys."""

    def __init__(self, name: str, table: EmbeddingTable) -> None:
        self.name, self._table = name, table
        self.row_bytes = 4 * table.width + 22

    @property
    def num_rows(self) -> int:
        """See `Region`."""
        return self._table.num_rows

    @property
    def marks(self) -> Marks:
        """See `Region`."""
        return self._table.dirty

    def take(self, rows_U: Int64) -> Arrays:
        """See `Region`."""
        table = self._table
        keys_U, seen_U = table.seen(rows_U)
        return {
            "weight": _copied_tensor(table.weight, rows_U),
            "state": _copied_tensor(table.state, rows_U),
            "live": copied(table.live, rows_U),
            "ids": keys_U,
            "last_seen_ms": seen_U,
        }


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
    def marks(self) -> Marks:
        """See `Region`."""
        return self._memory.arrays.dirty

    @property
    def row_bytes(self) -> int:
        """See `Region`."""
        return 20 * self._memory.arrays.width + 37

    def take(self, rows_U: Int64) -> Arrays:
        """See `Region`; ``heat`` as (U, 3). For a version also which neighbours moved since the last one."""
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


class CountsRegion:
    """Counts by row of a table: `count_columns` of that name. Those of the items are frequencies, popularity and rates.

    They change together, with the targets of a step, so the marks of the rates stand for all.
    """

    def __init__(self, name: str, learner: Learner, table: str) -> None:
        self.name, self._learner, self._table = name, learner, table

    @property
    def num_rows(self) -> int:
        """See `Region`."""
        return len(self.marks)

    @property
    def marks(self) -> Marks:
        """See `Region`."""
        marks: Marks = getattr(self._learner.rates.arrays, f"{self._table}_dirty_V")
        return marks

    @property
    def row_bytes(self) -> int:
        """See `Region`."""
        return sum(column.itemsize * math.prod(column.shape[1:]) for column in self._columns.values())

    @property
    def _columns(self) -> Arrays:
        return count_columns(self._learner)[self.name]

    def take(self, rows_U: Int64) -> Arrays:
        """See `Region`; zeros where a column is not as long yet."""
        return {name: _rows_or_zeros(column, rows_U) for name, column in self._columns.items()}


class KeptRegion:
    """What the odds keep of the newest interactions, by place."""

    name = "kept"

    def __init__(self, kept: KeptInputs) -> None:
        self._kept = kept
        self.row_bytes = sum(column.itemsize * math.prod(column.shape[1:]) for column in kept.columns.values())

    @property
    def num_rows(self) -> int:
        """See `Region`."""
        return self._kept.rows.num_used

    @property
    def marks(self) -> Marks:
        """See `Region`."""
        return self._kept.rows.dirty_P

    def take(self, rows_U: Int64) -> Arrays:
        """See `Region`."""
        return {name: copied(column, rows_U) for name, column in self._kept.columns.items()}


COUNTS = {"counts": "item", "domain_counts": "domain", "feature_counts": "feature"}
"""Regions of counts, and the table of the rates that each is of."""


def count_columns(learner: Learner) -> dict[str, Arrays]:
    """By region, the arrays that it has rows of."""
    frequency, odds = learner.frequency.state_dict(), learner.rates.arrays
    of_items = {
        "frequency.count": frequency["count"],
        "frequency.clock": frequency["clock"],
        "popularity.count": learner.popularity.count_V,
    }
    rates = {region: {f"rates.{table}_VC": getattr(odds, f"{table}_VC")} for region, table in COUNTS.items()}
    return {**rates, "counts": {**of_items, **rates["counts"]}}


def copied(column: NDArray[Any], rows_U: Int64) -> NDArray[Any]:
    """A copy of ascending rows; of a run of them at the speed of memory."""
    num = len(rows_U)
    if num and rows_U[-1] - rows_U[0] == num - 1:
        return column[rows_U[0] : rows_U[0] + num].copy()
    return np.asarray(column[rows_U])


def _copied_tensor(column: torch.Tensor, rows_U: Int64) -> NDArray[Any]:
    if column.device.type == "cpu":
        return copied(column.numpy(), rows_U)
    return np.asarray(column.index_select(0, torch.from_numpy(rows_U).to(column.device)).cpu().numpy())


def _rows_or_zeros(column: NDArray[Any], rows_U: Int64) -> NDArray[Any]:
    if not len(rows_U) or rows_U.max() < len(column):
        return copied(column, rows_U)
    out = np.zeros((len(rows_U), *column.shape[1:]), column.dtype)
    is_there = rows_U < len(column)
    out[is_there] = column[rows_U[is_there]]
    return out


class Entries:
    """A dictionary's entries, copied as JSON of ``[key, value]`` pairs; the value of a key that is gone is null.

    ``changed``: a dictionary whose keys are those that have changed since they were copied. They are taken out of it as
    they are copied.
    """

    ENTRY_BYTES = 512
    """As many bytes of rows are copied in the time that an entry takes."""

    def __init__(
        self,
        name: str,
        read: Callable[[Any], Any],
        all_keys: Callable[[], Iterable[Any]],
        changed: Callable[[], dict[Any, Any]],
    ) -> None:
        self.name, self._read, self._all_keys, self._changed = name, read, all_keys, changed

    def start_whole(self) -> list[Any]:
        """Every key, in order: what changes from here on is copied again."""
        self._changed().clear()
        return list(self._all_keys())

    @property
    def num_changed(self) -> int:
        """How many are to be copied again."""
        return len(self._changed())

    def take(self, keys: list[Any]) -> Arrays:
        """These entries as they are now."""
        encoded = msgspec.json.encode([[key, self._read(key)] for key in keys])
        return {"json": np.frombuffer(encoded, np.uint8)}

    def take_changed(self, num: int) -> Arrays:
        """Up to ``num`` of those that have changed, oldest first."""
        changed = self._changed()
        keys = list(islice(changed, num))
        for key in keys:
            del changed[key]
        return self.take(keys)


def regions_of(learner: Learner, *, for_version: bool) -> list[Region]:
    """All rows of a learner, for the next version or the next checkpoint."""
    tables: list[Region] = [TableRegion(name, table) for name, table in learner.tables.items()]
    counts = [CountsRegion(name, learner, table) for name, table in COUNTS.items()]
    kept = [] if for_version else [KeptRegion(learner.rates.kept)]
    return [*tables, MemoryRegion(learner.memory, for_version=for_version), *counts, *kept]


def names_of(learner: Learner, *, for_version: bool) -> Entries:
    """The producers' own names of items."""
    return Entries(
        "names",
        lambda key: learner.names[key],
        lambda: learner.names,
        lambda: learner.unpublished_names if for_version else learner.unsaved_names,
    )


def users_of(learner: Learner) -> Entries:
    """Whom the histories know: when each was first and last met."""
    histories = learner.histories
    return Entries("users", histories.known_since, lambda: histories.known, lambda: histories.unsaved)
