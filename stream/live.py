"""Send the actions of a simulated world: as fast as possible in the world's own time, or live at a given rate."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from stream.config import Settings
from stream.producer import BatchConfig
from stream.sender import print_report, send_actions, show_progress
from stream.simulate import KINDS, World, WorldConfig
from wire.kafka.admin import ensure_topics


def simulate(
    settings: Settings,
    *,
    rate: float | None = None,
    num_actions: int | None = None,
    seed: int = 0,
) -> int:
    """Send ``num_actions`` (None: until interrupted) of a world's actions; returns the exit status.

    With ``rate`` (actions/s), the world begins now: joining, lag and freshness are those of live traffic.
    """
    known = tuple(kind for kind in settings.action.kinds if kind in KINDS)
    world = WorldConfig(seed=seed, kinds=known, actions_per_s=rate or WorldConfig.actions_per_s)
    ensure_topics(settings.kafka)
    actions: Iterable[dict[str, Any]] = World(world).actions()
    if rate is not None:
        actions = moved_to_now(actions, world.start_ms)
    report = send_actions(
        actions, settings.kafka, rate=rate, limit=num_actions, batch=BatchConfig.within(settings.action),
        progress=show_progress if sys.stderr.isatty() else None,
    )  # fmt: skip
    return print_report(report, settings.kafka)


def moved_to_now(actions: Iterable[dict[str, Any]], start_ms: int) -> Iterator[dict[str, Any]]:
    """The same actions, as if the world had begun when the first of them is taken; none lies in the future. Ids and
    sessions are of this run: a world that is simulated again is no repetition."""
    began_ms = time.time_ns() // 1_000_000
    for action in actions:
        now_ms = time.time_ns() // 1_000_000
        yield action | {
            "id": f"{began_ms}-{action['id']}",
            "session": f"{began_ms}-{action['session']}",
            "timestamp": min(action["timestamp"] - start_ms + began_ms, now_ms),
        }
