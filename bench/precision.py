"""What rows of 16 bits cost in quality: HR@10 and NE in one pass, by what the tables' rows are stored as.

float32; bfloat16 and float16 rounded stochastically, as `trainer.row_precision` does; and both rounded to nearest,
which loses updates that are smaller than half a step. One pass for each seed, with one thread; the other random numbers
are the same for all.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.options import actions_of, add_stream, parser_of
from bench.output.report import report
from bench.single_pass import OURS, headrace, settings_for
from bench.timing import one_thread
from headrace.config import Settings, load_settings
from kernels import rowwise_adagrad_
from model.row_store import Int64, RowStore
from trainer.learner.step import Learner

WAYS = ("float32", "bfloat16", "float16", "bfloat16, to nearest", "float16, to nearest")
LOST, QUICK_ACTIONS = 0.001, 4_000
SHOWN = OURS[:2]


def to_nearest(learner: Learner) -> None:
    """Make the tables of a learner round to nearest."""

    def nearest(store: RowStore) -> Any:
        def learn(place_U: Int64, grad_UD: Tensor, lr: float, step: int) -> None:
            del step
            rowwise_adagrad_(store.weight, store.state, torch.from_numpy(place_U), grad_UD, lr=lr)

        return learn

    for table in learner.tables.values():
        table.store.learn = nearest(table.store)  # type: ignore[method-assign]


def measured(settings: Settings, actions: list[dict[str, Any]], way: str, seed: int) -> dict[str, float]:
    """HR@10 of Headrace and of its network alone, and NE, of one pass."""
    precision, _, nearest = way.partition(", ")
    trainer = dataclasses.replace(settings.trainer, row_precision=precision)
    with one_thread():
        done = headrace(
            settings.model_copy(update={"trainer": trainer}), actions, seed,
            prepare=to_nearest if nearest else lambda _: None,
        )  # fmt: skip
    hits = {who: float(np.mean((done.ranks[who] > 0) & (done.ranks[who] <= 10))) for who in SHOWN}
    return {**hits, "NE": done.trainer.learner.metrics.summary()["ranking"]["all"]["ne"]}


def compare(settings: Settings, actions: list[dict[str, Any]], seeds: list[int]) -> list[dict[str, Any]]:
    """A row for each way and measure: means over the seeds."""
    found = {way: [measured(settings, actions, way, seed) for seed in seeds] for way in WAYS}
    rows = []
    for measure in (*SHOWN, "NE"):
        exact = np.array([each[measure] for each in found[WAYS[0]]])
        for way in WAYS:
            each_seed = np.array([each[measure] for each in found[way]])
            change = each_seed - exact
            target = LOST if measure == OURS[0] and way in WAYS[1:3] else None
            rows.append({
                "name": f"{way}: {measure}" + ("" if measure == "NE" else ", HR@10"),
                "value": round(float(each_seed.mean()), 5), "unit": "", "target": target,
                "met": None if target is None else bool(-change.mean() <= target),
                "note": f"{change.mean():+.4f} to float32; by seed {', '.join(f'{x:+.4f}' for x in change)}",
            })  # fmt: skip
    return rows


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("precision", __doc__)
    add_stream(parser, "ml-100k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED", help="default: 1 2 3")
    options = parser.parse_args(arguments)
    actions = actions_of(options.stream, options, QUICK_ACTIONS)
    seeds = options.seeds[:1] if options.quick else options.seeds
    return report("precision", arguments, compare(settings_for(load_settings(), actions), actions, seeds), options.out)
