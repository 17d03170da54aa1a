"""LSRM's five hard tasks: rare items, cold users, long histories, domains, noise.

HR@10 of one pass for network and memory together, for the network alone, and for a larger network alone: by the item's
popularity (four groups with equally many choices), by how many of the user's choices are known (the first few; a
hundred or more), in each domain, and with noise: actions on random items, which are in the histories and are learned,
but not counted here. Source: "Scaling law of large sequential recommendation models" (Zhang et al., RecSys 2024).
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.options import actions_of, add_stream, parser_of
from bench.output.report import report
from bench.single_pass import OURS, Pass, headrace, settings_for
from headrace.config import Settings, load_settings
from wire.hashing import key_hash

Action = dict[str, Any]
Bools = NDArray[np.bool_]
QUICK_ACTIONS = 4_000
LARGER: dict[str, Any] = {"model_width": 128, "num_heads": 4, "num_layers": 4}
PASTS = ((0, 5), (5, 20), (20, 100), (100, 1 << 30))
"""How many choices are known of cold users, and in long trajectories: at least, and fewer than."""
NOISE_SHARE = 0.2
NOISE = "noise:"


def popularity_groups(item_A: NDArray[np.int64]) -> NDArray[np.int64]:
    """(A,) from 0 for choices of the least popular items to 3 for those of the most popular, a quarter of all each."""
    counts = Counter(item_A.tolist())
    order = sorted(counts, key=lambda item: (counts[item], item))
    ends = np.cumsum([counts[item] for item in order])
    group_of = dict(zip(order, np.minimum(4 * (ends - 1) // len(item_A), 3).tolist(), strict=True))
    return np.array([group_of[item] for item in item_A.tolist()], np.int64)


def with_noise(actions: list[Action], share: float) -> list[Action]:
    """The stream with actions on random items in between: ``share`` times as many, each by the user and at the time of
    the action that follows it. The items are copies of the stream's own under other names."""
    rng, made = np.random.default_rng(1), list[Action]()
    items = [action["item"] for action in actions]
    for action in actions:
        if rng.random() < share:
            made.append({**action, "item": f"{NOISE}{items[int(rng.integers(len(items)))]}"})
        made.append(action)
    return made


def slices(done: Pass, actions: list[Action]) -> Iterator[tuple[str, Bools]]:
    """The tasks, and which choices belong to each."""
    yield "all", np.ones(len(done.item_A), np.bool_)
    group_A = popularity_groups(done.item_A)
    for group in range(4):
        yield f"popularity {group + 1} of 4", group_A == group
    for least, below in PASTS:
        name = f"{least} to {below - 1} choices known" if below < 1 << 30 else f"{least} or more choices known"
        yield name, (done.num_past_A >= least) & (done.num_past_A < below)
    domain_of = {key_hash(action["item"]): action.get("domain") for action in actions}
    domain_A = np.array([str(domain_of.get(item)) for item in done.item_A.tolist()])
    for domain in np.unique(domain_A).tolist() if len({*domain_of.values()}) > 1 else ():
        yield f"domain {domain}", domain_A == domain


def compare(settings: Settings, actions: list[Action], stream: str, seed: int = 1) -> list[dict[str, Any]]:
    """A row for each task; the value is network and memory together."""
    model = dataclasses.replace(settings.model, **LARGER)
    larger = settings.model_copy(update={"model": model})
    noisy = with_noise(actions, NOISE_SHARE)
    noise = np.array(sorted({key_hash(each["item"]) for each in noisy if str(each["item"]).startswith(NOISE)}))
    rows = []
    for is_noisy, told in ((False, actions), (True, noisy)):
        ours, theirs = (headrace(each, told, seed) for each in (settings, larger))
        counted_A = ~np.isin(ours.item_A, noise)
        tasks = [(f"{NOISE_SHARE:.0%} noise", counted_A)] if is_noisy else list(slices(ours, actions))
        for task, is_in_A in tasks:
            rows.append(_row(f"{stream}: {task}", [
                ours.ranks[OURS[0]][is_in_A], ours.ranks[OURS[1]][is_in_A], theirs.ranks[OURS[1]][is_in_A],
            ]))  # fmt: skip
        print(f"hard: {'with' if is_noisy else 'without'} noise done", file=sys.stderr, flush=True)
    return rows


def _row(name: str, ranks: list[NDArray[np.int64]]) -> dict[str, Any]:
    both, alone, larger = (
        round(float(((rank_A > 0) & (rank_A <= 10)).mean()), 5) if len(rank_A) else 0.0 for rank_A in ranks
    )
    return {
        "name": name, "value": both, "unit": "HR@10", "num": len(ranks[0]), "network": alone, "larger_network": larger,
        "note": f"{len(ranks[0]):,} choices; network alone {alone:.4f}, larger network alone {larger:.4f}",
    }  # fmt: skip


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("hard", __doc__)
    add_stream(parser, "news")
    options = parser.parse_args(arguments)
    actions = actions_of(options.stream, options, QUICK_ACTIONS)
    rows = compare(settings_for(load_settings(), actions), actions, options.stream)
    return report("hard", arguments, rows, options.out)
