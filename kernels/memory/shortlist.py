"""The definition of the shortlist in plain NumPy: the best rows of a prediction, rescored by a small network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.memory.arrays import FEATURES, HIDDEN, LISTED, SEEN_AGAIN, Float64, MemoryArrays
from kernels.memory.events import MemoryRules

LENGTH_SCALE, LAST_LEAD, LEAK, FURTHEST, LEAST_VARIANCE, LISTS_REMEMBERED = 0.25, -20.0, 0.1, 4.0, 1e-4, 2000.0


@dataclass(slots=True, eq=False)
class Prediction:
    """A weighted sum of features for all rows; ``competes_V``: the rows that compete. ``pause``: how long ago the
    user's last choice was (`kernels.memory.past`)."""

    score_V: Float64
    feature_FV: Float64
    competes_V: NDArray[np.bool_]
    gain_F: Float64
    bucket: int
    pause: float


class Shortlist:
    """Rescores the best rows of a prediction: their features together say more than a weighted sum can. One hidden
    layer, learned on the softmax over the list, which keeps its share of the whole softmax."""

    def __init__(self, memory: MemoryArrays, done: Prediction) -> None:
        score_V = np.where(done.competes_V, done.score_V, -np.inf)
        row_C = np.argsort(-score_V, kind="stable")[: min(LISTED, int(done.competes_V.sum()))]
        best = float(score_V.max(initial=-np.inf))
        self._see(row_C, score_V[row_C], done.feature_FV[:, row_C], best, done.bucket, done.pause)
        self._look(memory.shortlist_weight, memory.shortlist_norm)

    @staticmethod
    def of(
        row_C: NDArray[np.integer], score_C: Float64, feature_FC: NDArray[np.floating], best: float, bucket: int,
        pause: float, weight_P: NDArray[np.float32], norm_3F: NDArray[np.float32],
    ) -> Shortlist:  # fmt: skip
        """A list that was picked before, seen by a network with these weights."""
        made = object.__new__(Shortlist)
        made._see(row_C, score_C, feature_FC, best, bucket, pause)
        made._look(weight_P, norm_3F)
        return made

    def _see(
        self, row_C: NDArray[np.integer], score_C: Float64, feature_FC: NDArray[np.floating], best: float, bucket: int,
        pause: float,
    ) -> None:  # fmt: skip
        self.row_C, self.score_C = row_C, score_C
        lead_C = np.maximum(score_C - best, LAST_LEAD)
        is_own_C = feature_FC[FEATURES.index("own_count")] > 0
        length_C, pause_C = np.full(len(row_C), LENGTH_SCALE * bucket), np.full(len(row_C), pause)
        self.raw_FC = np.vstack([feature_FC, lead_C, is_own_C, length_C, pause_C])

    def _look(self, weight_P: NDArray[np.float32], norm_3F: NDArray[np.float32]) -> None:
        mean_F, variance_F, _ = norm_3F.astype(float)
        scaled_FC = (self.raw_FC - mean_F[:, None]) / np.sqrt(variance_F + LEAST_VARIANCE)[:, None]
        self.seen_FC = np.clip(scaled_FC, -FURTHEST, FURTHEST)
        linear_F, weight_HF, bias_H, self.given_H = _parts(weight_P.astype(float))
        self.hidden_HC = bias_H[:, None] + weight_HF @ self.seen_FC
        self.out_C = self.score_C + linear_F @ self.seen_FC + self.given_H @ self._leaky()

    def _leaky(self) -> Float64:
        return np.asarray(np.maximum(self.hidden_HC, LEAK * self.hidden_HC))

    def rescore(self, score_V: Float64) -> None:
        """Replace the list's scores, shifted together so that the list keeps its share."""
        if len(self.row_C):
            score_V[self.row_C] = self.out_C + log_sum(self.score_C) - log_sum(self.out_C)

    def learn(self, memory: MemoryArrays, target: int, rules: MemoryRules, weight: float = 1.0) -> None:
        """One step towards ``target``, if it is listed; the inputs' statistics are updated in any case."""
        if target in self.row_C:
            push_C = weight * (np.exp(self.out_C - log_sum(self.out_C)) - (self.row_C == target))
            back_HC = self.given_H[:, None] * np.where(self.hidden_HC > 0, 1.0, LEAK) * push_C
            slopes = self.seen_FC @ push_C, back_HC @ self.seen_FC.T, back_HC.sum(axis=1), self._leaky() @ push_C
            slope_P = np.concatenate([each.ravel() for each in slopes])
            memory.shortlist_square[:] = memory.shortlist_square * rules.shortlist_decay + slope_P**2
            memory.shortlist_weight -= rules.shortlist_rate * slope_P / np.sqrt(memory.shortlist_square)
        mean_F, variance_F, lists_F = memory.shortlist_norm
        lists_F += 1.0
        away_FC, share = self.raw_FC - mean_F[:, None], 1.0 / min(lists_F[0], LISTS_REMEMBERED)
        mean_F += share * away_FC.mean(axis=1)
        variance_F += share * ((away_FC**2).mean(axis=1) - variance_F)


def _parts(weight_P: Float64) -> tuple[Float64, Float64, Float64, Float64]:
    """See `kernels.memory.arrays.first_weights`."""
    num = len(SEEN_AGAIN)
    linear_F, weight_HF, bias_H, given_H = np.split(weight_P, [num, num * (1 + HIDDEN), num * (1 + HIDDEN) + HIDDEN])
    return linear_F, weight_HF.reshape(HIDDEN, num), bias_H, given_H


def log_sum(score: Float64) -> float:
    """The log of the sum of e^score."""
    return float(np.log(np.exp(score - score.max()).sum()) + score.max())
