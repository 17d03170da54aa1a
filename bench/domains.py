"""One model of all domains, or one for each?

Amazon's reviews of food and of kitchenware by the same people: HR@10 of each domain's choices among its own items, for
a model that learns this domain alone, one that learns both in order of time at a constant rate, and one whose rate
warms up, stays and anneals (`trainer.schedule = "wsa"`; CPRec, 2025). All predict before they learn. The domain of a
choice is known, as it is if each domain has its own pages: the other domain's items do not compete.

CPRec's own order as well: what comes before the rate anneals one domain after the other, then both mixed. Then only the
choices of the mixed part are counted, for all ways (the rows "at the end").
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.evaluation import LATELY
from bench.options import actions_of, add_stream, parser_of
from bench.output.report import report
from bench.single_pass import OURS, headrace, settings_for
from headrace.config import Settings, load_settings
from kernels.memory import MemoryEvents
from trainer.learner.step import Learner
from wire.hashing import key_hash

Action = dict[str, Any]
WARMED, STABLE, FINAL_RATIO = 0.01, 0.7, 0.1
"""Shares of the steps after which the rate is at its full value, and after which it anneals; and its final ratio."""
QUICK_ACTIONS = 3_000


def annealed(settings: Settings, num_actions: int) -> Settings:
    """The same settings with a schedule for this many actions."""
    num_steps = num_actions // settings.trainer.max_step_targets
    trainer = dataclasses.replace(
        settings.trainer, schedule="wsa", warmup_steps=round(WARMED * num_steps),
        stable_steps=round((STABLE - WARMED) * num_steps), anneal_steps=max(1, round((1 - STABLE) * num_steps)),
        final_lr_ratio=FINAL_RATIO,
    )  # fmt: skip
    return settings.model_copy(update={"trainer": trainer})


class OwnDomain:
    """Leaves the items of other domains out of the competition."""

    def __init__(self, actions: list[Action]) -> None:
        self._names = sorted({action["domain"] for action in actions})
        self._domain_of = {key_hash(action["item"]): self._names.index(action["domain"]) for action in actions}
        self._domain_V = np.zeros(0, np.int64)

    def __call__(self, learner: Learner, events: MemoryEvents) -> MemoryEvents:
        """The events, with the other domains' rows among those already met."""
        self._follow(learner)
        num = len(events)
        begins, rows = np.zeros(num, np.int64), list[NDArray[np.int32]]()
        others = [np.flatnonzero((self._domain_V >= 0) & (self._domain_V != each)) for each in range(self._num)]
        end = 0
        for r, target in enumerate(events.target_R.tolist()):
            met = events.met_rows[events.met_begin_R[r] : events.met_end_R[r]]
            rows.append(np.concatenate([met, others[self._domain_V[target]].astype(np.int32)]) if target else met)
            begins[r], end = end, end + len(rows[-1])
        ends = np.append(begins[1:], end)
        return dataclasses.replace(
            events, met_rows=np.concatenate([events.met_rows[:0], *rows]), met_begin_R=begins, met_end_R=ends[:num]
        )

    def of(self, item_A: NDArray[np.int64]) -> NDArray[np.str_]:
        """(A,) the domains of items (hashes)."""
        return np.array([self._names[self._domain_of[item]] for item in item_A.tolist()])

    @property
    def _num(self) -> int:
        return 1 + max(self._domain_of.values())

    def _follow(self, learner: Learner) -> None:
        """Learn the domains of rows that are new."""
        new = np.arange(len(self._domain_V), learner.items.num_rows)
        keys = learner.items.keys_of(new).tolist()
        found = [self._domain_of[key] if row else -1 for row, key in zip(new, keys, strict=True)]
        self._domain_V = np.append(self._domain_V, np.array(found, np.int64))


def hits(settings: Settings, actions: list[Action], seed: int) -> dict[str, NDArray[np.bool_]]:
    """For each domain, whether each of its choices was among the first ten of the domain's items. Every action is a
    choice."""
    limit = OwnDomain(actions)
    done = headrace(settings, actions, seed, limit=limit)
    rank_A, domain_A = done.ranks[OURS[0]], limit.of(done.item_A)
    if len(rank_A) != len(actions):
        raise ValueError(f"expected {len(actions)} choices, got {len(rank_A)}; every action must be a choice")
    hit_A = (rank_A > 0) & (rank_A <= 10)
    return {domain: hit_A[domain_A == domain] for domain in np.unique(domain_A).tolist()}


def domain_by_domain(actions: list[Action]) -> list[Action]:
    """The same actions: those before the rate anneals by domain, each domain in order of time, then the others as they
    came. What comes late to a user's sequence takes the time of the one before it."""
    num = round(STABLE * len(actions))
    return [*sorted(actions[:num], key=lambda action: str(action["domain"])), *actions[num:]]


def compare(settings: Settings, actions: list[Action], seed: int = 1) -> list[dict[str, Any]]:
    """A row for each domain and way of learning."""
    trainer = dataclasses.replace(settings.trainer, exclude_seen="always")
    settings = settings.model_copy(update={"trainer": trainer})
    ways = {
        "both, constant rate": hits(settings, actions, seed),
        "both, WSA": hits(annealed(settings, len(actions)), actions, seed),
    }
    ordered = hits(annealed(settings, len(actions)), domain_by_domain(actions), seed)
    last = actions[round(STABLE * len(actions)) :]
    rows = []
    for domain in sorted({action["domain"] for action in actions}):
        own = [action for action in actions if action["domain"] == domain]
        alone = hits(settings, own, seed)[domain]
        rows.append(_row(domain, "this domain alone", alone, None))
        rows += [_row(domain, way, found[domain], alone) for way, found in ways.items()]
        num = sum(action["domain"] == domain for action in last)
        rows.append(_row(domain, "this domain alone, at the end", alone[-num:], None))
        at_end = ways | {"domain by domain, then both, WSA": ordered}
        rows += [
            _row(domain, f"{way}, at the end", found[domain][-num:], alone[-num:]) for way, found in at_end.items()
        ]
    return rows


def _row(domain: str, way: str, hit_A: NDArray[np.bool_], alone: NDArray[np.bool_] | None) -> dict[str, Any]:
    target = None if alone is None else round(float(alone.mean()), 5)
    return {
        "name": f"{domain}: {way}", "value": round(float(hit_A.mean()), 5), "unit": "HR@10", "target": target,
        "met": None if target is None else bool(hit_A.mean() > target), "num": len(hit_A),
        "note": f"{len(hit_A):,} choices; last {LATELY:,}: {hit_A[-LATELY:].mean():.4f}",
    }  # fmt: skip


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("domains", __doc__)
    add_stream(parser, "amazon")
    options = parser.parse_args(arguments)
    actions = actions_of(options.stream, options, QUICK_ACTIONS)
    return report("domains", arguments, compare(settings_for(load_settings(), actions), actions), options.out)
