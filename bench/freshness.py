"""What fresh weights are worth, and whether old windows are forgotten.

One learner learns a stream. Copies of it, renewed every minute, hour, day and week of event time, predict the same
choices from the same up-to-date histories. So the curve shows what a recommender loses by being retrained (and rolled
out at once) that rarely, while its users' histories are always fresh.

A probe for forgetting: in an old window, one step in ten is never learned. Its choices are predicted by the weights at
the window's end and by later ones, among the same items.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.evaluation import LATELY, kinds_alone, ranking, retrieval
from bench.options import actions_of, add_stream, parser_of
from bench.output.curve import draw_curves
from bench.output.report import read_rows, report
from bench.single_pass import settings_for
from bench.streams.events import arrivals
from headrace.config import Settings, load_settings
from headrace.file_training import file_configs
from kernels.memory import MemoryOutcome
from trainer.examples.batch import JaggedBatch, build_batch
from trainer.frozen import Frozen
from trainer.learner.step import Learner
from trainer.metrics.prequential import PrequentialMetrics
from trainer.set_aside import pass_over
from wire.history import Histories

EVERY_S = {"a minute": 60, "an hour": 3_600, "a day": 86_400, "a week": 604_800}
WINDOW, PROBE_EVERY, QUICK_ACTIONS = (0.2, 0.3), 10, 6_000
"""Shares of the stream where the probe's window begins and ends; one in this many of its steps is held out."""
AGES = (0.0, 0.1, 0.3, 0.7)
"""Shares of the stream after the window at which the probe is evaluated."""


@dataclass(slots=True, eq=False)
class Stale:
    """A copy that is renewed every ``every_ms``, and its predictions."""

    every_ms: int
    metrics: PrequentialMetrics
    copy: Frozen | None = None
    epoch: int = -1
    ranks: list[NDArray[np.int64]] = field(default_factory=list)

    def meet(self, batch: JaggedBatch, learner: Learner) -> None:
        """Predict a step's targets; if a new period has begun, first copy ``learner``."""
        if not learner.num_steps:  # nothing has been learned yet
            self.ranks.append(np.zeros(int(batch.is_wanted_R.sum()), np.int64))
            return
        epoch = int(batch.time_ms_n[batch.target_R].max()) // self.every_ms
        if self.copy is None or epoch > self.epoch:
            self.copy, self.epoch = Frozen.of(learner), epoch
        ranks, probability_RK = self.copy.predict(batch)
        self.ranks.append(ranks)
        self.metrics.add(kinds_alone(probability_RK, batch, self.metrics.arrivals))


@dataclass(slots=True, eq=False)
class Probe:
    """The held-out steps, the items known when the window ended, and HR@10 at each age."""

    batches: list[JaggedBatch] = field(default_factory=list)
    num_rows: int = 0
    found: list[tuple[int, float]] = field(default_factory=list)

    def look(self, learner: Learner) -> None:
        """Evaluate how well they are predicted now."""
        copy = Frozen.of(learner)
        self.num_rows = self.num_rows or copy.items.num_rows
        ranks = [copy.predict(batch, self.num_rows)[0] for batch in self.batches]
        self.found.append((learner.num_interactions, retrieval(np.concatenate(ranks))["hr10"]))


def measure(
    settings: Settings, actions: list[dict[str, Any]], seed: int = 1, *, only_probe: bool = False
) -> tuple[dict[str, Any], Probe]:
    """(by how often weights are renewed: retrieval and ranking; the probe)."""
    model = file_configs(settings, actions[0])[2]
    learner = Learner(model, dataclasses.replace(settings.trainer, seed=seed, metric_window=LATELY))
    histories, probe = Histories(model.max_context), Probe()
    periods = {} if only_probe else EVERY_S
    stale = {name: Stale(1000 * every_s, PrequentialMetrics(model.kinds, LATELY)) for name, every_s in periods.items()}
    fresh, looks = list[MemoryOutcome](), [round((WINDOW[1] + age) * len(actions)) for age in AGES]
    learn = learner.memory.learn
    learner.memory.learn = lambda events, logit_AV: _kept(fresh, learn(events, logit_AV))  # type: ignore[method-assign]
    done = 0
    for number, examples in enumerate(arrivals(settings, actions)):
        batch = build_batch(examples, histories, model)
        share, done = done / len(actions), done + sum(example.num_new for example in examples)
        if WINDOW[0] <= share < WINDOW[1] and number % PROBE_EVERY == 0 and batch.is_wanted_R.any():
            probe.batches.append(batch)
            pass_over(learner, examples)
            continue
        if batch.num_targets:
            for each in stale.values():
                each.meet(batch, learner)
        learner.step(examples)
        while looks and done >= looks[0] and probe.batches:
            looks.pop(0)
            probe.look(learner)
    outcome = MemoryOutcome.join(fresh)
    found = {"every step": retrieval(outcome.rank_R[outcome.rank_R >= 0].astype(np.int64)) | _ne(learner.metrics)}
    for name, each in stale.items():
        found[name] = retrieval(np.concatenate(each.ranks)) | _ne(each.metrics)
    return found, probe


def _kept(outcomes_: list[MemoryOutcome], outcome: MemoryOutcome) -> MemoryOutcome:
    outcomes_.append(outcome)
    return outcome


def _ne(metrics: PrequentialMetrics) -> dict[str, Any]:
    return {"ne": ranking(metrics)["ne"]}


def rows_of(stream: str, found: dict[str, Any], probe: Probe) -> list[dict[str, Any]]:
    """The table's."""
    fresh, rows = found["every step"]["hr10"], list[dict[str, Any]]()
    for name, each in found.items():
        ne = "-" if each["ne"] is None else f"{each['ne']:.4f}"
        note = (
            f"{each['hr10'] / fresh - 1:+.1%}; NE {ne}; last {LATELY:,}: {each['lately']['hr10']:.4f}" if fresh else ""
        )
        rows.append({"name": f"{stream}: weights renewed {_often(name)}", "value": each["hr10"], "unit": "HR@10",
                     "ne": each["ne"], "windows": each["windows"], "note": note})  # fmt: skip
    num = sum(int(batch.is_wanted_R.sum()) for batch in probe.batches)
    for learned, hr10 in probe.found:
        rows.append({"name": f"{stream}: old window, held out", "value": hr10, "unit": "HR@10", "num": num,
                     "note": f"{num:,} choices, by the weights after {learned:,} interactions"})  # fmt: skip
    return rows


def _often(name: str) -> str:
    return name if name.startswith("every") else f"once {name}"


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("freshness", __doc__)
    add_stream(parser, None)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write an SVG of all that is in --out, or of this")
    parser.add_argument("--probe", action="store_true", help="of forgetting alone, which is fast")
    options = parser.parse_args(arguments)
    rows = list[dict[str, Any]]()
    for stream in options.streams or (("world",) if options.quick else ("ml-100k", "news", "world")):
        actions = actions_of(stream, options, QUICK_ACTIONS)
        found = measure(settings_for(load_settings(), actions), actions, only_probe=options.probe)
        rows += rows_of(stream, *found)
        print(f"{stream}: done", file=sys.stderr, flush=True)
    done = report("freshness", arguments, rows, options.out, is_appended=True)
    if options.picture:
        drawn = read_rows(options.out) if options.out else rows
        options.picture.write_text(draw_curves(drawn), encoding="utf-8")
    return done
