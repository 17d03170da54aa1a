"""How often each kind is done with an item, and by a user: the prior that ranking starts from.

An item's rate is known after a few sightings, long before gradients have learned it. So every logit includes the item's
log-odds, smoothed towards those of all items, and those of the user's own history; the network learns what they leave
unexplained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
ITEM_STRENGTH, USER_STRENGTH = 10.0, 5.0
"""How many sightings the rate over all items counts for, where it smooths an item's own rate, or a user's."""
NUM_PRIORS = 2


class Rates:
    """Counts by row of the item table: ``shown_V`` (V,) interactions, ``done_VK`` (V, K) those that had each kind.

    Row 0 counts all items without a row of their own.
    """

    def __init__(self, num_kinds: int) -> None:
        self.shown_V = np.zeros(64)
        self.done_VK = np.zeros((64, num_kinds))
        self.dirty_V = np.zeros(64, np.bool_)
        self.total_shown, self.total_done_K = 0.0, np.zeros(num_kinds)

    def _grow(self, num_rows: int) -> None:
        more = max(num_rows, 2 * len(self.shown_V)) - len(self.shown_V)
        if num_rows > len(self.shown_V):
            self.shown_V = np.append(self.shown_V, np.zeros(more))
            self.dirty_V = np.append(self.dirty_V, np.zeros(more, np.bool_))
            self.done_VK = np.vstack([self.done_VK, np.zeros((more, self.done_VK.shape[1]))])

    @property
    def overall_K(self) -> Float64:  # noqa: N802  (shape suffix)
        """(K,) rates over all items."""
        return np.asarray((self.total_done_K + 1.0) / (self.total_shown + 2.0))

    def predict(self, rows_R: Int64) -> Float64:
        """(R, K) smoothed rates."""
        self._grow(int(rows_R.max(initial=0)) + 1)
        done_RK = self.done_VK[rows_R] + ITEM_STRENGTH * self.overall_K
        return np.asarray(done_RK / (self.shown_V[rows_R] + ITEM_STRENGTH)[:, None])

    def prior(self, rows_R: Int64, user_done_RK: Float64, user_num_R: Float64) -> Float32:
        """(R, 2, K) log-odds of the item's rates, and how far the log-odds of the user's are above the overall ones.

        ``user_done_RK``: how many of the user's ``user_num_R`` earlier interactions had each kind.
        """
        overall_K = self.overall_K
        user_RK = (user_done_RK + USER_STRENGTH * overall_K) / (user_num_R + USER_STRENGTH)[:, None]
        odds = [log_odds(self.predict(rows_R)), log_odds(user_RK) - log_odds(overall_K)]
        return np.stack(odds, axis=1).astype(np.float32)

    def learn(self, rows_R: Int64, kinds_RK: Float32, is_new_R: Bools) -> None:
        """Count the kinds done with these items; ``is_new_R``: the interaction was not counted before."""
        if len(rows_R):
            self._grow(int(rows_R.max()) + 1)
            np.add.at(self.shown_V, rows_R, is_new_R)
            np.add.at(self.done_VK, rows_R, kinds_RK)
            self.dirty_V[rows_R] = True
            self.total_shown += float(is_new_R.sum())
            self.total_done_K = self.total_done_K + kinds_RK.sum(axis=0)

    def forget(self, rows_N: Int64) -> None:
        """Clear rows that were evicted."""
        rows = rows_N[rows_N < len(self.shown_V)]
        self.total_shown -= float(self.shown_V[rows].sum())
        self.total_done_K = self.total_done_K - self.done_VK[rows].sum(axis=0)
        self.shown_V[rows], self.done_VK[rows], self.dirty_V[rows] = 0.0, 0.0, True

    def changes(self, *, everything: bool) -> dict[str, NDArray[Any]]:
        """What a version carries: all rows in use, or those that changed since `mark_published`."""
        met_V = (self.shown_V > 0) | (self.done_VK > 0).any(axis=1)
        rows = np.flatnonzero(met_V if everything else self.dirty_V)
        totals = np.append(self.total_shown, self.total_done_K)
        return {"row_index": rows, "shown": self.shown_V[rows], "done": self.done_VK[rows], "totals": totals}

    def mark_published(self) -> None:
        """Start collecting the next changes: the caller delivers what `changes` returned."""
        self.dirty_V[:] = False

    def apply(self, changes: Mapping[str, NDArray[Any]], *, is_base: bool) -> None:
        """Take over what a version carries, which may be nothing; a base replaces everything."""
        if is_base:
            self.shown_V[:], self.done_VK[:] = 0.0, 0.0
        if not changes:
            return
        rows = changes["row_index"]
        self._grow(int(rows.max(initial=0)) + 1)
        self.shown_V[rows], self.done_VK[rows] = changes["shown"], changes["done"]
        self.total_shown, self.total_done_K = float(changes["totals"][0]), changes["totals"][1:].copy()

    def copy(self) -> Rates:
        """A copy that shares no mutable state."""
        other = Rates(self.done_VK.shape[1])
        other.load_state_dict(self.state_dict())
        return other

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint."""
        totals = np.append(self.total_shown, self.total_done_K)
        return {"shown": self.shown_V, "done": self.done_VK, "dirty": self.dirty_V, "totals": totals}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`."""
        self.shown_V, self.done_VK = state["shown"].copy(), state["done"].copy()
        self.dirty_V = state["dirty"].copy()
        self.total_shown, self.total_done_K = float(state["totals"][0]), state["totals"][1:].copy()


def log_odds(rate: Float64) -> Float64:
    """Log-odds of rates strictly between 0 and 1."""
    return np.asarray(np.log(rate) - np.log1p(-rate))


def done_before(
    bits_n: NDArray[np.uint32], num_kinds: int, starts_B1: Int64, owner_R: Int64, target_R: Int64
) -> tuple[Float64, Float64]:
    """Of the interactions before each target in its user's sequence: (R, K) how many had each kind, (R,) how many there
    are."""
    first_R = starts_B1[owner_R]
    total_n1, done_RK = np.zeros(len(bits_n) + 1, np.int64), np.empty((len(target_R), num_kinds))
    for kind in range(num_kinds):
        np.cumsum((bits_n >> np.uint32(kind)) & np.uint32(1), out=total_n1[1:])
        done_RK[:, kind] = total_n1[target_R] - total_n1[first_R]
    return done_RK, (target_R - first_R).astype(np.float64)
