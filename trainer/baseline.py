"""The popularity baseline, which a trainer must beat on the same stream under the same rules (the other baseline, an
item's own rate, is in `model.rates`).

Like the model, it predicts each batch before it learns it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class PopularityBaseline:
    """Ranks a target by how often items have occurred so far, among all items and among those not excluded."""

    def __init__(self) -> None:
        self.count_V = np.zeros(64, np.int64)

    def _grow(self, num_rows: int) -> None:
        if num_rows > len(self.count_V):
            self.count_V = np.append(
                self.count_V, np.zeros(max(num_rows, 2 * len(self.count_V)) - len(self.count_V), np.int64)
            )

    def ordered(self, live_V: NDArray[np.bool_]) -> Int64:
        """Counts of all live items, ascending."""
        self._grow(len(live_V))
        return np.sort(self.count_V[: len(live_V)][live_V])

    def ranks(
        self,
        target_R: Int64,
        live_V: NDArray[np.bool_],
        exclude_rows: Int64,
        exclude_offsets_R1: Int64,
        ordered: Int64 | None = None,
    ) -> tuple[Int64, Int64]:
        """(R,) ranks among all live items, and among those not in the target's excluded rows (distinct per target).

        Ties count half, rounded up, as in `kernels.rank_of_target`. ``ordered``: `ordered` of ``live_V``, if known.
        """
        ordered = self.ordered(live_V) if ordered is None else ordered
        count_V = np.where(live_V, self.count_V[: len(live_V)], -1)
        target_count = self.count_V[target_R]
        up_to = np.searchsorted(ordered, target_count, side="right")
        higher = len(ordered) - up_to
        equal = up_to - np.searchsorted(ordered, target_count, side="left") - live_V[target_R]
        owner = np.repeat(np.arange(len(target_R)), np.diff(exclude_offsets_R1))
        more = count_V[exclude_rows] - target_count[owner]
        num_higher = np.bincount(owner[more > 0], minlength=len(target_R))
        num_equal = np.bincount(owner[(more == 0) & (exclude_rows != target_R[owner])], minlength=len(target_R))
        return 1 + higher + (equal + 1) // 2, 1 + higher - num_higher + (equal - num_equal + 1) // 2

    def learn(self, rows_R: Int64) -> None:
        """Count one occurrence of each of these rows."""
        if len(rows_R):
            self._grow(int(rows_R.max()) + 1)
            self.count_V += np.bincount(rows_R, minlength=len(self.count_V))

    def forget(self, rows_N: Int64) -> None:
        """Clear rows that were evicted."""
        self.count_V[rows_N[rows_N < len(self.count_V)]] = 0
