"""What followed the user's last item most often; ties are broken by popularity."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from bench.rivals.popular import Popular


class Markov(Popular):
    """First-order transitions between consecutive choices."""

    def __init__(self, num_rows: int) -> None:
        super().__init__(num_rows)
        self._next: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def score(self, past: NDArray[np.int32]) -> NDArray[np.float64]:
        """Transitions from the last item, then popularity."""
        score_V: NDArray[np.float64] = self.count_V / (1.0 + self.count_V.sum())
        after = self._next.get(int(past[-1])) if len(past) else None
        if after:
            score_V[list(after)] += list(after.values())
        return np.asarray(score_V)

    def learn(self, row: int, past: NDArray[np.int32]) -> None:
        """Count a transition."""
        super().learn(row, past)
        if len(past):
            self._next[int(past[-1])][row] += 1
