"""The next version in the making: copied in slices between the steps, put together by the publishing thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.marks import UNPUBLISHED
from model.memory import published_memory
from trainer.errors import UnsoundVersionError
from trainer.regions import names_of, regions_of
from trainer.rows import NO_ROWS, Arrays, Piece
from trainer.soundness import unsound_piece
from trainer.step import Learner
from trainer.sweep import Sweep
from wire.tensors import Tensors
from wire.weights import Snapshot, TableRows, blob_of

Int64 = NDArray[np.int64]
MakeBlob = Callable[[], Tensors]


class Collection:
    """A base (``whole``), or a delta: the rows that no version has as they are. `advance`, then `cut` once."""

    def __init__(self, learner: Learner, *, whole: bool) -> None:
        self.is_whole = whole
        self._pieces: list[Piece] = []
        self._regions = regions_of(learner, for_version=True)
        entries = [names_of(learner, for_version=True)]
        self._sweep = Sweep(self._regions, entries, UNPUBLISHED, self._pieces.append, whole=whole)

    def advance(self, budget_bytes: int) -> bool:
        """Copy about so many bytes; True once the rest is small enough to `cut`."""
        return self._sweep.advance(budget_bytes)

    def cut(self, learner: Learner) -> MakeBlob:
        """The learner as it is now: what puts the version together, on any thread.

        From here on, changes count towards the next version. It raises `UnsoundVersionError` where rows are not finite.
        """
        self._sweep.finish()
        # Where nothing has changed, columns of nothing.
        self._pieces += [Piece(region.name, NO_ROWS, region.take(NO_ROWS)) for region in self._regions]
        dense = {name: parameter.detach().cpu().numpy().copy() for name, parameter in learner.model.named_parameters()}
        tombstones = {}
        for name, table in learner.tables.items():
            tombstones[name] = np.array([] if self.is_whole else table.tombstones, np.int64)
            table.tombstones = []
        memory, arrays = learner.memory, learner.memory.arrays
        size = np.array([memory.num_rows, arrays.capacity, arrays.width], np.int64)
        learned = {name: array.copy() for name, array in memory.learned().items()}
        return partial(self._blob, dense, tombstones, size, learned, learner.rates.totals)

    # The publishing thread

    def _blob(
        self, dense: Arrays, tombstones: dict[str, Int64], size: Int64, learned: Arrays, totals: NDArray[np.float64]
    ) -> Tensors:
        for piece in self._pieces:
            if (problem := unsound_piece(piece)) is not None:
                raise UnsoundVersionError(problem.what)
        tables = {name: self._table(name, gone) for name, gone in tombstones.items()}
        snapshot = Snapshot(dense, tables, {}, self._memory(size, learned), self._rates(totals))
        lists = [piece.columns["json"].tobytes()[1:-1] for piece in self._of("names")]
        return blob_of(snapshot, names=b"[" + b",".join(each for each in lists if each) + b"]")

    def _of(self, region: str) -> list[Piece]:
        return [piece for piece in self._pieces if piece.region == region]

    def _table(self, name: str, tombstones: Int64) -> TableRows:
        rows, columns = merged(self._of(name))
        live = columns["live"]
        return TableRows(columns["ids"][live], rows[live], columns["weight"][live], tombstones)

    def _memory(self, size: Int64, learned: Arrays) -> Arrays:
        rows, columns = merged(self._of("memory"))
        if self.is_whole:
            is_met = columns["first"] >= 0
            rows, columns = rows[is_met], {name: column[is_met] for name, column in columns.items()}
        return published_memory(rows, columns, size, learned, everything=self.is_whole)

    def _rates(self, totals: NDArray[np.float64]) -> Arrays:
        rows, columns = merged(self._of("counts"))
        shown, done = columns["rates.shown"], columns["rates.done"]
        if self.is_whole:
            is_met = (shown > 0) | (done > 0).any(axis=1)
            rows, shown, done = rows[is_met], shown[is_met], done[is_met]
        return {"row_index": rows, "shown": shown, "done": done, "totals": totals}


def merged(pieces: list[Piece]) -> tuple[Int64, Arrays]:
    """All rows of pieces, ascending, each as the last of them has it; and their columns."""
    rows = np.unique(np.concatenate([NO_ROWS, *(piece.rows_U for piece in pieces)]))
    columns: dict[str, NDArray[Any]] = {}
    for name, like in (pieces[-1].columns if pieces else {}).items():
        out = np.zeros((len(rows), *like.shape[1:]), like.dtype)
        for piece in pieces:
            if piece.columns[name].shape[1:] == like.shape[1:]:  # else every row that counts comes again
                where, values = np.searchsorted(rows, piece.rows_U), piece.columns[name]
                out[where] = values if name != "moved" else out[where] | values
        columns[name] = out
    return rows, columns
