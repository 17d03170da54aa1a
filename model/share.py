"""Which rows of a table a process holds, if several divide it; and what it asks of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Share:
    """Of ``size`` processes, number ``rank`` holds every row r with r % size = rank, at place r // size.

    Keys get their rows in the order of their admission, so shares are equally large, and every process knows which one
    owns a row.
    """

    rank: int = 0
    size: int = 1

    def is_own(self, rows_U: Int64) -> NDArray[np.bool_]:
        """(U,) whether this process holds each row."""
        return np.asarray(rows_U % self.size == self.rank)

    def places(self, rows_U: Int64) -> Int64:
        """(U,) where each of these rows is at its owner."""
        return rows_U if self.size == 1 else rows_U // self.size

    def rows(self, num_rows: int) -> Int64:
        """This process's rows below ``num_rows``, ascending."""
        return np.arange(self.rank, num_rows, self.size)


WHOLE = Share()


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """Rows for each of some queries, by owner: where they are in the whole list, their places, and where each query's
    begin."""

    at: list[Int64]
    place: list[Int32]
    begin_B1: list[Int64]


class Owners(Protocol):
    """All of a divided table, wherever its rows are; this process's own included."""

    def read(self, rows_U: Int64) -> tuple[Float32, Float32]:
        """(U, D) weights and (U,) optimiser states."""

    def logits(self, query_AD: Float32, unit_width: int) -> Float32:
        """(A, V): `kernels.memory.memory_logits` of all rows."""

    def listed(self, row: Int32, begin_B1: Int64) -> Listed:
        """Some rows for each of B queries, by owner; as for `kernels.memory.memory_logits_of`."""

    def both_logits(
        self, all_of_AD: Float32, some_of_BD: Float32, listed: Listed, unit_width: int
    ) -> tuple[Float32, Float32]:
        """(A, V): `logits`, and (n,): `kernels.memory.memory_logits_of` the listed rows, asked for together."""

    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
