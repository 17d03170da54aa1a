"""What the other processes report: where each worker, server and trainer is, and how long ago it said so."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

from wire.status import PartitionStatus, ServerStatus, TrainerStatus, WorkerStatus, decode_status

SILENT_MS = 10_000
"""A process that has said nothing for so long is not live."""
FORGOTTEN_MS = 3_600_000
"""One that has said nothing for so long is not mentioned any more."""


@dataclass(slots=True)
class ClusterState:
    """The newest status of each process, the ends of the actions topic, and when the broker was last heard."""

    action_ends: dict[int, int] = field(default_factory=dict)
    workers: dict[int, PartitionStatus] = field(default_factory=dict)
    """Partition → where its worker is."""
    worker_of: dict[int, WorkerStatus] = field(default_factory=dict)
    """Partition → the status that said so."""
    servers: dict[str, ServerStatus] = field(default_factory=dict)
    trainers: dict[str, TrainerStatus] = field(default_factory=dict)
    heard_s: float = field(default_factory=time.monotonic)
    """When the broker last answered (monotonic)."""

    def note(self, value: bytes) -> None:
        """One record of the status topic; what cannot be read is passed over."""
        try:
            status = decode_status(value)
        except msgspec.DecodeError:
            return
        if isinstance(status, WorkerStatus):
            self._note_worker(status)
        elif isinstance(status, ServerStatus):
            self.servers[status.component] = status
        else:
            self.trainers[status.component] = status

    def _note_worker(self, status: WorkerStatus) -> None:
        for partition, told in status.partitions.items():
            known = self.workers.get(partition)
            if known is None or told.writer_epoch >= known.writer_epoch:
                self.workers[partition], self.worker_of[partition] = told, status

    def broker_silent_s(self) -> float:
        """How long the broker has not answered."""
        return round(max(0.0, time.monotonic() - self.heard_s), 3)

    def worker_silent_s(self, partition: int, now_ms: int) -> float:
        """How long the worker of a partition has said nothing; 0 where there never was one."""
        status = self.worker_of.get(partition)
        return age_s(now_ms, status.time_ms) if status is not None else 0.0

    def live_servers(self, now_ms: int) -> list[ServerStatus]:
        """Those that said something of late."""
        return [server for server in self.servers.values() if now_ms - server.time_ms < SILENT_MS]

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
