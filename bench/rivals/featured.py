"""Counts of what follows what by a feature of the items, such as their category, for items that were chosen too rarely
to be counted one by one.

With h₁, h₂, … the user's last items, newest first, and f the feature: score(i) = nᵢ / n[f(i)] · Σₖ decayᵏ ·
T[f(hₖ), f(i)] / T[f(hₖ)], where T counts features of consecutive choices, and nᵢ choices of i, which lose half of their
weight every ``half_life`` choices. An item's feature is that of its newest interaction. With ``own`` above 0 the user's
own items are added: so much, divided among the last 60 by decayed frequency.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.rivals.popular import DecayedPopular
from bench.streams.events import Step

MOST_OWN, OWN_DECAY = 60, 0.9


class Featured:
    """``column``: of the stream's features, if it has that many; otherwise all items are of one kind."""

    def __init__(
        self, num_rows: int, column: int, own: float = 0.0, lags: int = 3, decay: float = 0.7, half_life: float = 3_000
    ) -> None:
        self._own = own * OWN_DECAY ** np.arange(MOST_OWN)
        self._column, self._weight_L = column, decay ** np.arange(lags)
        self._popular = DecayedPopular(num_rows, half_life)
        self._value_of, self._value_V = dict[int, int](), np.zeros(num_rows + 1, np.int64)
        self._after: dict[int, dict[int, float]] = {}

    def over(self, step: Step) -> NDArray[Any]:
        """See `bench.rivals.Retriever.over`."""
        where, asked, scores = step.batch.target_R[step.told_E], set(step.asked.tolist()), []
        for e, row in enumerate(step.events.target_R.tolist()):
            if e in asked:
                scores.append(self._score(step.past(e))[: step.num_known + 1])
            if self._column < step.batch.feature_nF.shape[1]:
                value = int(step.batch.feature_nF[where[e], self._column])
                self._value_V[row] = self._value_of.setdefault(value, len(self._value_of) + 1)
            if e in asked:
                self._learn(row, step.past(e))
        return np.stack(scores) if scores else np.zeros((0, step.num_known + 1))

    def _score(self, past: NDArray[np.int32]) -> NDArray[np.float64]:
        share_F = np.zeros(len(self._value_of) + 1)
        last = self._value_V[past[::-1][: len(self._weight_L)]]
        for weight, value in zip(self._weight_L.tolist(), last.tolist(), strict=False):
            if after := self._after.get(value):
                total = sum(after.values())
                for each, num in after.items():
                    share_F[each] += weight * num / total
        count_V = self._popular.count_V
        num_F = np.bincount(self._value_V, count_V, len(share_F))
        everybody = count_V / max(count_V.sum(), 1.0)
        score_V = np.asarray((share_F / np.maximum(num_F, 1e-9))[self._value_V] * count_V + 1e-6 * everybody)
        newest = past[::-1][:MOST_OWN]
        np.add.at(score_V, newest, self._own[: len(newest)] / (OWN_DECAY ** np.arange(len(newest))).sum())
        return score_V

    def _learn(self, row: int, past: NDArray[np.int32]) -> None:
        self._popular.learn(row, past)
        if len(past):
            after = self._after.setdefault(int(self._value_V[past[-1]]), {})
            value = int(self._value_V[row])
            after[value] = after.get(value, 0.0) + 1.0
