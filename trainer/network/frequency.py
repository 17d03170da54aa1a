"""How often each item occurs in the stream: decayed counts, for the correction of sampled negatives.

A count halves every ``half_life`` targets, lazily: a row stores its count and the clock at which it was exact. After
"Sampling-bias-corrected neural modeling" (Yi et al., RecSys 2019), with a decayed count instead of the moving average
of gaps, which is exact for several sightings in one batch too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.growing import GrowingColumns


class FrequencyEstimator:
    """Decayed counts of rows; grows with the table."""

    def __init__(self, half_life: float) -> None:
        self._rate = float(np.log(2.0) / half_life)
        self._count_V = np.zeros(0, np.float64)
        self._clock_V = np.zeros(0, np.float64)
        self._clock = 0.0
        self._total = 0.0
        self._columns = GrowingColumns()

    def grow(self, num_rows: int) -> None:
        """Make room for rows below ``num_rows``."""
        if num_rows > len(self._count_V):
            num = max(num_rows, 2 * len(self._count_V))
            self._count_V = self._columns.longer("count", self._count_V, num)
            self._clock_V = self._columns.longer("clock", self._clock_V, num)

    def add(self, rows_U: NDArray[np.int64], num_U: NDArray[np.int64]) -> None:
        """Count sightings of distinct rows, ascending, and how many there are of each (`model.distinct.counted`)."""
        if not len(rows_U):
            return
        self.grow(int(rows_U[-1]) + 1)
        num = int(num_U.sum())
        decay_U = np.exp(-self._rate * (self._clock - self._clock_V[rows_U]))
        self._count_V[rows_U] = self._count_V[rows_U] * decay_U + num_U
        self._clock_V[rows_U] = self._clock
        self._total = self._total + num
        self._clock += num
        self._total *= float(np.exp(-self._rate * num))

    def share(self, rows_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """(N,) each row's share of the stream; 0 for a row never seen."""
        if self._total <= 0.0 or not len(self._count_V):
            return np.zeros(len(rows_N), np.float64)
        known = rows_N < len(self._count_V)
        rows = np.where(known, rows_N, 0)
        decay = np.exp(-self._rate * (self._clock - self._clock_V[rows]))
        return np.asarray(np.where(known, self._count_V[rows] * decay / self._total, 0.0))

    def forget(self, rows_N: NDArray[np.int64]) -> None:
        """Clear rows that were evicted and will be reused."""
        rows = rows_N[rows_N < len(self._count_V)]
        self._count_V[rows] = 0.0

    def state_dict(self) -> dict[str, NDArray[np.float64]]:
        """Arrays for a checkpoint."""
        return {"count": self._count_V, "clock": self._clock_V, "scalars": np.array([self._clock, self._total])}

    def load_state_dict(self, state: dict[str, NDArray[np.float64]]) -> None:
        """The inverse of `state_dict`."""
        self._count_V, self._clock_V = (self._columns.taken(name, state[name]) for name in ("count", "clock"))
        self._clock, self._total = (float(value) for value in state["scalars"])
