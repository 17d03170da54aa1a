"""Whether cache entries of one version may serve the next ones: continuously measured on real requests.

Versions come seconds apart, and keys and values change a little with each. Now and then a request is answered twice,
with an older version's cache entry and without, and the largest difference between the two answers' scores is noted. As
long as the largest of the recent differences stays within a limit, older entries are used; otherwise, and before enough
was measured, every answer is exact.
"""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np

NUM_KEPT, ENOUGH, EVERY = 64, 16, 24


class ReuseProbe:
    """Safe for any number of threads. ``max_versions``: how many swaps old a cache entry may be at most; 0: entries of
    older versions are never used."""

    def __init__(self, max_versions: int, max_error: float) -> None:
        self.max_versions, self._max_error = max_versions, max_error
        self._errors: deque[float] = deque(maxlen=NUM_KEPT)
        self._turns = itertools.count()

    @property
    def error(self) -> float:
        """The largest recent difference of scores; 0 before anything was measured."""
        return max(list(self._errors), default=0.0)

    @property
    def allowed(self) -> int:
        """How many swaps old a cache entry may be at present."""
        return self.max_versions if len(self._errors) >= ENOUGH and self.error <= self._max_error else 0

    def wants(self) -> bool:
        """Whether the present request, which could use an older entry, should be answered both ways."""
        return len(self._errors) < ENOUGH or next(self._turns) % EVERY == 0

    def note(self, error: float) -> None:
        """Note the difference of a request that was answered both ways."""
        self._errors.append(error)


def difference(left: np.ndarray, left_items: np.ndarray, right: np.ndarray, right_items: np.ndarray) -> float:
    """The largest difference between two answers' scores (one row per item), over the items in both; else infinity."""
    _, mine, theirs = np.intersect1d(left_items, right_items, return_indices=True)
    return float(np.abs(left[mine] - right[theirs]).max(initial=0.0)) if len(mine) else float("inf")


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities, the unit in which rankings are compared."""
    safe = np.clip(probabilities.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(safe) - np.log1p(-safe))
