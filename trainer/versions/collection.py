"""The next version: copied in slices between the steps, assembled by the publishing thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.dirty import UNPUBLISHED
from model.distinct import distinct
from model.memory_pairs import published_pairs
from model.memory_version import published_memory
from trainer.copies.regions import COUNTS, names_of, regions_of
from trainer.copies.rows import NO_ROWS, Arrays, Piece
from trainer.copies.soundness import unsound_piece
from trainer.copies.sweep import Sweep
from trainer.errors import UnsoundVersionError
from trainer.learner.step import Learner
from trainer.versions.rounding import Rounding
from wire.tensors import Tensors
from wire.weights import Snapshot, TableRows, blob_of

Int64 = NDArray[np.int64]
MakeBlob = Callable[[], Tensors]
Choose = Callable[[NDArray[Any]], NDArray[np.bool_]]
Places = tuple[slice | Int64, slice | Int64]


class Collection:
    """Collects a base (``whole``), or a delta: the rows that have changed since they were last published.

    Call `advance` between steps until it returns True, then `cut` once.
    """

    def __init__(self, learner: Learner, *, whole: bool) -> None:
        self.is_whole = whole
        self._pieces: list[Piece] = []
        self._num_pairs = 0
        self._regions = regions_of(learner, for_version=True)
        entries = [names_of(learner, for_version=True)]
        self._sweep = Sweep(self._regions, entries, UNPUBLISHED, self._pieces.append, whole=whole)

    def advance(self, budget_bytes: int) -> bool:
        """Copy about ``budget_bytes``; True once the rest is small enough to `cut`."""
        return self._sweep.advance(budget_bytes)

    def cut(self, learner: Learner, rounding: Rounding | None = None) -> MakeBlob:
        """A function that assembles the version of the learner as it is now, on any thread; exact without ``rounding``.

        From here on, changes count towards the next version. The function raises `UnsoundVersionError` if rows are not
        finite.
        """
        self._sweep.finish()
        # An empty piece of each region, so that regions without changes have their columns too.
        self._pieces += [Piece(region.name, NO_ROWS, region.take(NO_ROWS)) for region in self._regions]
        dense = {name: parameter.detach().cpu().numpy().copy() for name, parameter in learner.model.named_parameters()}
        tombstones = {}
        for name, table in learner.tables.items():
            tombstones[name] = np.array([] if self.is_whole else table.tombstones, np.int64)
            table.tombstones = []
        memory, arrays = learner.memory, learner.memory.arrays
        size = np.array([memory.num_rows, arrays.capacity, arrays.width], np.int64)
        learned, self._num_pairs = {name: array.copy() for name, array in memory.learned().items()}, arrays.num_pairs
        return partial(self._blob, dense, tombstones, size, learned, learner.rates.weights(), rounding)

    # The publishing thread

    def _blob(
        self,
        dense: Arrays,
        tombstones: dict[str, Int64],
        size: Int64,
        learned: Arrays,
        rates: Arrays,
        rounding: Rounding | None,
    ) -> Tensors:
        for piece in self._pieces:
            if (problem := unsound_piece(piece)) is not None:
                raise UnsoundVersionError(problem.what)
        tables = {name: self._table(name, gone) for name, gone in tombstones.items()}
        snapshot = Snapshot(dense, tables, {}, self._memory(size, learned), self._rates(rates))
        names = joined([piece.columns["json"] for piece in self._of("names")])
        self._pieces.clear()
        if rounding is not None:
            snapshot = rounding.round(snapshot, is_base=self.is_whole)
        return blob_of(snapshot, names=names)

    def _of(self, region: str) -> list[Piece]:
        return [piece for piece in self._pieces if piece.region == region]

    def _table(self, name: str, tombstones: Int64) -> TableRows:
        rows, columns = merged(self._of(name), "live", lambda live_U: live_U)
        return TableRows(columns["ids"], rows, columns["weight"], tombstones)

    def _memory(self, size: Int64, learned: Arrays) -> Arrays:
        is_met = (lambda first_U: first_U >= 0) if self.is_whole else None
        rows, columns = merged(self._of("memory"), "first", is_met)
        return published_memory(rows, columns, size, learned, everything=self.is_whole) | self._pairs()

    def _pairs(self) -> Arrays:
        is_used = (lambda row_U2: row_U2[:, 0] > 0) if self.is_whole else None
        slots, columns = merged(self._of("memory_pairs"), "pair_row", is_used)
        return published_pairs(slots, columns, self._num_pairs, everything=self.is_whole)

    def _rates(self, weights: Arrays) -> Arrays:
        found, is_met = dict(weights), (lambda count_UC: count_UC.any(axis=1)) if self.is_whole else None
        for region, table in COUNTS.items():
            counts = f"rates.{table}_VC"
            rows, columns = merged(self._of(region), counts, is_met)
            found |= {f"{table}_index": rows, f"{table}_VC": columns[counts]}
        return found


def joined(lists: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The JSON of one list of all that these lists have. Numpy copies it without holding the interpreter."""
    opening, comma, closing = (np.frombuffer(each, np.uint8) for each in (b"[", b",", b"]"))
    parts = [part for each in lists if len(each) > 2 for part in (comma, each[1:-1])]
    return np.concatenate([opening, *parts[1:], closing])


def merged(pieces: list[Piece], by: str, chooses: Choose | None) -> tuple[Int64, Arrays]:
    """The rows of all pieces, ascending, and their columns, each row as in the last piece that has it; only those that
    ``chooses`` says of the column ``by``. The pieces give up their columns, so that no row is held twice for long."""
    rows = distinct(np.concatenate([NO_ROWS, *(piece.rows_U for piece in pieces)]))
    places, columns = [_places(rows, piece.rows_U) for piece in pieces], Arrays()
    if chooses is not None:
        deciding = _merged_column(by, len(rows), pieces, places)
        if not (is_chosen := chooses(deciding)).all():
            rows, deciding = rows[is_chosen], deciding[is_chosen]
            places = [_places(rows, piece.rows_U) for piece in pieces]
        columns[by] = deciding
    for name in list(pieces[-1].columns):
        columns[name] = _merged_column(name, len(rows), pieces, places)
    return rows, columns


def _merged_column(name: str, num_rows: int, pieces: list[Piece], places: list[Places]) -> NDArray[Any]:
    like = pieces[-1].columns[name]
    out = np.zeros((num_rows, *like.shape[1:]), like.dtype)
    for piece, (part, where) in zip(pieces, places, strict=True):
        values = piece.columns.pop(name)[part]
        if values.shape[1:] == like.shape[1:]:  # else every row in use comes again
            out[where] = values if name != "moved" else out[where] | values
    return out


def _places(rows: Int64, part: Int64) -> Places:
    """Which of ``part`` are among ``rows``, and at which places; both are ascending. Consecutive places are a slice,
    which is copied faster."""
    where = np.searchsorted(rows, part)
    is_there = rows.take(where, mode="clip") == part if len(rows) else np.zeros(len(part), np.bool_)
    chosen: slice | Int64 = slice(None)
    if not is_there.all():
        chosen, where = np.flatnonzero(is_there), where[is_there]
    if len(where) and where[-1] - where[0] == len(where) - 1:
        return chosen, slice(int(where[0]), int(where[-1]) + 1)
    return chosen, where
