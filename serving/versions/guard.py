"""Which versions are good enough to answer, judged by their trainer's metrics against the last good versions.

A version is held back, not refused: its rows are applied to the side that no request reads, so that later versions can
build on them, and the first of those that is good again comes into service.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from serving.config import ServingConfig
from wire.weights import Manifest, Quality

logger = logging.getLogger(__name__)
NUM_REMEMBERED = 30


@dataclass(frozen=True, slots=True)
class Band:
    """How far a version may fall behind the median of the last good ones: see `ServingConfig`."""

    hr_drop: float
    ne_rise: float
    calibration: float
    min_targets: int
    patience_s: float
    new_line_s: float

    @staticmethod
    def of(config: ServingConfig) -> Band | None:
        """The configured limits; None if nothing is to be held back."""
        if not config.guard:
            return None
        return Band(
            config.guard_hr_drop, config.guard_ne_rise, config.guard_calibration, config.guard_min_targets,
            config.guard_patience_s, config.guard_new_line_s,
        )  # fmt: skip


class Guard:
    """Remembers the last good versions. For the subscriber's thread only."""

    def __init__(self, band: Band | None) -> None:
        self._band = band
        self._good: deque[Manifest] = deque(maxlen=NUM_REMEMBERED)
        self._held_since_ms: int | None = None

    def problem(self, manifest: Manifest) -> str:
        """Why this version should be held back; empty if it is good, cannot be judged, or has been held for too long.

        While versions are held back, what they are compared with does not move. So this ends after the band's
        patience: then later versions are compared with the newest one.
        """
        found = self._judged(manifest)
        if not found:
            self._held_since_ms = None
            return ""
        since_ms = manifest.created_ms if self._held_since_ms is None else self._held_since_ms
        self._held_since_ms = since_ms
        held_s, patience_s = (manifest.created_ms - since_ms) / 1000, self._patience_s(manifest)
        if not 0 < patience_s <= held_s:
            return found
        logger.error("version %d/%d answers, although %s: versions have been held back for %.0f s, while the one that "
                     "answers gets older", *manifest.which, found, held_s)  # fmt: skip
        self._good.clear()
        self._held_since_ms = None
        return ""

    def _patience_s(self, manifest: Manifest) -> float:
        assert self._band is not None
        return self._band.patience_s if self._is_same_line(manifest) else self._band.new_line_s

    def _is_same_line(self, manifest: Manifest) -> bool:
        return not self._good or self._good[-1].lineage in (manifest.lineage, manifest.parent)

    def _judged(self, manifest: Manifest) -> str:
        band, good = self._band, [each for each in self._good if self._says_enough(each)]
        if band is None or not good:
            return ""
        if not self._says_enough(manifest):
            return (
                ""
                if self._is_same_line(manifest)
                else f"a new line of training, at {manifest.quality.num_targets} targets so far"
            )
        return "; ".join(_problems(manifest, good, band))

    def _says_enough(self, manifest: Manifest) -> bool:
        return self._band is not None and manifest.quality.says_enough(self._band.min_targets)

    def forget(self) -> None:
        """Start over, because an operator has switched to another line of training."""
        self._good.clear()
        self._held_since_ms = None

    def accept(self, manifest: Manifest) -> None:
        """Note that this version came into service."""
        self._good.append(manifest)


def _world(quality: Quality, before: Sequence[Quality]) -> float:
    """How often the most popular items are hit, relative to before, at most 1: a drop that no model could prevent."""
    popular = [each.popular_hr10 for each in before if each.popular_hr10]
    if not popular or quality.popular_hr10 is None:
        return 1.0
    return min(1.0, quality.popular_hr10 / median(popular))


def _problems(manifest: Manifest, good: list[Manifest], band: Band) -> list[str]:
    found = []
    quality, before = manifest.quality, [each.quality for each in good]
    hits = [each.hr10 for each in before if each.hr10 is not None]
    expected = median(hits) * _world(quality, before) if hits else 0.0
    if quality.hr10 is not None and quality.hr10 < (1 - band.hr_drop) * expected:
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
