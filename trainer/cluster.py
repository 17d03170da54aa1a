"""What the trainer knows of the processes around it, and how old that is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from wire.cluster import ClusterState
from wire.status import ServerStatus, TrainerStatus, WorkerStatus

FORGOTTEN_MS = 3_600_000
"""A process that has said nothing for so long is not mentioned any more."""


@dataclass(slots=True)
class Observed(ClusterState):
    """The newest status of each process, and when the broker was last heard."""

    heard_s: float = field(default_factory=time.monotonic)
    """When the broker last answered (monotonic)."""

    def broker_silent_s(self) -> float:
        """How long the broker has not answered."""
        return round(max(0.0, time.monotonic() - self.heard_s), 3)

    def worker_silent_s(self, partition: int, now_ms: int) -> float:
        """How long the worker of a partition has said nothing; 0 where there never was one."""
        status = self.worker_of.get(partition)
        return age_s(now_ms, status.time_ms) if status is not None else 0.0

    def processes(self, now_ms: int) -> list[dict[str, Any]]:
        """Every process that is not forgotten: its role, name, and how long it has been silent."""
        workers = {each.component: each for each in self.worker_of.values()}
        roles: list[tuple[str, WorkerStatus | ServerStatus | TrainerStatus]] = [
            *(("worker", each) for each in workers.values()),
            *(("standby" if each.is_standby else "trainer", each) for each in self.trainers.values()),
            *(("server", each) for each in self.servers.values()),
        ]
        return [
            {"role": role, "component": each.component, "silent_s": age_s(now_ms, each.time_ms)}
            for role, each in roles
            if now_ms - each.time_ms < FORGOTTEN_MS
        ]


def age_s(now_ms: int, then_ms: int) -> float:
    """Seconds since a wall-clock time; 0 where there is none (0 or -1)."""
    return round(max(0, now_ms - then_ms) / 1000, 3) if then_ms > 0 else 0.0
