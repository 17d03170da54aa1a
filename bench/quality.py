"""`python -m bench quality [STREAM …] [--file F …] [--steps] [--seeds N] [--limit N] [--quick]`.

Headrace and every baseline on the same events in the same order, each predicting before it learns, by the same metric:
HR@10 of what was chosen, over all items met so far, what the user has met left out where the stream has no repeats. In
all, and over the last 10,000 choices. ``--steps``: Headrace alone, by targets a step.

Streams: ``ml-100k`` (fetched once), ``world`` (`stream.simulate`), ``news`` and ``shop`` (`bench.streams`); any other
as a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.__main__ import commit, machine, show
from bench.baselines import Recording, baselines, judge
from bench.streams import STREAMS
from headrace.config import Settings, load_settings
from headrace.file_source import FileSource
from headrace.file_training import file_configs
from kernels.memory import MemoryArrays, MemoryEvents, MemoryOutcome
from stream.files import RATING_KINDS, read_actions
from trainer.loop import Trainer
from trainer.metrics import rank_gains

LATELY = 10_000
MARGIN = 1.1
STEPS = (16, 32, 64, 128, 256)
HR10 = 2


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One pass of Headrace over a stream: ranks of every choice by whom, and what the baselines are given."""

    ranks: dict[str, NDArray[np.int64]]
    recording: Recording
    memory: MemoryArrays
    interactions_per_s: float
    ranking: dict[str, Any]


def hit_rate(ranks: NDArray[np.int64]) -> float:
    """HR@10."""
    return float(rank_gains(ranks)[HR10].mean()) if len(ranks) else 0.0


def headrace(settings: Settings, actions: Iterable[dict[str, Any]], seed: int) -> Run:
    """One pass, in this process."""
    stream = iter(actions)
    first = next(stream)
    action, sequence, model = file_configs(settings, first)
    config = dataclasses.replace(settings.trainer, seed=seed)
    whole = itertools.chain([first], stream)
    trainer = Trainer(
        model,
        config,
        lambda positions: FileSource(whole, action, sequence, config.file_take, positions),
        checkpoint_dir=None,
    )
    parts, outcomes, learn = list[MemoryEvents](), list[MemoryOutcome](), trainer.learner.memory.learn

    def recorded(events: MemoryEvents, logit_AV: NDArray[np.float32]) -> MemoryOutcome:
        parts.append(events)
        outcomes.append(learn(events, logit_AV))
        return outcomes[-1]

    trainer.learner.memory.learn = recorded  # type: ignore[method-assign]
    started = time.monotonic()
    trainer.run()
    seconds = time.monotonic() - started
    done = MemoryOutcome.join(outcomes)
    asked = done.rank_R >= 0
    ranks = {"Headrace": done.rank_R, "its network alone": done.model_rank_R, "its counts alone": done.count_rank_R}
    return Run(
        {name: column[asked].astype(np.int64) for name, column in ranks.items()},
        Recording(parts),
        trainer.learner.memory.arrays,
        trainer.learner.num_interactions / seconds,
        trainer.learner.metrics.summary()["ranking"]["all"],
    )


def compare(name: str, runs: list[Run]) -> list[dict[str, Any]]:
    """Rows of one stream."""
    run = runs[0]
    leaves_out = run.memory.leaves_out_repeats
    ranks = dict(run.ranks)
    num_rows = run.recording.num_rows
    for baseline, make in baselines(num_rows).items():
        ranks[baseline] = judge(make(), run.recording, run.memory, leaves_out=leaves_out)
    rates = {who: (hit_rate(column), hit_rate(column[-LATELY:])) for who, column in ranks.items()}
    best, (rate, _) = max(
        ((who, each) for who, each in rates.items() if who not in run.ranks), key=lambda pair: pair[1][0]
    )
    ours = np.array([hit_rate(each.ranks["Headrace"]) for each in runs])
    spread = f", ± {1.96 * ours.std(ddof=1) / np.sqrt(len(ours)):.4f} of {len(ours)} seeds" if len(ours) > 1 else ""
    rows = list[dict[str, Any]]()
    for who, (total, lately) in rates.items():
        note = f"the last {LATELY:,}: {lately:.4f}"
        row: dict[str, Any] = {"name": f"{name}: {who}", "value": round(total, 5), "unit": "HR@10", "note": note}
        if who == "Headrace":
            value, target = float(ours.mean()), round(MARGIN * rate, 4)
            note += f"{spread}; the best baseline: {best}"
            row |= {"value": round(value, 5), "target": target, "met": value >= target, "note": note}
        rows.append(row)
    return [*rows, *_ranking(name, run)]


def _ranking(name: str, run: Run) -> list[dict[str, Any]]:
    ranking = run.ranking
    speed = {"name": f"{name}: Headrace", "value": round(run.interactions_per_s), "unit": "interactions/s"}
    if ranking["ne"] is None:
        return [speed]
    target = ranking["ne_baseline"]
    return [speed, {"name": f"{name}: Headrace", "value": round(ranking["ne"], 4), "unit": "NE", "target": target,
                    "met": ranking["ne"] < target, "note": "target: an item's own rate"}]  # fmt: skip


def frontier(name: str, settings: Settings, actions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Quality and speed by targets a step."""
    rows = []
    for size in STEPS:
        trainer = dataclasses.replace(settings.trainer, max_step_targets=size, file_take=size)
        run = headrace(settings.model_copy(update={"trainer": trainer}), actions, settings.trainer.seed)
        lately = hit_rate(run.ranks["Headrace"][-LATELY:])
        note = f"the last {LATELY:,}: {lately:.4f}; the network alone: {hit_rate(run.ranks['its network alone']):.4f}"
        note += f"; NE {run.ranking['ne']}; {run.interactions_per_s:,.0f} interactions/s"
        rows.append({"name": f"{name}: {size} targets a step", "value": round(hit_rate(run.ranks["Headrace"]), 5),
                     "unit": "HR@10", "note": note})  # fmt: skip
    return rows


def settings_for(actions: list[dict[str, Any]]) -> Settings:
    """The configuration; its kinds are those of the stream, and a file's interactions wait for nothing."""
    settings = load_settings()
    met: dict[str, None] = {}
    for action in actions:
        kinds = action["action"]
        met.update(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds))
    if set(met) <= set(settings.action.kinds) or set(met) <= set(RATING_KINDS):
        return settings
    kinds = tuple(met)
    return settings.model_copy(
        update={
            "action": dataclasses.replace(settings.action, kinds=kinds),
            "sequence": dataclasses.replace(settings.sequence, join_window_s=0.0),
            "model": dataclasses.replace(settings.model, kinds=kinds),
        }
    )


def command(arguments: list[str]) -> int:
    """The options of this measurement, and its report."""
    parser = argparse.ArgumentParser(prog="python -m bench quality", description=__doc__)
    parser.add_argument("streams", nargs="*", help=f"of {', '.join(STREAMS)} (default: all)")
    parser.add_argument("--file", action="append", default=[], type=Path, help="a file of actions or ratings")
    parser.add_argument("--steps", action="store_true", help="the frontier of step sizes")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, help="the first so many actions alone")
    parser.add_argument("--quick", action="store_true", help="the first 10,000 actions of one stream")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.streams) - set(STREAMS))
    if unknown:
        parser.error(f"streams: expected some of {', '.join(STREAMS)}, got {', '.join(unknown)}; or give --file")
    rows = run(quick=options.quick, streams=options.streams, files=options.file, steps=options.steps,
               seeds=options.seeds, limit=options.limit)  # fmt: skip
    show(rows, f"quality on {machine()}, commit {commit()}")
    print(json.dumps({"bench": "quality", "machine": machine(), "commit": commit(), "rows": rows}))
    return 0


def run(
    *,
    quick: bool = False,
    streams: list[str] | None = None,
    files: list[Path] | None = None,
    steps: bool = False,
    seeds: int = 1,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """The rows of every stream asked for."""
    limit = 10_000 if quick and limit is None else limit
    names = streams or ([] if files else ["ml-100k"] if quick else list(STREAMS))
    made: list[tuple[str, Iterable[dict[str, Any]]]] = [(name, STREAMS[name]()) for name in names]
    made += [(path.stem, read_actions(path)) for path in files or ()]
    rows: list[dict[str, Any]] = []
    for name, stream in made:
        actions = list(islice(stream, limit))
        settings = settings_for(actions)
        if steps:
            rows += frontier(name, settings, actions)
        else:
            rows += compare(name, [headrace(settings, actions, settings.trainer.seed + n) for n in range(seeds)])
    return rows
