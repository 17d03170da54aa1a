"""The user's own most frequent items; ties are broken by popularity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.rivals.popular import Popular


class Own(Popular):
    """How often the user chose an item among the choices that a model sees, then how often all users did."""

    def score(self, past: NDArray[np.int32]) -> NDArray[np.float64]:
        """Own counts, then everyone's."""
        score_V: NDArray[np.float64] = self.count_V / (1.0 + self.count_V.sum())
        np.add.at(score_V, past, 1.0)
        return np.asarray(score_V)
