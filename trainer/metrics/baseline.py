"""The popularity baseline, which a trainer must beat on the same stream under the same rules (the other baseline, an
item's own rate, is in `model.rates`).

Like the model, it predicts each batch before it learns it. Counts below 8,192 are told apart exactly, larger ones to
one part in 4,096: items that differ by less are taken for equally popular, so memory does not grow with the counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.outcomes import count_met, move_counts
from model.distinct import distinct
from model.growing import GrowingColumns

Int64 = NDArray[np.int64]
BLOCK = 128
FINE_BITS = 12
"""Counts have places: below 2 to the power of this plus 1 each its own, then so many for each power of 2."""


def places_of(count_N: Int64) -> Int64:
    """(N,) the places of counts, ascending with them; 0 for 0."""
    if not len(count_N) or count_N.max() < 2 << FINE_BITS:
        return count_N
    shift_N = np.maximum(np.frexp(count_N.astype(np.float64))[1].astype(np.int64) - (FINE_BITS + 1), 0)
    return np.asarray((shift_N << FINE_BITS) + (count_N >> shift_N))


def least_count(place_N: Int64) -> Int64:
    """(N,) the least counts that have these places."""
    shift_N = np.maximum((place_N >> FINE_BITS) - 1, 0)
    return np.asarray((place_N - (shift_N << FINE_BITS)) << shift_N)


class PopularityBaseline:
    """Ranks a target by how often items have occurred so far, among all items and among those not excluded.

    Beside ``count_V`` it keeps how many items have a count of each place, so that a step costs what it touches, however
    large the catalogue. Every row with a count is live: whoever evicts a row tells `forget`.
    """

    def __init__(self) -> None:
        self.count_V = np.zeros(64, np.int64)
        self._with_BC = np.zeros((1, BLOCK), np.int64)
        """(b, c) how many rows have a count of the place 1 + 128 b + c."""
        self._block_B = np.zeros(1, np.int64)
        self._columns = GrowingColumns()

    def load(self, count_V: Int64) -> None:
        """Become the baseline that had these counts."""
        self.count_V = self._columns.taken("count", count_V)
        self._with_BC, self._block_B = np.zeros((1, BLOCK), np.int64), np.zeros(1, np.int64)
        self._move(np.zeros_like(count_V), count_V)

    def _move(self, from_N: Int64, to_N: Int64) -> None:
        """Move rows from one count to another: (N,) the counts before, and the counts now."""
        from_N, to_N = places_of(from_N), places_of(to_N)
        num_blocks = int(to_N.max(initial=0)) // BLOCK + 1
        if num_blocks > len(self._with_BC):
            more = max(num_blocks, 2 * len(self._with_BC)) - len(self._with_BC)
            self._with_BC = np.append(self._with_BC, np.zeros((more, BLOCK), np.int64), axis=0)
            self._block_B = np.append(self._block_B, np.zeros(more, np.int64))
        move_counts(self._with_BC, self._block_B, from_N, to_N)

    def _grow(self, num_rows: int) -> None:
        if num_rows > len(self.count_V):
            self.count_V = self._columns.longer("count", self.count_V, max(num_rows, 2 * len(self.count_V)))

    def count_of(self, rows_R: Int64) -> Int64:
        """(R,) how often these rows have occurred."""
        self._grow(int(rows_R.max(initial=0)) + 1)
        return np.asarray(self.count_V[rows_R])

    def at_share(self, share: float, num_live: int) -> int:
        """The count that this share of the live items stays below (0 without items), or the least one of its place."""
        place = int(num_live * share) - (num_live - int(self._block_B.sum()))
        if not num_live or place < 0:
            return 0
        below_B = np.cumsum(self._block_B)
        block = int(np.searchsorted(below_B, place, side="right"))
        within_C = np.cumsum(self._with_BC[block]) + below_B[block] - self._block_B[block]
        at = 1 + block * BLOCK + int(np.searchsorted(within_C, place, side="right"))
        return int(least_count(np.array(at)))

    def _above_and_with(self, place_R: Int64, num_live: int) -> tuple[Int64, Int64]:
        """(R,) how many live items have a count of a higher place, and how many one of the same."""
        num_counted = int(self._block_B.sum())
        at_R = np.maximum(place_R - 1, 0)
        block_R = at_R // BLOCK
        later_B = num_counted - np.cumsum(self._block_B)
        in_block_RC = self._with_BC[block_R]
        above_R = (in_block_RC * (np.arange(BLOCK) > (at_R % BLOCK)[:, None])).sum(axis=1) + later_B[block_R]
        same_R = self._with_BC[block_R, at_R % BLOCK]
        is_counted_R = place_R > 0
        return (
            np.where(is_counted_R, above_R, num_counted),
            np.where(is_counted_R, same_R, num_live - num_counted),
        )

    def ranks(self, row_R: Int64, num_live: int, rows_n: Int64, first_R: Int64, target_R: Int64) -> tuple[Int64, Int64]:
        """(R,) ranks of rows among all live items, and among those that the user has not met: target r has met
        ``rows_n[first_R[r]:target_R[r]]``, of which 0 is none.

        Ties count half, rounded up, as in `kernels.rank_of_target`. All rows are live ones.
        """
        self._grow(int(max(row_R.max(initial=0), rows_n.max(initial=0))) + 1)
        place_R = places_of(self.count_V[row_R])
        higher, equal = self._above_and_with(place_R, num_live)
        equal = equal - 1
        same_2R = least_count(place_R), least_count(place_R + 1)
        num_higher, num_equal = count_met(self.count_V, rows_n, first_R, target_R, row_R, *same_2R)
        return 1 + higher + (equal + 1) // 2, 1 + higher - num_higher + (equal - num_equal + 1) // 2

    def learn(self, rows_U: Int64, num_U: Int64) -> None:
        """Count occurrences of distinct rows, ascending, and how many there are of each (`model.distinct.counted`)."""
        if len(rows_U):
            self._grow(int(rows_U[-1]) + 1)
            before_U = self.count_V[rows_U]
            self.count_V[rows_U] = after_U = before_U + num_U
            self._move(before_U, after_U)

    def forget(self, rows_N: Int64) -> None:
        """Clear rows that were evicted."""
        rows = distinct(rows_N[rows_N < len(self.count_V)])
        before = self.count_V[rows]
        self.count_V[rows] = 0
        self._move(before, np.zeros_like(before))
