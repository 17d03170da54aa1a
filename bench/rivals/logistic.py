"""Online logistic regression over hashed features, as in Vowpal Wabbit and River: Adagrad, event by event, with the
log-odds of the item's and the user's smoothed rates as two more features (without them it loses to the rate alone)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.rivals.counts import Rates
from bench.rivals.targets import HASH_BITS, told
from bench.streams.events import Step

Float64 = NDArray[np.float64]
MOST_LOGIT = 30.0


class Logistic:
    """One weight per hashed feature and kind. ``rate``: Adagrad's learning rate."""

    def __init__(self, num_kinds: int, rate: float) -> None:
        self.rate, self.rates = rate, Rates(num_kinds)
        self.weight_HK = np.zeros((1 << HASH_BITS, num_kinds), np.float32)
        self.square_HK = np.full((1 << HASH_BITS, num_kinds), 1e-6, np.float32)
        self.prior_PK, self.prior_square_PK = np.zeros((2, num_kinds)), np.full((2, num_kinds), 1e-6)
        self.prior_PK[0] = 1.0

    def over(self, step: Step) -> Float64:
        """(R, K)."""
        found_RK = np.zeros((step.batch.num_targets, step.batch.num_kinds))
        for target, places_F, prior_PK in told(step, self.rates):
            logit_K = self.logit(places_F, prior_PK)
            found_K = 1.0 / (1.0 + np.exp(-np.clip(logit_K, -MOST_LOGIT, MOST_LOGIT)))
            # A later kind takes back the 0 that was learned; together they are the gradient of the outcome.
            self.learn(places_F, prior_PK, found_K - target.kinds_K if target.is_new else -target.kinds_K.astype(float))
            found_RK[target.at] = found_K
        return found_RK

    def logit(self, place_F: NDArray[np.int64], prior_PK: NDArray[np.float32]) -> Float64:
        """(K,)."""
        return np.asarray(self.weight_HK[place_F].sum(axis=0) + (self.prior_PK * prior_PK).sum(axis=0))

    def learn(self, place_F: NDArray[np.int64], prior_PK: NDArray[np.float32], slope_K: Float64) -> None:
        """One Adagrad step along the logit's slope."""
        self.square_HK[place_F] += slope_K**2
        self.weight_HK[place_F] -= self.rate * slope_K / np.sqrt(self.square_HK[place_F])
        slope_PK = slope_K * prior_PK
        self.prior_square_PK += slope_PK**2
        self.prior_PK -= self.rate * slope_PK / np.sqrt(self.prior_square_PK)
