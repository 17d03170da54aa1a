"""The most popular items, overall or recently. Whether items that the user has met compete depends on the stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROWN = 1e30


class Popular:
    """Scores by the number of choices so far."""

    def __init__(self, num_rows: int) -> None:
        """``num_rows``: rows of items; row 0 belongs to none."""
        self.count_V = np.zeros(num_rows + 1, np.float64)

    def score(self, past: NDArray[np.int32]) -> NDArray[np.float64]:
        """The counts."""
        del past
        return self.count_V

    def learn(self, row: int, past: NDArray[np.int32]) -> None:
        """Count a choice."""
        del past
        self.count_V[row] += 1.0


class DecayedPopular(Popular):
    """Scores by choices whose weight halves every ``half_life`` choices."""

    def __init__(self, num_rows: int, half_life: float) -> None:
        super().__init__(num_rows)
        self._growth, self._unit = 2.0 ** (1.0 / half_life), 1.0

    def learn(self, row: int, past: NDArray[np.int32]) -> None:
        """Count a choice, in a growing unit."""
        del past
        self.count_V[row] += self._unit
        self._unit *= self._growth
        if self._unit > GROWN:
            self.count_V /= self._unit
            self._unit = 1.0
