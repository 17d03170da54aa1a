"""Users' features that change, and how a model is told of them.

A made stream of people in eight regions, where different items are popular; now and then somebody moves, and says so
with the next action. The same stream is learned without that feature, with the latest one added to every item token
(``action.user_features``), and with each change as a token of its own, at its time (``action.user_tokens``). Reported:
HR@10 of all choices, and of those soon after a move (without the choice that tells of it).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.single_pass import OURS, headrace, settings_for
from bench.streams.made import act, draw
from headrace.config import Settings, load_settings

Action = dict[str, Any]
NUM_ACTIONS, QUICK_ACTIONS = 40_000, 6_000
NUM_REGIONS, NUM_USERS, NUM_ITEMS = 8, 400, 600
MOVE_SHARE, LOCAL_SHARE, AFTER = 0.03, 0.85, 5
"""How often a user moves before an action; how often a user chooses what is popular in the region rather than anywhere;
how many choices after a move are reported separately."""


def moving(num: int = NUM_ACTIONS, seed: int = 0) -> Iterator[Action]:
    """The stream; nobody chooses an item twice. ``since``: actions since the user's last move, for the report alone."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, NUM_ITEMS + 1) ** 1.1
    local = np.stack([rng.permutation(popularity) for _ in range(NUM_REGIONS)])
    region, since = rng.integers(NUM_REGIONS, size=NUM_USERS), np.full(NUM_USERS, AFTER + 1)
    met = np.zeros((NUM_USERS, NUM_ITEMS), np.bool_)
    for number in range(num):
        user = int(rng.integers(NUM_USERS))
        if rng.random() < MOVE_SHARE:
            region[user], since[user] = rng.integers(NUM_REGIONS), -1
        since[user] += 1
        weight = local[region[user]] if rng.random() < LOCAL_SHARE else local.mean(axis=0)
        item = draw(rng, np.where(met[user], 0.0, weight))
        met[user, item] = True
        told = {"user_features": {"region": f"r{region[user]}"}, "since": int(since[user])}
        yield act(user, item, "click", number / 600, **told)


def ways(actions: list[Action]) -> dict[str, Settings]:
    """The settings of each way to tell the model."""
    plain = settings_for(load_settings(), actions)

    def told(*, tokens: bool) -> Settings:
        action = dataclasses.replace(plain.action, user_features=("region",), user_tokens=tokens)
        model = dataclasses.replace(plain.model, num_user_features=1, user_tokens=tokens)
        return plain.model_copy(update={"action": action, "model": model})

    return {
        "not told": plain,
        "the latest added to every token": told(tokens=False),
        "changes as tokens": told(tokens=True),
    }


def compare(actions: list[Action], seed: int = 1) -> list[dict[str, Any]]:
    """A row for each way; the value is HR@10 of the network alone: the memory knows nothing of regions."""
    moved_A = np.array([1 <= action["since"] <= AFTER for action in actions])
    rows = []
    for way, settings in ways(actions).items():
        done = headrace(settings, actions, seed)
        alone_A, both_A = (_hits(done.ranks[who]) for who in (OURS[1], OURS[0]))
        rows.append({
            "name": f"moves: {way}", "value": round(float(alone_A.mean()), 5), "unit": "HR@10, network alone",
            "after_a_move": round(float(alone_A[moved_A].mean()), 5), "with_memory": round(float(both_A.mean()), 5),
            "with_memory_after_a_move": round(float(both_A[moved_A].mean()), 5), "num": len(actions),
            "note": f"{AFTER} choices after a move {alone_A[moved_A].mean():.4f}; with the memory "
                    f"{both_A.mean():.4f}, {both_A[moved_A].mean():.4f}; {done.interactions_per_s:,.0f}/s",
        })  # fmt: skip
    return rows


def _hits(rank_A: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray((rank_A > 0) & (rank_A <= 10))


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """The rows."""
    return compare(list(moving(QUICK_ACTIONS if quick else NUM_ACTIONS)))
