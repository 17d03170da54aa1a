"""A fixed future day, predicted after one day of learning, after two, and so on.

Copies of one learner, taken after the first days of its pass, after more days, and so on up to the day before, predict
the last whole day of a stream without learning it. All are measured on the same choices, so the curve shows what
another day of data is worth (the protocol of MLPerf's DLRMv4 and of Yambda). Users' histories are always up to date.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.evaluation import LATELY, kinds_alone, ranking, retrieval
from bench.options import actions_of, add_stream, parser_of
from bench.output.report import report
from bench.single_pass import settings_for
from bench.streams.events import arrivals
from headrace.config import Settings, load_settings
from headrace.file_training import file_configs
from trainer.examples.batch import JaggedBatch, build_batch
from trainer.frozen import Frozen
from trainer.learner.step import Learner
from trainer.metrics.prequential import PrequentialMetrics
from wire.history import Histories

DAY_MS = 86_400_000
WINDOWS, QUICK_ACTIONS = 6, 40_000


@dataclass(slots=True, eq=False)
class Copy:
    """The learner after this many whole days, and its predictions for the future day."""

    num_days: int
    num_learned: int
    frozen: Frozen
    metrics: PrequentialMetrics
    ranks: list[NDArray[np.int64]] = field(default_factory=list)

    def predict(self, batch: JaggedBatch) -> None:
        """Predict a step of the future day."""
        ranks, probability_RK = self.frozen.predict(batch)
        self.ranks.append(ranks)
        self.metrics.add(kinds_alone(probability_RK, batch, self.metrics.arrivals))


def days_of(actions: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """When the first day begins (ms), and how many whole days there are."""
    times = [int(action["timestamp"]) for action in actions]
    return min(times), max(1, (max(times) - min(times)) // DAY_MS)


def measure(settings: Settings, actions: list[dict[str, Any]], num_windows: int, seed: int = 1) -> list[Copy]:
    """Copies at up to ``num_windows`` ages in days. Raises ValueError if the stream has fewer than two days."""
    begin_ms, num_days = days_of(actions)
    if num_days < 2:
        raise ValueError(f"expected a stream of at least two whole days, got {num_days}; take more of it")
    ends = {int(end) for end in np.linspace(1, num_days - 1, min(num_windows, num_days - 1)).round()}
    model = file_configs(settings, actions[0])[2]
    learner = Learner(model, dataclasses.replace(settings.trainer, seed=seed, metric_window=LATELY))
    histories, copies = Histories(model.max_context), list[Copy]()
    done_days = 0
    for examples in arrivals(settings, actions):
        batch = build_batch(examples, histories, model)
        if not batch.num_targets:
            learner.step(examples)
            continue
        day = int(batch.time_ms_n[batch.target_R].max() - begin_ms) // DAY_MS
        for ended in range(done_days + 1, min(day, num_days - 1) + 1):
            if ended in ends:
                kept = PrequentialMetrics(model.kinds, LATELY)
                copies.append(Copy(ended, learner.num_interactions, Frozen.of(learner), kept))
        done_days = max(done_days, min(day, num_days - 1))
        if day < num_days - 1:
            learner.step(examples)
        elif day == num_days - 1:
            for copy in copies:
                copy.predict(batch)
    return copies


def rows_of(stream: str, copies: Sequence[Copy]) -> Iterator[dict[str, Any]]:
    """The table's."""
    for copy in copies:
        found, rated = retrieval(np.concatenate(copy.ranks)), ranking(copy.metrics)
        kinds = {kind: each["ne"] for kind, each in rated["kinds"].items()}
        ne = "-" if rated["ne"] is None else f"{rated['ne']:.4f}"
        yield {
            "name": f"{stream}: the last day, after {copy.num_days} day{'s' * (copy.num_days > 1)}",
            "value": found["hr10"], "unit": "HR@10", "num": found["num"], "ndcg10": found["ndcg10"],
            "ne": rated["ne"], "kinds": kinds, "num_learned": copy.num_learned,
            "note": f"NE {ne}; {found['num']:,} choices; learned {copy.num_learned:,} interactions",
        }  # fmt: skip


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("days", __doc__)
    add_stream(parser, "news")
    parser.add_argument("--windows", type=int, default=WINDOWS, metavar="N", help="numbers of days to compare, at most")
    options = parser.parse_args(arguments)
    actions = actions_of(options.stream, options, QUICK_ACTIONS)
    copies = measure(settings_for(load_settings(), actions), actions, options.windows)
    return report("days", arguments, list(rows_of(options.stream, copies)), options.out)
