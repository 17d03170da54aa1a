"""The most popular items: overall, lately, or at this time of day.

Whether items that the user has met compete depends on the stream.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.streams.events import Step

GROWN = 1e30
HOUR_MS = 3_600_000


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


class PopularByHour:
    """Scores by choices at this time of day: each counts less the further from now it is, as a bell of ``width`` hours;
    ties are broken by all choices."""

    def __init__(self, num_rows: int, width: float) -> None:
        self._popular, self._count_HV, self._width = Popular(num_rows), np.zeros((24, num_rows + 1)), width

    def over(self, step: Step) -> NDArray[Any]:
        """See `bench.rivals.Retriever.over`."""
        events, scores = step.events, []
        for e in step.asked.tolist():
            hour, row = int(events.now_ms_R[e]) / HOUR_MS % 24, int(events.target_R[e])
            away_H = np.abs(np.arange(24) + 0.5 - hour)
            near_H = np.exp(-((np.minimum(away_H, 24 - away_H) / self._width) ** 2) / 2)
            score_V = near_H @ self._count_HV + 1e-3 * self._popular.count_V / (1.0 + self._popular.count_V.sum())
            scores.append(score_V[: step.num_known + 1])
            self._popular.learn(row, events.past_rows[:0])
            self._count_HV[int(hour), row] += 1.0
        return np.stack(scores) if scores else np.zeros((0, step.num_known + 1))
