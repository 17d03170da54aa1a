"""The baselines of ranking: the overall rate, and the item's own, counted event by event."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.rivals.targets import Target, targets
from bench.streams.events import Step


class Constant:
    """The overall rate of each kind so far."""

    def __init__(self, num_kinds: int) -> None:
        self.shown, self.done_K = 0.0, np.zeros(num_kinds)

    @property
    def rate_K(self) -> NDArray[np.float64]:  # noqa: N802  (shape suffix)
        """(K,) the overall rates, as if there were two more interactions, one with each kind."""
        return np.asarray((self.done_K + 1.0) / (self.shown + 2.0))

    def over(self, step: Step) -> NDArray[np.float64]:
        """(R, K)."""
        found_RK = np.zeros((step.batch.num_targets, step.batch.num_kinds))
        for target in targets(step):
            found_RK[target.at] = self.predict(target)
            self.learn(target)
        return found_RK

    def predict(self, target: Target) -> NDArray[np.float64]:
        """(K,)."""
        del target
        return self.rate_K

    def learn(self, target: Target) -> None:
        """Count an interaction, or later kinds of an earlier one."""
        self.shown += target.is_new
        self.done_K += target.kinds_K


class ItemRate(Constant):
    """Each item's rate, smoothed towards the overall one by ``strength`` interactions."""

    def __init__(self, num_rows: int, num_kinds: int, strength: float) -> None:
        super().__init__(num_kinds)
        self._strength = strength
        self._shown_V, self._done_VK = np.zeros(num_rows + 1), np.zeros((num_rows + 1, num_kinds))

    def predict(self, target: Target) -> NDArray[np.float64]:
        """(K,)."""
        done_K = self._done_VK[target.row] + self._strength * self.rate_K
        return np.asarray(done_K / (self._shown_V[target.row] + self._strength))

    def learn(self, target: Target) -> None:
        """See `Constant.learn`."""
        super().learn(target)
        self._shown_V[target.row] += target.is_new
        self._done_VK[target.row] += target.kinds_K
