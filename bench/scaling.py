"""Scaling laws: what a larger model and more data are worth, and how well a law foretells it.

Five sizes of the network learn one stream in one pass. A law like LSRM's, L(N) = E + (N0 / N)^α, is fitted to their
losses on its last third, and predicts the loss of a larger size that was not part of the fit. The same over data: the
largest size's loss after each share of the stream predicts that of its last part. Losses are the network's own cross
entropy in retrieval, before learning; N counts dense weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.options import actions_of, add_stream, parser_of
from bench.output.report import report
from bench.single_pass import settings_for
from bench.streams.events import arrivals
from headrace.config import Settings, load_settings
from headrace.file_training import file_configs
from model.config import ModelConfig
from trainer.learner.step import Learner

WIDTHS = (8, 16, 24, 32, 48)
HELD_BACK = 96
TAIL = 1 / 3
DATA_PARTS, QUICK_ACTIONS = 6, 5_000


@dataclass(frozen=True, slots=True)
class Law:
    """L(x) = floor + (scale / x)^power."""

    floor: float
    scale: float
    power: float

    def at(self, x: float) -> float:
        """The predicted loss."""
        return float(self.floor + (self.scale / x) ** self.power)


def fit(x: Sequence[float], loss: Sequence[float]) -> Law:
    """Least squares: a line in logarithms for each candidate floor below the lowest loss; returns the best fit. If the
    loss does not fall, the law is its mean."""
    logs, y = np.log(np.asarray(x)), np.asarray(loss)
    best, best_error = Law(float(y.mean()), 0.0, 1.0), math.inf
    spread = max(1e-9, float(y.max() - y.min()))
    for gap in spread * np.geomspace(1e-3, 1e3, 400):
        floor = float(y.min()) - gap
        if floor < 0 and best_error < math.inf:
            break
        floor = max(0.0, floor)
        slope, intercept = np.polyfit(logs, np.log(y - floor), 1)
        law = Law(floor, math.exp(min(600.0, -intercept / slope)) if slope else 1.0, -float(slope))
        error = float(((floor + np.exp(intercept + slope * logs) - y) ** 2).sum())
        if error < best_error and slope < 0:
            best, best_error = law, error
    return best


def sized(model: ModelConfig, width: int) -> ModelConfig:
    """The same model at another width, with heads of half that width."""
    return dataclasses.replace(
        model, model_width=width, item_width=width, num_heads=2, qk_width=width // 2, value_width=width // 2
    )


def learn(settings: Settings, actions: list[dict[str, Any]], width: int) -> tuple[int, NDArray[np.float64]]:
    """The number of dense weights, and the losses of one pass, one per choice."""
    model = sized(file_configs(settings, actions[0])[2], width)
    learner = Learner(model, settings.trainer)
    losses = list[NDArray[np.float64]]()
    for examples in arrivals(settings, actions):
        report = learner.step(examples)
        if report.num_targets and math.isfinite(report.retrieval_loss):
            losses.append(np.full(report.num_targets, report.retrieval_loss))
    num = sum(parameter.numel() for parameter in learner.model.parameters())
    return num, np.concatenate(losses)


def measure(
    settings: Settings, actions: list[dict[str, Any]], widths: Sequence[int] = WIDTHS, held_back: int = HELD_BACK
) -> list[dict[str, Any]]:
    """The rows."""
    found = {width: learn(settings, actions, width) for width in (*widths, held_back)}
    tails = {width: float(losses[-round(TAIL * len(losses)) :].mean()) for width, (_, losses) in found.items()}
    sizes = [float(found[width][0]) for width in widths]
    rows = [
        {"name": f"width {width}", "value": round(tails[width], 4), "unit": "nats", "num_weights": found[width][0],
         "note": f"{found[width][0]:,} dense weights" + ("; held back" if width == held_back else "")}
        for width in found
    ]  # fmt: skip
    law = fit(sizes, [tails[width] for width in widths])
    rows.append(_foretold("size", law, law.at(float(found[held_back][0])), tails[held_back]))
    parts = np.array_split(found[held_back][1], DATA_PARTS)
    ends = np.cumsum([len(part) for part in parts]).astype(float)
    means = [float(part.mean()) for part in parts]
    law = fit(ends[:-1].tolist(), means[:-1])
    rows.append(_foretold("data", law, law.at(float(ends[-1])), means[-1]))
    return rows


def _foretold(over: str, law: Law, foretold: float, measured: float) -> dict[str, Any]:
    return {
        "name": f"foretold over {over}", "value": round(foretold, 4), "unit": "nats", "measured": round(measured, 4),
        "law": dataclasses.asdict(law),
        "note": f"measured {measured:.4f}: {foretold / measured - 1:+.2%}; "
                f"L = {law.floor:.3f} + ({law.scale:.3g} / x)^{law.power:.3g}",
    }  # fmt: skip


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("scaling", __doc__)
    add_stream(parser, "ml-100k")
    options = parser.parse_args(arguments)
    actions = actions_of(options.stream, options, QUICK_ACTIONS)
    return report("scaling", arguments, measure(settings_for(load_settings(), actions), actions), options.out)
