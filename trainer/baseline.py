"""What a trainer must beat, on the same stream and under the same rules: popularity, and an item's own rate.

Each is asked before it is told, batch by batch, as the model is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class PopularityBaseline:
    """Most popular so far: ranks a target by how often items were met, among all items and among those not excluded."""

    def __init__(self) -> None:
        self.count_V = np.zeros(64, np.int64)

    def _grow(self, num_rows: int) -> None:
        if num_rows > len(self.count_V):
            self.count_V = np.append(
                self.count_V, np.zeros(max(num_rows, 2 * len(self.count_V)) - len(self.count_V), np.int64)
            )

    def ranks(
        self, target_R: Int64, live_V: NDArray[np.bool_], exclude_rows: Int64, exclude_offsets_R1: Int64
    ) -> tuple[Int64, Int64]:
        """(R,) ranks among all live items, and among those not in the target's excluded rows (distinct per target).

        Ties count half, rounded up, as in `kernels.rank_of_target`.
        """
        self._grow(len(live_V))
        count_V = np.where(live_V, self.count_V[: len(live_V)], -1)
        ordered = np.sort(count_V[live_V])
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
        """These items were met."""
        if len(rows_R):
            self._grow(int(rows_R.max()) + 1)
            self.count_V += np.bincount(rows_R, minlength=len(self.count_V))

    def forget(self, rows_N: Int64) -> None:
        """These rows were evicted."""
        self.count_V[rows_N[rows_N < len(self.count_V)]] = 0


class RateBaseline:
    """Share of an item's interactions that had each kind, smoothed towards the share over all items."""

    def __init__(self, num_kinds: int, strength: float = 10.0) -> None:
        self._strength = strength
        self.shown_V = np.zeros(64)
        self.done_VK = np.zeros((64, num_kinds))

    def _grow(self, num_rows: int) -> None:
        more = max(num_rows, 2 * len(self.shown_V)) - len(self.shown_V)
        if num_rows > len(self.shown_V):
            self.shown_V = np.append(self.shown_V, np.zeros(more))
            self.done_VK = np.vstack([self.done_VK, np.zeros((more, self.done_VK.shape[1]))])

    def predict(self, rows_R: Int64) -> NDArray[np.float64]:
        """(R, K) probabilities; row 0 gathers items without a row."""
        if len(rows_R):
            self._grow(int(rows_R.max()) + 1)
        prior_K = (self.done_VK.sum(axis=0) + 1.0) / (self.shown_V.sum() + 2.0)
        return np.asarray(
            (self.done_VK[rows_R] + self._strength * prior_K) / (self.shown_V[rows_R] + self._strength)[:, None]
        )

    def learn(self, rows_R: Int64, kinds_RK: NDArray[np.float32], is_new_R: NDArray[np.bool_]) -> None:
        """What was done with these items, and where that happened for the first time."""
        if len(rows_R):
            self._grow(int(rows_R.max()) + 1)
            np.add.at(self.shown_V, rows_R, is_new_R)
            np.add.at(self.done_VK, rows_R, kinds_RK)

    def forget(self, rows_N: Int64) -> None:
        """These rows were evicted."""
        rows = rows_N[rows_N < len(self.shown_V)]
        self.shown_V[rows], self.done_VK[rows] = 0.0, 0.0
