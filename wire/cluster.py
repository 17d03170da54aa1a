"""What all workers, servers and trainers last reported, folded from the status topic by one rule.

A partition that has moved may still be reported by its old owner, and a report may be read twice. So the newest report
of a partition is the one of the highest writer epoch, and within an epoch the latest by the reporter's clock; of a
server or a trainer, the latest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from wire.status import PartitionStatus, ServerStatus, TrainerStatus, WorkerStatus, decode_status

SILENT_SERVER_MS = 10_000
"""A server that has reported nothing for so long is taken to be gone."""


@dataclass(slots=True)
class ClusterState:
    """The newest report of each partition, server and trainer."""

    workers: dict[int, PartitionStatus] = field(default_factory=dict)
    worker_of: dict[int, WorkerStatus] = field(default_factory=dict)
    """Partition → the report that its state is from."""
    servers: dict[str, ServerStatus] = field(default_factory=dict)
    trainers: dict[str, TrainerStatus] = field(default_factory=dict)
    action_ends: dict[int, int] = field(default_factory=dict)
    """Where the partitions of the actions topic end; whoever reads the reports asks the broker for it."""
    worker_ms: int = 0
    """When a worker last reported, by its own clock."""
    _order: dict[int, tuple[int, int]] = field(default_factory=dict)

    def note(self, value: bytes | None) -> None:
        """Take one record of the status topic. What cannot be read is passed over: another build may write there."""
        try:
            status = decode_status(value or b"")
        except msgspec.DecodeError:
            return
        if isinstance(status, WorkerStatus):
            self._note_worker(status)
        elif isinstance(status, ServerStatus):
            _keep_latest(self.servers, status)
        else:
            _keep_latest(self.trainers, status)

    def _note_worker(self, status: WorkerStatus) -> None:
        self.worker_ms = max(self.worker_ms, status.time_ms)
        for number, told in status.partitions.items():
            order = (told.writer_epoch, status.time_ms)
            if order >= self._order.get(number, (-1, -1)):
                self.workers[number], self.worker_of[number], self._order[number] = told, status, order

    def live_servers(self, now_ms: int) -> list[ServerStatus]:
        """Those that have reported something in the last ten seconds."""
        return [server for server in self.servers.values() if now_ms - server.time_ms < SILENT_SERVER_MS]


Report = TypeVar("Report", ServerStatus, TrainerStatus)


def _keep_latest(known: dict[str, Report], status: Report) -> None:
    if status.component not in known or status.time_ms >= known[status.component].time_ms:
        known[status.component] = status
