"""Which versions are good enough to answer, judged by their trainer's metrics against the last good versions.

A version is held back, not refused: its rows are applied to the side that no request reads, so that later versions can
build on them, and the first of those that is good again comes into service.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from serving.config import ServingConfig
from wire.weights import Manifest

NUM_REMEMBERED = 30


@dataclass(frozen=True, slots=True)
class Band:
    """How far a version may fall behind the median of the last good ones: see `ServingConfig`."""

    hr_drop: float
    ne_rise: float
    calibration: float
    min_targets: int

    @staticmethod
    def of(config: ServingConfig) -> Band | None:
        """The configured limits; None if nothing is to be held back."""
        if not config.guard:
            return None
        return Band(config.guard_hr_drop, config.guard_ne_rise, config.guard_calibration, config.guard_min_targets)


class Guard:
    """Remembers the last good versions. For the subscriber's thread only."""

    def __init__(self, band: Band | None) -> None:
        self._band = band
        self._good: deque[Manifest] = deque(maxlen=NUM_REMEMBERED)

    def problem(self, manifest: Manifest) -> str:
        """Why this version should be held back; empty if it is good, or cannot be judged."""
        band, good = self._band, [each for each in self._good if self._says_enough(each)]
        if band is None or not good:
            return ""
        if not self._says_enough(manifest):
            same = manifest.lineage == good[-1].lineage or manifest.parent == good[-1].lineage
            return "" if same else f"a new line of training, at {manifest.quality.num_targets} targets so far"
        return "; ".join(_problems(manifest, good, band))

    def _says_enough(self, manifest: Manifest) -> bool:
        return self._band is not None and manifest.quality.num_targets >= self._band.min_targets

    def accept(self, manifest: Manifest) -> None:
        """Note that this version came into service."""
        self._good.append(manifest)


def _problems(manifest: Manifest, good: list[Manifest], band: Band) -> list[str]:
    found = []
    quality, before = manifest.quality, [each.quality for each in good]
    hits = [each.hr10 for each in before if each.hr10 is not None]
    if hits and quality.hr10 is not None and quality.hr10 < (1 - band.hr_drop) * median(hits):
        found.append(f"HR@10 {quality.hr10:.4f}, {median(hits):.4f} before")
    entropies = [each.ne for each in before if each.ne is not None]
    if entropies and quality.ne is not None and quality.ne > (1 + band.ne_rise) * median(entropies):
        found.append(f"normalised entropy {quality.ne:.3f}, {median(entropies):.3f} before")
    share = quality.calibration
    if share is not None and not 1 / band.calibration <= share <= band.calibration:
        was_in = [1 / band.calibration <= each.calibration <= band.calibration for each in before if each.calibration]
        if any(was_in):
            found.append(f"predicts {share:.2f} times what is observed")
    return found
