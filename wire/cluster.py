"""What all workers and servers last reported, folded from the status topic by one rule.

A partition that has moved may still be reported by its old owner, and a report may be read twice. So the newest report
of a partition is the one of the highest writer epoch, and within an epoch the latest by the reporter's clock; of a
server, the latest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from wire.status import PartitionStatus, ServerStatus, WorkerStatus, decode_status

SILENT_SERVER_MS = 10_000
"""A server that has reported nothing for so long is taken to be gone."""


@dataclass(slots=True)
class ClusterState:
    """The newest report of each partition and of each server."""

    partitions: dict[int, PartitionStatus] = field(default_factory=dict)
    servers: dict[str, ServerStatus] = field(default_factory=dict)
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
            known = self.servers.get(status.component)
            if known is None or status.time_ms >= known.time_ms:
                self.servers[status.component] = status

    def _note_worker(self, status: WorkerStatus) -> None:
        self.worker_ms = max(self.worker_ms, status.time_ms)
        for number, told in status.partitions.items():
            order = (told.writer_epoch, status.time_ms)
            if order >= self._order.get(number, (-1, -1)):
                self.partitions[number], self._order[number] = told, order

    def live_servers(self, now_ms: int) -> list[ServerStatus]:
        """Those that have reported something in the last ten seconds."""
        return [server for server in self.servers.values() if now_ms - server.time_ms < SILENT_SERVER_MS]
