"""The parts of a learner that grow with the catalogue and the users, as rows that can be copied a few at a time.

A region knows which of its rows are dirty (`model.dirty`), and copies the rows that it is asked for. Small parts that
change with every step (dense weights, gains, metrics) are not regions: they are copied whole, when the copy ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.dirty import DirtyBits
from model.embedding import EmbeddingTable
from model.rates import Rates
from trainer.copies.memory_regions import MemoryRegion, PairsRegion
from trainer.copies.rows import Arrays, copied
from trainer.learner.step import Learner

Int64 = NDArray[np.int64]


class Region(Protocol):
    """Rows 0 to ``num_rows - 1``, each with a byte of dirty bits."""

    @property
    def name(self) -> str:
        """The part's name in checkpoints."""

    @property
    def num_rows(self) -> int:
        """How many rows are in use."""

    @property
    def dirty(self) -> DirtyBits:
        """At least ``num_rows`` long; replaced by another array when the region grows."""

    @property
    def row_bytes(self) -> int:
        """About how many bytes a row's columns take."""

    def take(self, rows_U: Int64) -> Arrays:
        """Copies of these rows' columns, (U, …)."""


@runtime_checkable
class SparseRegion(Region, Protocol):
    """A region of which few rows may be in use, anywhere."""

    def mark_used(self, bit: int) -> None:
        """Mark the rows in use as dirty for a reader that copies all of them."""


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
    def dirty(self) -> DirtyBits:
        """See `Region`."""
        return self._table.dirty

    def take(self, rows_U: Int64) -> Arrays:
        """See `Region`."""
        table = self._table
        keys_U, seen_U = table.seen(rows_U)
        weight_UD, state_U = table.read(rows_U)
        return {
            "weight": weight_UD,
            "state": state_U,
            "live": copied(table.live, rows_U),
            "ids": keys_U,
            "last_seen_ms": seen_U,
        }


class CountsRegion:
    """The counts of a table's rows: for items, their frequency, popularity and rates (`count_columns`).

    All of them change with the targets of a step, so the rates' bits stand for all.
    """

    def __init__(self, name: str, learner: Learner, table: str) -> None:
        self.name, self._learner, self._table = name, learner, table

    @property
    def num_rows(self) -> int:
        """See `Region`."""
        return len(self.dirty)

    @property
    def dirty(self) -> DirtyBits:
        """See `Region`."""
        bits: DirtyBits = getattr(self._learner.rates.arrays, f"{self._table}_dirty_V")
        return bits

    @property
    def row_bytes(self) -> int:
        """See `Region`."""
        return sum(column.itemsize * math.prod(column.shape[1:]) for column in self._columns.values())

    @property
    def _columns(self) -> Arrays:
        return count_columns(self._learner)[self.name]

    def take(self, rows_U: Int64) -> Arrays:
        """See `Region`; rows beyond a column's end are zeros."""
        return {name: _rows_or_zeros(column, rows_U) for name, column in self._columns.items()}


class KeptRegion:
    """The inputs of the newest interactions that the odds keep, by place."""

    name = "kept"

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        columns = rates.kept.columns.values()
        self.row_bytes = sum(column.itemsize * math.prod(column.shape[1:]) for column in columns)

    @property
    def num_rows(self) -> int:
        """See `Region`."""
        return self._rates.kept.rows.num_used

    @property
    def dirty(self) -> DirtyBits:
        """See `Region`."""
        return self._rates.kept.rows.dirty_P

    def take(self, rows_U: Int64) -> Arrays:
        """See `Region`."""
        return {name: copied(column, rows_U) for name, column in self._rates.kept.columns.items()}


COUNTS = {"counts": "item", "domain_counts": "domain", "feature_counts": "feature", "pair_counts": "pair"}
"""The regions of counts, and which table of the rates each belongs to."""


def count_columns(learner: Learner) -> dict[str, Arrays]:
    """The arrays of each region of counts."""
    frequency, odds = learner.frequency.state_dict(), learner.rates.arrays
    of_items = {
        "frequency.count": frequency["count"],
        "frequency.clock": frequency["clock"],
        "popularity.count": learner.popularity.count_V,
    }
    rates = {region: {f"rates.{table}_VC": getattr(odds, f"{table}_VC")} for region, table in COUNTS.items()}
    return {**rates, "counts": {**of_items, **rates["counts"]}}


def _rows_or_zeros(column: NDArray[Any], rows_U: Int64) -> NDArray[Any]:
    if not len(rows_U) or rows_U.max() < len(column):
        return copied(column, rows_U)
    out = np.zeros((len(rows_U), *column.shape[1:]), column.dtype)
    is_there = rows_U < len(column)
    out[is_there] = column[rows_U[is_there]]
    return out


class Entries:
    """The entries of a dictionary, copied as JSON pairs ``[key, value]``; a removed key has the value null.

    ``changed``: a dictionary whose keys have changed since they were copied; copying removes them from it.
    ``skips_removed``: leave removed keys out, where nobody builds on an earlier copy.
    """

    ENTRY_BYTES = 512
    """Copying an entry takes as long as copying this many bytes of rows."""

    def __init__(
        self,
        name: str,
        read: Callable[[Any], Any],
        all_keys: Callable[[], Iterable[Any]],
        changed: Callable[[], dict[Any, Any]],
        *,
        skips_removed: bool = False,
    ) -> None:
        self.name, self._read, self._all_keys, self._changed = name, read, all_keys, changed
        self._skips_removed = skips_removed

    def start_whole(self) -> list[Any]:
        """Every key, in order. What changes from now on will be copied again."""
        self._changed().clear()
        return list(self._all_keys())

    @property
    def num_changed(self) -> int:
        """How many entries are dirty."""
        return len(self._changed())

    def take(self, keys: list[Any]) -> Arrays:
        """These entries as they are now."""
        pairs = [[key, self._read(key)] for key in keys]
        encoded = msgspec.json.encode([pair for pair in pairs if not (self._skips_removed and pair[1] is None)])
        return {"json": np.frombuffer(encoded, np.uint8)}

    def take_changed(self, num: int) -> Arrays:
        """Up to ``num`` of the dirty entries, the oldest change first."""
        changed = self._changed()
        keys = list(islice(changed, num))
        for key in keys:
            del changed[key]
        return self.take(keys)


def regions_of(learner: Learner, *, for_version: bool) -> list[Region]:
    """All regions of a learner, for the next version or the next checkpoint."""
    tables: list[Region] = [TableRegion(name, table) for name, table in learner.tables.items()]
    counts = [CountsRegion(name, learner, table) for name, table in COUNTS.items()]
    kept = [] if for_version else [KeptRegion(learner.rates)]
    memory = [each(learner.memory, for_version=for_version) for each in (MemoryRegion, PairsRegion)]
    return [*tables, *memory, *counts, *kept]


def names_of(learner: Learner, *, for_version: bool) -> Entries:
    """The producers' own ids of items."""
    names = learner.names
    return Entries(
        "names",
        names.all.get,
        lambda: names.all,
        lambda: names.unpublished if for_version else names.unsaved,
        skips_removed=for_version,
    )


def users_of(learner: Learner) -> Entries:
    """The users in the histories: when each was first and last seen."""
    histories = learner.histories
    return Entries("users", histories.known_since, lambda: histories.known, lambda: histories.unsaved)
