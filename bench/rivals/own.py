"""The user's own most frequent items, at any time, at this time of day, or at this time of the week; ties are broken by
popularity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.rivals.popular import Popular
from bench.streams.events import Step


class Own(Popular):
    """How often the user chose an item among the choices that a model sees, then how often all users did."""

    def score(self, past: NDArray[np.int32]) -> NDArray[np.float64]:
        """Own counts, then everyone's."""
        score_V: NDArray[np.float64] = self.count_V / (1.0 + self.count_V.sum())
        np.add.at(score_V, past, 1.0)
        return np.asarray(score_V)


HOUR_MS, ANY_TIME = 3_600_000, 0.02


class OwnByTime:
    """The same, but a choice counts less the further from now it is in a cycle of ``cycle`` hours, a day or a week:
    e^(-distance / width), in hours, and `ANY_TIME` more."""

    def __init__(self, num_rows: int, cycle: int = 24, width: float = 1.0) -> None:
        self._popular, self._cycle, self._width = Popular(num_rows), cycle, width

    def over(self, step: Step) -> NDArray[Any]:
        """See `bench.rivals.Retriever.over`."""
        events, scores = step.events, []
        for e in step.asked.tolist():
            past, mine = step.past(e), slice(events.past_begin_R[e], events.past_end_R[e])
            away_P = np.abs(events.past_ms[mine] - events.now_ms_R[e]) / HOUR_MS % self._cycle
            count_V = self._popular.count_V
            score_V = 0.01 * count_V / (1.0 + count_V.sum())
            np.add.at(score_V, past, np.exp(-np.minimum(away_P, self._cycle - away_P) / self._width) + ANY_TIME)
            scores.append(score_V[: step.num_known + 1])
            self._popular.learn(int(events.target_R[e]), past)
        return np.stack(scores) if scores else np.zeros((0, step.num_known + 1))
