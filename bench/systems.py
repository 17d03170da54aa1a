"""FuXi-alpha, LSRM, CPRec and stochastic length as configurations of Headrace.

Each in one pass over a stream that predicts before it learns:
HR@10 of the network alone, which is what they change, and of network and memory together; NE; interactions per second.
All share seed, stream, step size and memory.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.domains import annealed
from bench.evaluation import retrieval
from bench.options import actions_of, add_stream, parser_of
from bench.output.records import interval
from bench.output.report import report
from bench.single_pass import OURS, headrace, settings_for
from headrace.config import Settings, load_settings

QUICK_ACTIONS = 4_000
DROPOUT, TOP_RATIO, ADAM_SHARE = 0.2, 0.25, 0.5
"""LSRM's dropout of the lowest layer, of the highest relative to it, and the share of the steps before the switch."""


def _changed(settings: Settings, part: str, **changes: Any) -> Settings:
    return settings.model_copy(update={part: dataclasses.replace(getattr(settings, part), **changes)})


def lsrm_optimisers(settings: Settings, num_actions: int) -> Settings:
    """Adam for the first half of the steps, gradient descent for the rest."""
    num_steps = num_actions // settings.trainer.max_step_targets
    return _changed(settings, "trainer", sgd_after_steps=max(1, round(ADAM_SHARE * num_steps)))


SYSTEMS: dict[str, Callable[[Settings, int], Settings]] = {
    "HSTU (default)": lambda settings, _: settings,
    "HSTU, 200 of context": lambda settings, _: _changed(settings, "trainer", max_train_context=0),
    "the same, stochastic length 1.6": lambda settings, _: _changed(
        settings, "trainer", max_train_context=0, stochastic_length_alpha=1.6
    ),
    "FuXi-alpha": lambda settings, _: _changed(settings, "model", block="fuxi"),
    "LSRM: dropout by layer": lambda settings, _: _changed(
        settings, "trainer", dropout=DROPOUT, top_dropout_ratio=TOP_RATIO
    ),
    "LSRM: the same dropout in all layers": lambda settings, _: _changed(settings, "trainer", dropout=DROPOUT),
    "LSRM: Adam, then SGD": lsrm_optimisers,
    "CPRec: WSA": annealed,
}


def compare(
    settings: Settings, actions: list[dict[str, Any]], only: list[str], num_seeds: int, stream: str
) -> list[dict[str, Any]]:
    """A row for each system: the value is HR@10 of its network alone."""
    rows = []
    for name in only or SYSTEMS:
        system, passes = SYSTEMS[name](settings, len(actions)), list[dict[str, float]]()
        for seed in range(1, num_seeds + 1):
            done = headrace(system, actions, seed)
            alone, both = (retrieval(done.ranks[who])["hr10"] for who in (OURS[1], OURS[0]))
            ne = done.ranking["ne"]
            passes.append({"alone": alone, "both": both, "ne": np.nan if ne is None else ne,
                           "speed": done.interactions_per_s})  # fmt: skip
            print(f"systems: {name}, seed {seed}: {passes[-1]}", file=sys.stderr, flush=True)
        (alone, half), (both, both_half) = (interval([each[key] for each in passes]) for key in ("alone", "both"))
        ne, speed = (float(np.mean([each[key] for each in passes])) for key in ("ne", "speed"))
        rows.append({
            "name": f"{stream}: {name}", "value": round(alone, 5), "unit": "HR@10, network alone",
            "half_width": round(half, 5), "with_memory": round(both, 5),
            "with_memory_half_width": round(both_half, 5), "ne": round(ne, 5), "num_seeds": num_seeds,
            "num_actions": len(actions), "interactions_per_s": round(speed),
            "note": f"{_spread(half)}with the memory {both:.4f}; NE {ne:.4f}; {speed:,.0f}/s",
        })  # fmt: skip
    return rows


def _spread(half: float) -> str:
    return f"± {half:.4f}; " if half else ""


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("systems", __doc__)
    add_stream(parser, "news")
    parser.add_argument("--only", action="append", default=[], choices=list(SYSTEMS), metavar="NAME",
                        help=f"may be repeated; of {'; '.join(SYSTEMS)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    options = parser.parse_args(arguments)
    actions = actions_of(options.stream, options, QUICK_ACTIONS)
    settings = settings_for(load_settings(), actions)
    rows = compare(settings, actions, options.only, options.seeds, options.stream)
    return report("systems", arguments, rows, options.out)
