"""What followed the user's last item, or the last two, most often; ties are broken by popularity."""

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


PRIOR_PAIRS = 2.0


class PairMarkov(Markov):
    """Second-order transitions with back-off: the shares of what followed the last two items count n / (n + 2) after n
    sightings of both, those of what followed the last one the rest."""

    def __init__(self, num_rows: int) -> None:
        super().__init__(num_rows)
        self._pair: dict[tuple[int, ...], dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def score(self, past: NDArray[np.int32]) -> NDArray[np.float64]:
        """Transitions from the last two items, from the last one, then popularity."""
        score_V = super().score(past)
        score_V /= score_V.sum() or 1.0
        after = self._pair.get(tuple(past[-2:].tolist()))
        if after:
            num = sum(after.values())
            score_V *= PRIOR_PAIRS / (num + PRIOR_PAIRS)
            score_V[list(after)] += np.array(list(after.values())) / (num + PRIOR_PAIRS)
        return score_V

    def learn(self, row: int, past: NDArray[np.int32]) -> None:
        """Count both transitions."""
        super().learn(row, past)
        if len(past) > 1:
            self._pair[tuple(past[-2:].tolist())][row] += 1
