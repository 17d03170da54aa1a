"""How good the learner is right now, for a version's manifest (`wire.weights.Quality`)."""

from __future__ import annotations

from typing import Any

from model.probe import probe_outputs
from trainer.learner.step import Learner
from wire.weights import Quality


def quality_of(learner: Learner, summary: dict[str, Any]) -> Quality:
    """The quality to publish; ``summary``: of the learner's metrics."""
    window, is_judged = summary["retrieval_window"], learner.rates.has_learned(learner.config.metric_window)
    return Quality(
        num_targets=window["num"],
        window=learner.config.metric_window,
        hr10=window["model"]["hr10"],
        popular_hr10=window["popular_unseen"]["hr10"],
        ne=summary["ranking_window"]["all"]["ne"] if is_judged else None,
        calibration=learner.metrics.ranking.window_calibration() if is_judged else None,
        probe=probe_outputs(learner.model, learner.config.backend),
    )
