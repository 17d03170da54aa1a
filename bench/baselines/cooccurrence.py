"""Item co-occurrence in a sliding window: thirty lines that learn from one sighting.

With h₁, h₂, … the user's last items, newest first: score(i) = Σₖ decayᵏ · C[hₖ, i] / √(n_hₖ · nᵢ); after each choice
C[hₖ, i] += decayᵏ and C[i, hₖ] += ½ · decayᵏ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Cooccurrence:
    """Dense counts: memory is touched only where something was counted."""

    def __init__(self, num_rows: int, lags: int, decay: float) -> None:
        self._count_VV = np.zeros((num_rows, num_rows), np.float32)
        self._seen_V = np.zeros(num_rows, np.float32)
        self._weight_L = decay ** np.arange(lags, dtype=np.float32)

    def score(self, past: NDArray[np.int32]) -> NDArray[np.float32]:
        """Decayed cosines with the last items."""
        last = past[::-1][: len(self._weight_L)]
        weight = self._weight_L[: len(last)] / np.sqrt(np.maximum(self._seen_V[last], 1e-6))
        return np.asarray(weight @ self._count_VV[last] / np.sqrt(np.maximum(self._seen_V, 1e-6)))

    def learn(self, row: int, past: NDArray[np.int32]) -> None:
        """Count the item beside each of the last ones."""
        last = past[::-1][: len(self._weight_L)]
        weight = self._weight_L[: len(last)] * (last != row)
        np.add.at(self._count_VV[:, row], last, weight)
        np.add.at(self._count_VV[row], last, 0.5 * weight)
        self._seen_V[row] += 1.0
