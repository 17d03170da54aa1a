"""The quality that versions are published with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.trainer.samples import MODEL, TRAINER, World
from trainer.learner.step import Learner
from trainer.versions.quality import quality_of


@pytest.mark.parametrize(("window", "is_judged"), [(10, True), (10_000, False)])
def test_ranking_is_judged_once_the_late_kinds_of_a_new_stream_had_come_before_its_window(
    window: int, is_judged: bool
) -> None:
    learner, world = Learner(MODEL, replace(TRAINER, metric_window=window)), World(5)
    learner.step(world.examples(6))
    early = quality_of(learner, learner.metrics.summary())
    assert (early.ne, early.calibration) == (None, None)
    assert early.num_targets
    for _ in range(60):
        learner.step(world.examples(6))
    assert any(learner.rates.late_kinds)
    assert learner.metrics.arrivals.lag == learner.rates.arrivals.lag > 0
    later = quality_of(learner, learner.metrics.summary())
    assert (later.ne is not None, later.calibration is not None) == (is_judged, is_judged)
