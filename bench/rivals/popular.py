"""The most popular items, ever or lately. Whether what the user has met competes is the stream's to decide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROWN = 1e30


class Popular:
    """By the number of choices so far."""

    def __init__(self, num_rows: int) -> None:
        """``num_rows``: of items; row 0 is nobody's."""
        self.count_V = np.zeros(num_rows + 1, np.float64)

    def score(self, past: NDArray[np.int32]) -> NDArray[np.float64]:
        """Counts."""
        del past
        return self.count_V

    def learn(self, row: int, past: NDArray[np.int32]) -> None:
        """One more."""
        del past
        self.count_V[row] += 1.0


class DecayedPopular(Popular):
    """By choices that count half as much every ``half_life`` choices."""

    def __init__(self, num_rows: int, half_life: float) -> None:
        super().__init__(num_rows)
        self._growth, self._unit = 2.0 ** (1.0 / half_life), 1.0

    def learn(self, row: int, past: NDArray[np.int32]) -> None:
        """One more, in a unit that grows."""
        del past
        self.count_V[row] += self._unit
        self._unit *= self._growth
        if self._unit > GROWN:
            self.count_V /= self._unit
            self._unit = 1.0
