"""What a batch of requests costs, as measured."""

from __future__ import annotations


class CostModel:
    """Seconds per batch as ``fixed + per_weight x weight``: least squares over batches, with older ones counting less.

    Predicts nothing before `ENOUGH` batches, and counts no batch as more than ten times what it predicted: a batch
    during which the machine paused must not cause requests to be refused.
    """

    DECAY, ENOUGH = 0.98, 10

    def __init__(self) -> None:
        self._sums = [0.0] * 5
        self._num = 0

    def note(self, weight: float, seconds: float) -> None:
        """Note how long a batch of this weight took."""
        self._num += 1
        if expected_s := self.seconds(weight, 1.0):
            seconds = min(seconds, 10 * expected_s)
        new = (1.0, weight, weight * weight, seconds, weight * seconds)
        self._sums = [self.DECAY * old + each for old, each in zip(self._sums, new, strict=True)]

    def seconds(self, weight: float, num_batches: float) -> float:
        """How long work of this weight takes in this many batches; 0 before enough was measured."""
        n, w, ww, s, ws = self._sums
        if self._num < self.ENOUGH:
            return 0.0
        spread = n * ww - w * w
        per_weight = (n * ws - w * s) / spread if spread > 1e-9 * n * ww else s / max(w, 1e-9)
        per_weight = min(max(per_weight, 0.0), s / max(w, 1e-9))
        fixed = max(0.0, (s - per_weight * w) / n)
        return fixed * num_batches + per_weight * weight
