"""How well values are predicted, each before it is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ValueMetrics:
    """Sums over all values, on the scale on which they are predicted (`model.hstu.log_value`)."""

    def __init__(self) -> None:
        self.sums = np.zeros(4)  # how many, squared errors, values, squared values

    def add(self, given_R: NDArray[np.floating[Any]]) -> None:
        """Count values; `add_errors` follows."""
        given_R = given_R.astype(np.float64)
        self.sums += (len(given_R), 0.0, given_R.sum(), (given_R**2).sum())

    def add_errors(self, expected_R: NDArray[np.floating[Any]], given_R: NDArray[np.floating[Any]]) -> None:
        """Add the errors of what was expected of values that are counted."""
        self.sums[1] += ((expected_R.astype(np.float64) - given_R.astype(np.float64)) ** 2).sum()

    @property
    def mean(self) -> float:
        """Of all values so far; 0 before the first."""
        return float(self.sums[2] / max(1.0, self.sums[0]))

    def resume(self, report: Mapping[str, Any], mean: float) -> None:
        """Continue from what `report` said of values with this mean."""
        num, squared_error, nse = report["num"], report["num"] * (report["mse"] or 0.0), report["nse"]
        variance = squared_error / nse if nse else 0.0
        self.sums = np.array([num, squared_error, num * mean, variance + num * mean**2])

    def report(self) -> dict[str, Any]:
        """``num``; ``mse``, the mean squared error; ``nse``, that over the values' variance: a constant's is 1."""
        num, squared_error, total, squares = self.sums.tolist()
        variance = squares - total**2 / num if num else 0.0
        return {
            "num": int(num),
            "mse": squared_error / num if num else None,
            "nse": squared_error / variance if variance > 0 else None,
        }
