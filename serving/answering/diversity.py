"""Answers whose items do not all resemble each other: maximal marginal relevance (Carbonell & Goldstein, 1998)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
POOL, POOL_AT_MOST = 4, 400
"""An answer of k items is chosen among the best 4 k, but among no more than 400 unless k is more."""


def pool_size(k: int) -> int:
    """How many of the best items an answer of ``k`` is chosen from."""
    return max(k, min(POOL * k, POOL_AT_MOST))


def diversified(score_P: NDArray[np.float32], unit_PD: NDArray[np.float32], k: int, diversity: float) -> Int64:
    """(at most k,) places in the pool, in the order in which they are chosen.

    Each is the one with the highest ``(1 - diversity) * relevance - diversity * resemblance``: relevance is the score,
    scaled from 0 (the pool's worst) to 1 (its best); resemblance is the highest cosine of its direction (``unit_PD``,
    of unit length) with those chosen before it, 0 for the first. Among equals, the better score comes first.
    """
    if not len(score_P):
        return np.zeros(0, np.int64)
    least, most = float(score_P.min()), float(score_P.max())
    relevance_P = (score_P.astype(np.float64) - least) / (most - least) if most > least else np.ones(len(score_P))
    resemblance_P, chosen = np.zeros(len(score_P)), list[int]()
    for _ in range(min(k, len(score_P))):
        worth_P = (1.0 - diversity) * relevance_P - diversity * resemblance_P
        worth_P[chosen] = -np.inf
        place = int(np.argmax(worth_P))
        cosine_P = unit_PD @ unit_PD[place]
        resemblance_P = np.maximum(resemblance_P, cosine_P) if chosen else cosine_P.astype(np.float64)
        chosen.append(place)
    return np.array(chosen, np.int64)
