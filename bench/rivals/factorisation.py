"""A factorisation machine (Rendle, ICDM 2010), online: logistic regression, and an inner product of every two features'
vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.rivals.logistic import Float64, Logistic

FACTORS = 8
FACTOR_BITS = 18


class FactorisationMachine(Logistic):
    """Vectors have their own table, a quarter of the weights' in size."""

    def __init__(self, num_kinds: int, rate: float, seed: int) -> None:
        super().__init__(num_kinds, rate)
        rng, shape = np.random.default_rng(seed), (1 << FACTOR_BITS, num_kinds, FACTORS)
        self.vector_HKE = rng.normal(0, 0.02, shape).astype(np.float32)
        self.vector_square_HKE = np.full(shape, 1e-2, np.float32)

    def logit(self, place_F: NDArray[np.int64], prior_PK: NDArray[np.float32]) -> Float64:
        """(K,)."""
        vector_FKE = self.vector_HKE[place_F & ((1 << FACTOR_BITS) - 1)]
        pairs_K = 0.5 * (vector_FKE.sum(axis=0) ** 2 - (vector_FKE**2).sum(axis=0)).sum(axis=1)
        return np.asarray(super().logit(place_F, prior_PK) + pairs_K)

    def learn(self, place_F: NDArray[np.int64], prior_PK: NDArray[np.float32], slope_K: Float64) -> None:
        """See `Logistic.learn`."""
        super().learn(place_F, prior_PK, slope_K)
        at = place_F & ((1 << FACTOR_BITS) - 1)
        vector_FKE = self.vector_HKE[at]
        slope_FKE = slope_K[None, :, None] * (vector_FKE.sum(axis=0) - vector_FKE)
        square_FKE = self.vector_square_HKE[at] + slope_FKE**2
        self.vector_square_HKE[at] = square_FKE
        self.vector_HKE[at] = vector_FKE - 0.5 * self.rate * slope_FKE / np.sqrt(square_FKE)
