"""What people choose from lists that they read from the top.

A made stream: lists of ten, in an order that ignores the user, of which place k is looked at with probability 1 / k. A
user clicks what is looked at and liked; the click says with which probability it was looked at (``propensity``). One
choice in five is free, a search: it shows what people like whatever they are shown. HR@10 of the free choices, with
``action.propensity`` and without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.output.records import interval
from bench.single_pass import OURS, headrace, settings_for
from bench.streams.made import act, draw
from headrace.config import Settings, load_settings

Action = dict[str, Any]
NUM_CHOICES, QUICK_CHOICES, SEEDS = 30_000, 6_000, 3
NUM_USERS, NUM_ITEMS, WIDTH, LISTED = 600, 400, 6, 10
FREE_SHARE, SEARCHES = 0.2, 0.17
"""The share of choices that are free; how often a user searches instead of reading a list, which yields .8 clicks."""
WEIGHTS = (1.0, 3.0, 10.0, 30.0)
"""Bounds of a choice's weight that are tried; 1 corrects nothing."""


def choices(num: int = NUM_CHOICES, seed: int = 0) -> Iterator[Action]:
    """The stream; ``free`` is for the report alone."""
    rng = np.random.default_rng(seed)
    preference, kind = rng.normal(size=(NUM_USERS, WIDTH)), rng.normal(size=(NUM_ITEMS, WIDTH))
    liking = 0.6 * preference @ kind.T + rng.normal(0, 0.7, NUM_ITEMS)
    promoted = rng.normal(size=NUM_ITEMS)
    looked = 1.0 / np.arange(1, LISTED + 1)
    done, tick = 0, 0
    while done < num:
        tick += 1
        user = int(rng.integers(NUM_USERS))
        if rng.random() < SEARCHES:
            item = draw(rng, np.exp(liking[user]))
            done += 1
            yield act(user, item, "click", tick / 600, free=True)
            continue
        shown = rng.choice(NUM_ITEMS, 40, replace=False)
        shown = shown[np.argsort(-promoted[shown])][:LISTED]
        chance = 1.0 / (1.0 + np.exp(1.5 - liking[user, shown]))
        for place in np.flatnonzero((rng.random(LISTED) < looked) & (rng.random(LISTED) < chance)).tolist():
            done, tick = done + 1, tick + 1
            yield act(user, int(shown[place]), "click", tick / 600, free=False, propensity=float(looked[place]))


def settings_of(actions: list[Action], most: float) -> Settings:
    """The settings with choices that weigh up to ``most``."""
    plain = settings_for(load_settings(), actions)
    return plain.model_copy(update={
        "action": dataclasses.replace(plain.action, propensity=True),
        "sequence": dataclasses.replace(plain.sequence, join_window_s=0.0),  # every click is a choice
        "model": dataclasses.replace(plain.model, propensity=True),
        "trainer": dataclasses.replace(plain.trainer, max_exposure_weight=most, exclude_seen="never"),
    })  # fmt: skip


def run(*, quick: bool = False, num_seeds: int = SEEDS) -> list[dict[str, Any]]:
    """A row for each bound; the value is HR@10 of network and memory together on the last half's free choices."""
    num, seeds = (QUICK_CHOICES, 1) if quick else (NUM_CHOICES, num_seeds)
    streams = [list(choices(num, seed)) for seed in range(seeds)]
    rows = []
    for most in WEIGHTS:
        found = [_free_hits(settings_of(actions, most), actions, seed) for seed, actions in enumerate(streams, 1)]
        (both, half), (alone, _) = (interval([each[who] for each in found]) for who in OURS[:2])
        what = "as chosen" if most == 1 else f"weighing up to {most:g}"
        rows.append({
            "name": f"exposure: {what}", "value": round(both, 5), "unit": "HR@10, free choices",
            "half_width": round(half, 5), "network": round(alone, 5), "num_seeds": seeds,
            "note": f"± {half:.4f}; network alone {alone:.4f}",
        })  # fmt: skip
    return rows


def _free_hits(settings: Settings, actions: list[Action], seed: int) -> dict[str, float]:
    done = headrace(settings, actions, seed)
    free_A = np.array([action["free"] for action in actions])
    free_A[: len(actions) // 2] = False
    return {who: float(((rank_A > 0) & (rank_A <= 10))[free_A].mean()) for who, rank_A in done.ranks.items()}
