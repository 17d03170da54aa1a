"""Rates that rivals of ranking start from: the item's and the user's, as log-odds, counted as events come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.rates import ITEM_STRENGTH, USER_STRENGTH, log_odds

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


class Priors:
    """Counts by row of the items: ``shown_V`` (V,) interactions, ``done_VK`` (V, K) those that had each kind."""

    def __init__(self, num_kinds: int) -> None:
        self.shown_V, self.done_VK = np.zeros(64), np.zeros((64, num_kinds))
        self.total_shown, self.total_done_K = 0.0, np.zeros(num_kinds)

    def _grow(self, num_rows: int) -> None:
        if num_rows > len(self.shown_V):
            more = max(num_rows, 2 * len(self.shown_V)) - len(self.shown_V)
            self.shown_V = np.append(self.shown_V, np.zeros(more))
            self.done_VK = np.vstack([self.done_VK, np.zeros((more, self.done_VK.shape[1]))])

    def of(self, rows_R: Int64, user_done_RK: Float64, user_num_R: Float64) -> NDArray[np.float32]:
        """(R, 2, K) log-odds of the item's rates, and how far those of the user's are above those of all. Of the user's
        ``user_num_R`` interactions before, ``user_done_RK`` had each kind."""
        self._grow(int(rows_R.max(initial=0)) + 1)
        overall_K = (self.total_done_K + 1.0) / (self.total_shown + 2.0)
        item_RK = (self.done_VK[rows_R] + ITEM_STRENGTH * overall_K) / (self.shown_V[rows_R] + ITEM_STRENGTH)[:, None]
        user_RK = (user_done_RK + USER_STRENGTH * overall_K) / (user_num_R + USER_STRENGTH)[:, None]
        odds = [log_odds(item_RK), log_odds(user_RK) - log_odds(overall_K)]
        return np.stack(odds, axis=1).astype(np.float32)

    def learn(self, rows_R: Int64, kinds_RK: NDArray[np.float32], is_new_R: NDArray[np.bool_]) -> None:
        """What was done with these items, and where that happened for the first time."""
        if len(rows_R):
            self._grow(int(rows_R.max()) + 1)
            np.add.at(self.shown_V, rows_R, is_new_R)
            np.add.at(self.done_VK, rows_R, kinds_RK)
            self.total_shown += float(is_new_R.sum())
            self.total_done_K = self.total_done_K + kinds_RK.sum(axis=0)
