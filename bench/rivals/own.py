"""The user's own most frequent items; among equals the more popular."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.rivals.popular import Popular


class Own(Popular):
    """How often the user chose it, of his last choices that a model sees; then how often everybody did."""

    def score(self, past: NDArray[np.int32]) -> NDArray[np.float64]:
        """Own counts before everybody's."""
        score_V: NDArray[np.float64] = self.count_V / (1.0 + self.count_V.sum())
        np.add.at(score_V, past, 1.0)
        return np.asarray(score_V)
