"""How good the learner is right now, for a version's manifest (`wire.weights.Quality`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.probe import probe_outputs
from trainer.metrics import LATER, PrequentialMetrics
from trainer.step import Learner
from wire.weights import Quality


def quality_of(learner: Learner, summary: dict[str, Any]) -> Quality:
    """The quality to publish; ``summary``: of the learner's metrics."""
    window = summary["retrieval_window"]
    return Quality(
        num_targets=window["num"],
        hr10=window["model"]["hr10"],
        ne=summary["ranking_window"]["all"]["ne"],
        calibration=calibration(learner.metrics),
        probe=probe_outputs(learner.model, learner.config.backend),
    )


def calibration(metrics: PrequentialMetrics) -> float | None:
    """Predicted over observed, for all kinds together, over the newest targets; None before anything was observed. A
    late kind is compared with the prediction made when its interaction was new."""
    rows, num = metrics.kind_window.view(), len(metrics.kinds)
    predicted_RK, outcome_RK = rows[:, :num], rows[:, 2 * num :]
    is_new = np.isfinite(outcome_RK) & (outcome_RK != LATER)
    came = float((outcome_RK > 0.5).sum())
    return float(predicted_RK[is_new].sum(dtype=np.float64) / came) if came else None
