"""Whether what one version left in the cache may serve the next ones: measured, on real requests, all the time.

Versions follow each other by seconds, and keys and values change a little with each. Now and then a request is answered
twice, with what an earlier version left and without, and the largest difference between the two answers' scores is
noted. As long as the largest of the last ones stays within a bound, what is old is used; otherwise, and before enough
was measured, every answer is exact.
"""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np

NUM_KEPT, ENOUGH, EVERY = 64, 16, 24


class ReuseProbe:
    """For any number of threads. ``max_versions``: how many swaps ago tokens may have been computed; 0: none are
    reused."""

    def __init__(self, max_versions: int, max_error: float) -> None:
        self.max_versions, self._max_error = max_versions, max_error
        self._errors: deque[float] = deque(maxlen=NUM_KEPT)
        self._turns = itertools.count()

    @property
    def error(self) -> float:
        """The largest difference of scores lately; 0 before anything was measured."""
        return max(list(self._errors), default=0.0)

    @property
    def allowed(self) -> int:
        """How many swaps ago tokens may have been computed now."""
        return self.max_versions if len(self._errors) >= ENOUGH and self.error <= self._max_error else 0

    def wants(self) -> bool:
        """Whether the request at hand, which could reuse something, is to be answered both ways."""
        return len(self._errors) < ENOUGH or next(self._turns) % EVERY == 0

    def note(self, error: float) -> None:
        """A request was answered both ways."""
        self._errors.append(error)


def difference(left: np.ndarray, left_items: np.ndarray, right: np.ndarray, right_items: np.ndarray) -> float:
    """The largest difference between two answers' scores (a row an item), over the items that both have."""
    _, mine, theirs = np.intersect1d(left_items, right_items, return_indices=True)
    return float(np.abs(left[mine] - right[theirs]).max(initial=0.0)) if len(mine) else float("inf")


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """What the scores of a ranking are compared in."""
    safe = np.clip(probabilities.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(safe) - np.log1p(-safe))
