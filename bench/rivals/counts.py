"""The smoothed rates of items and users, which are inputs of the rivals that learn to rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.rates import ITEM_STRENGTH, USER_STRENGTH, log_odds

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Rates:
    """Counts by row of an item: interactions, and those that had each kind."""

    def __init__(self, num_kinds: int) -> None:
        self._shown_V, self._done_VK = np.zeros(64), np.zeros((64, num_kinds))
        self._shown, self._done_K = 0.0, np.zeros(num_kinds)

    def prior(self, rows_R: Int64, user_done_RK: Float64, user_num_R: Float64) -> Float32:
        """(R, 2, K) log-odds of the item's rates, and how far the log-odds of the user's are above the overall ones.

        ``user_done_RK``: how many of the user's ``user_num_R`` earlier interactions had each kind.
        """
        self._grow(rows_R)
        overall_K = (self._done_K + 1.0) / (self._shown + 2.0)
        item_RK = self._done_VK[rows_R] + ITEM_STRENGTH * overall_K
        item_RK /= (self._shown_V[rows_R] + ITEM_STRENGTH)[:, None]
        user_RK = (user_done_RK + USER_STRENGTH * overall_K) / (user_num_R + USER_STRENGTH)[:, None]
        return np.stack([log_odds(item_RK), log_odds(user_RK) - log_odds(overall_K)], axis=1).astype(np.float32)

    def learn(self, rows_R: Int64, kinds_RK: Float32, is_new_R: NDArray[np.bool_]) -> None:
        """Count the kinds that these items' interactions got, and which interactions are new."""
        self._grow(rows_R)
        np.add.at(self._shown_V, rows_R, is_new_R)
        np.add.at(self._done_VK, rows_R, kinds_RK)
        self._shown += float(is_new_R.sum())
        self._done_K = self._done_K + kinds_RK.sum(axis=0)

    def _grow(self, rows_R: Int64) -> None:
        wanted = int(rows_R.max(initial=0)) + 1
        if wanted > len(self._shown_V):
            more = max(wanted, 2 * len(self._shown_V)) - len(self._shown_V)
            self._shown_V = np.append(self._shown_V, np.zeros(more))
            self._done_VK = np.vstack([self._done_VK, np.zeros((more, self._done_VK.shape[1]))])
