"""Item co-occurrence in a sliding window, which learns from a single sighting.

With h₁, h₂, … the user's last items, newest first: score(i) = Σₖ decayᵏ · C[hₖ, i] / (√n_hₖ · nᵢᵖ); after each choice
C[hₖ, i] += decayᵏ and C[i, hₖ] += ½ · decayᵏ. With a power p of ½ these are cosines; a lower one leaves popular items
more of their lead. Ties, such as all items for a user without a past, are broken by popularity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DENSE_ROWS = 8192
"""Up to this many items, the counts are a matrix; above that, one dictionary per row."""
TIE = 1e-6


class Cooccurrence:
    """Exact counts, without a limit on neighbours."""

    def __init__(self, num_rows: int, lags: int, decay: float, power: float = 0.5) -> None:
        self._power = power
        self.counts: Matrix | Dictionaries = (Matrix if num_rows < DENSE_ROWS else Dictionaries)(num_rows + 1)
        self._seen_V = np.zeros(num_rows + 1, np.float32)
        self._weight_L = decay ** np.arange(lags, dtype=np.float32)

    def score(self, past: NDArray[np.int32]) -> NDArray[Any]:
        """Scores by the last items, then popularity."""
        last = past[::-1][: len(self._weight_L)]
        weight = self._weight_L[: len(last)] / np.sqrt(np.maximum(self._seen_V[last], 1e-6))
        near_V = self.counts.sum(last, weight) / np.maximum(self._seen_V, 1e-6) ** self._power
        return np.asarray(near_V + TIE * self._seen_V / (1.0 + self._seen_V.sum()))

    def learn(self, row: int, past: NDArray[np.int32]) -> None:
        """Count the item with each of the last ones."""
        last = past[::-1][: len(self._weight_L)]
        self.counts.add(row, last, self._weight_L[: len(last)] * (last != row))
        self._seen_V[row] += 1.0


class Matrix:
    """(V, V); memory is used only where something was counted."""

    def __init__(self, num_rows: int) -> None:
        self._count_VV = np.zeros((num_rows, num_rows), np.float32)

    def sum(self, rows: NDArray[np.int32], weight: NDArray[Any]) -> NDArray[Any]:
        """(V,) Σ weight · C[row]."""
        return np.asarray(weight @ self._count_VV[rows])

    def add(self, row: int, others: NDArray[np.int32], weight: NDArray[Any]) -> None:
        """C[others, row] += weight, C[row, others] += weight / 2."""
        np.add.at(self._count_VV[:, row], others, weight)
        np.add.at(self._count_VV[row], others, 0.5 * weight)


class Dictionaries:
    """The same for a large catalogue."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._count: dict[int, dict[int, float]] = {}

    def sum(self, rows: NDArray[np.int32], weight: NDArray[Any]) -> NDArray[Any]:
        """(V,) Σ weight · C[row]."""
        total_V = np.zeros(self._num_rows)
        for row, each in zip(rows.tolist(), weight.tolist(), strict=True):
            beside = self._count.get(row)
            if beside:
                num = len(beside)
                total_V[np.fromiter(beside, np.int64, num)] += each * np.fromiter(beside.values(), float, num)
        return total_V

    def add(self, row: int, others: NDArray[np.int32], weight: NDArray[Any]) -> None:
        """C[others, row] += weight, C[row, others] += weight / 2."""
        mine = self._count.setdefault(row, {})
        for other, each in zip(others.tolist(), weight.tolist(), strict=True):
            if each:
                theirs = self._count.setdefault(other, {})
                theirs[row] = theirs.get(row, 0.0) + each
                mine[other] = mine.get(other, 0.0) + 0.5 * each
