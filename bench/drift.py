"""Recovery after a sudden change of the world, by the age of the model.

After 1, 5 and 20 hours of a simulated world (`stream.simulate`), all items swap their ids at once. What was learned
about each id is then wrong, and users' histories refer to items that they never met. A learner whose rates fall with
age would recover more slowly the older it is.

``--rows`` compares other ways for the tables' rows to learn (`bench.row_rules`).

An hour is scaled down to ``--per-hour`` actions. Items do not die, so that their rows grow as old as the stream.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from bench.options import parser_of, quiet
from bench.output.records import interval
from bench.output.report import report
from bench.row_rules import RULES, install
from bench.single_pass import OURS, headrace, settings_for
from headrace.config import load_settings
from stream.simulate import World, WorldConfig

Action = dict[str, Any]
HOURS, PER_HOUR, QUICK_PER_HOUR = (1.0, 5.0, 20.0), 4_000, 400
NUM_ITEMS, NUM_USERS = 300, 300
PLAIN = next(iter(RULES))
TOLERANCE = 0.97
"""The share of the youngest model's HR@10 after the drift that an older one should reach; the rest is noise."""


def drifting(hours: float, per_hour: int, seed: int) -> Iterator[Action]:
    """The actions of a world whose items swap ids after ``hours``, and of one more hour."""
    config = WorldConfig(
        seed=seed, num_items=NUM_ITEMS, num_users=NUM_USERS, actions_per_s=per_hour / 3600, item_lifetime_s=9e8
    )
    place = np.random.default_rng(seed + 1).permutation(NUM_ITEMS)
    num_before = round(hours * per_hour)
    for number, action in enumerate(islice(World(config).actions(), num_before + per_hour)):
        item = int(action["item"])
        moved = int(place[item]) if number >= num_before else item
        yield {name: value for name, value in action.items() if name != "features"} | {"item": moved}


def recovery(hours: float, per_hour: int, seed: int, rows: str = PLAIN) -> dict[str, tuple[float, float]]:
    """HR@10 in the hour before the drift and in the hour after it, by the rankers of `OURS`. ``rows``: of `RULES`."""
    actions = list(drifting(hours, per_hour, seed))
    choices = [number for number, action in enumerate(actions) if action["action"] == "click"]
    num_after = sum(number >= len(actions) - per_hour for number in choices)
    done = headrace(
        settings_for(load_settings(), actions), actions, seed, prepare=lambda learner: install(learner, rows)
    )
    found = {}
    for who, rank_A in done.ranks.items():
        hit_A = (rank_A > 0) & (rank_A <= 10)
        before = hit_A[-2 * num_after : -num_after] if len(hit_A) >= 2 * num_after else hit_A[:-num_after]
        found[who] = float(before.mean()), float(hit_A[-num_after:].mean())
    return found


def run(
    *, quick: bool = False, hours: Sequence[float] = HOURS, per_hour: int | None = None, num_seeds: int = 1,
    rules: Sequence[str] = (PLAIN,),
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each way to learn rows, ranker and age."""
    per_hour, made = per_hour or (QUICK_PER_HOUR if quick else PER_HOUR), list[dict[str, Any]]()
    for rule in rules:
        found: dict[float, list[dict[str, tuple[float, float]]]] = {}
        for each in hours:
            found[each] = [recovery(each, per_hour, seed, rule) for seed in range(1, 1 + num_seeds)]
            print(f"{rule}: drift after {each:g} h: done", file=sys.stderr, flush=True)
        prefix = "" if rule == PLAIN else f"{rule}: "
        made += [row | {"name": prefix + row["name"]} for who in OURS[:2] for row in _rows(who, found)]
    return made


def _rows(who: str, found: dict[float, list[dict[str, tuple[float, float]]]]) -> Iterator[dict[str, Any]]:
    youngest: float | None = None
    for hours, runs in found.items():
        after, half = interval([each[who][1] for each in runs])
        before = float(np.mean([each[who][0] for each in runs]))
        target = None if youngest is None else TOLERANCE * youngest
        youngest = after if youngest is None else youngest
        yield {
            "name": f"{who}: the hour after a drift at {hours:g} h", "value": round(after, 4), "unit": "HR@10",
            "target": target and round(target, 4), "met": None if target is None else bool(after >= target),
            "half_width": round(half, 4), "num_seeds": len(runs), "before": round(before, 4),
            "note": f"± {half:.4f} ({len(runs)} seeds); the hour before: {before:.4f}",
        }  # fmt: skip


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("drift", __doc__)
    parser.add_argument("--hours", type=float, nargs="+", default=HOURS, metavar="H", help="ages of the model")
    parser.add_argument("--per-hour", type=int, metavar="N", help=f"actions that stand for an hour ({PER_HOUR:,})")
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    parser.add_argument("--rows", nargs="+", default=(PLAIN,), choices=list(RULES), metavar="RULE",
                        help=f"how rows learn: {'; '.join(RULES)}")  # fmt: skip
    options = parser.parse_args(arguments)
    quiet()
    rows = run(quick=options.quick, hours=options.hours, per_hour=options.per_hour, num_seeds=options.seeds,
               rules=options.rows)  # fmt: skip
    return report("drift", arguments, rows, options.out)
