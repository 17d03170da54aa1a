"""Small streams, and what a rival is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.rivals import StreamInfo
from bench.single_pass import settings_for
from bench.streams.events import Step, num_items, steps
from headrace.config import Settings, load_settings
from headrace.file_training import file_configs

START_MS = 1_700_000_000_000
Actions = list[dict[str, Any]]


def chain(num: int = 400, num_users: int = 12, num_items: int = 12, seed: int = 0) -> Actions:
    """Each user goes from item to item in one fixed order, mostly; items of even number are liked by even users."""
    rng = np.random.default_rng(seed)
    at = rng.integers(0, num_items, num_users)
    made: Actions = []
    for second in range(num):
        user = int(rng.integers(num_users))
        at[user] = (at[user] + 1) % num_items if rng.random() < 0.9 else rng.integers(num_items)
        kinds = ["impression", "click"] + (["like"] if (user + int(at[user])) % 2 == 0 else [])
        made.append({"user": user, "item": int(at[user]), "action": kinds, "timestamp": START_MS + 100_000 * second})
    return made


def settings_of(actions: Sequence[dict[str, Any]]) -> Settings:
    """The defaults, in steps of 16."""
    import dataclasses

    settings = settings_for(load_settings(), list(actions))
    trainer = dataclasses.replace(settings.trainer, max_step_targets=16, file_take=16)
    return settings.model_copy(update={"trainer": trainer})


def info_of(actions: Actions) -> StreamInfo:
    """What a rival is told."""
    return StreamInfo(num_items(actions), file_configs(settings_of(actions), actions[0])[2])


def steps_of(actions: Actions, size: int | None = None) -> list[Step]:
    """All steps."""
    return list(steps(settings_of(actions), actions, size))
