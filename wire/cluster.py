"""The last report of every worker, server and trainer, folded from the status topic by one rule.

After a partition has moved, its old owner may still report it. So the newest report of a partition is the last in the
topic of those with the highest writer epoch, unless its worker has been silent (`SILENT_MS`): where the sequences
topic was made anew, epochs begin anew as well. Of a server or a trainer it is the last. The reporters' clocks decide
nothing: a report whose clock is an hour ahead is a report like any other, and its age is the time since it was heard.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from wire.holding import partitions_held
from wire.status import PartitionStatus, ServerStatus, TrainerStatus, WorkerStatus, role_of, status_of

SILENT_MS = 10_000
"""A process that has been silent for this long is not live."""
FORGOTTEN_MS = 3_600_000
"""A process that has been silent for this long is forgotten."""


@dataclass(slots=True)
class ClusterState:
    """The newest report of each partition, server and trainer."""

    workers: dict[int, PartitionStatus] = field(default_factory=dict)
    """Partition → its state, as its worker reports it."""
    worker_of: dict[int, WorkerStatus] = field(default_factory=dict)
    """Partition → the report with that state."""
    servers: dict[str, ServerStatus] = field(default_factory=dict)
    trainers: dict[str, TrainerStatus] = field(default_factory=dict)
    action_ends: dict[int, int] = field(default_factory=dict)
    """Where the partitions of the actions topic end: see `see_ends`."""
    caught_up_ms: dict[int, int] = field(default_factory=dict)
    """Partition → when its worker was last seen to have applied all of it."""
    trained_ms: dict[int, int] = field(default_factory=dict)
    """Partition → when the trainer was last seen to have trained all that is relayed."""
    line: str | None = None
    """The line of training whose servers count; None: all."""
    heard_s: float = field(default_factory=time.monotonic)
    """When the broker last answered (monotonic); set by the reader of the reports."""
    told_ms: dict[tuple[str, str], int] = field(default_factory=dict)
    """A process's role and name → when it last reported, whatever its line."""

    def note(self, value: bytes | None) -> None:
        """Add an earlier record of the status topic, in order, at its own time unless that is in the future. Unreadable
        ones are ignored: another build may have written them."""
        self._keep(value, lambda told_ms: min(told_ms, time.time_ns() // 1_000_000))

    def hear(self, value: bytes | None, now_ms: int) -> None:
        """Add a record that has just arrived, at ``now_ms`` by this process's own clock."""
        self._keep(value, lambda _: now_ms)

    def _keep(self, value: bytes | None, when: Callable[[int], int]) -> None:
        status = status_of(value)
        if status is None:
            return
        status = msgspec.structs.replace(status, time_ms=when(status.time_ms))
        self.told_ms[role_of(status), status.component] = status.time_ms
        if isinstance(status, WorkerStatus):
            self._note_worker(status)
        elif isinstance(status, ServerStatus):
            if self.line in (None, status.line):
                self.servers[status.component] = status
            else:
                self.servers.pop(status.component, None)
        else:
            self.trainers[status.component] = status

    def see_ends(self, action_ends: dict[int, int], now_ms: int) -> None:
        """Note where the partitions of the actions topic end, as the broker said at ``now_ms``."""
        self.action_ends = action_ends
        for partition, end in action_ends.items():
            if self.workers.get(partition, PartitionStatus()).applied_offset + 1 >= end:
                self.caught_up_ms[partition] = now_ms

    def see_trained(self, next_numbers: Mapping[int, int], now_ms: int) -> None:
        """Note which example of each partition the trainer takes next."""
        for partition, number in next_numbers.items():
            if self.workers.get(partition, PartitionStatus()).relayed_number < number:
                self.trained_ms[partition] = now_ms

    def _note_worker(self, status: WorkerStatus) -> None:
        for partition, reported in status.partitions.items():
            before = self.worker_of.get(partition)
            if (
                before is None
                or reported.writer_epoch >= self.workers[partition].writer_epoch
                or status.time_ms - before.time_ms >= SILENT_MS
            ):
                self.workers[partition], self.worker_of[partition] = reported, status

    def forget_silent(self, now_ms: int) -> list[tuple[str, str]]:
        """Forget the processes that have been silent for an hour; their roles and names. A worker whose partition
        nobody else has taken is not forgotten: its report is the last word on that partition."""
        needed = {("worker", each.component) for each in self.worker_of.values()}
        gone = [who for who, ms in self.told_ms.items() if now_ms - ms >= FORGOTTEN_MS and who not in needed]
        for role, name in gone:
            del self.told_ms[role, name]
            if role != "worker":
                (self.servers if role == "server" else self.trainers).pop(name, None)
        return gone

    @property
    def worker_ms(self) -> int:
        """When a worker that owns a partition was last heard from; 0 before any was."""
        return max((each.time_ms for each in self.worker_of.values()), default=0)

    def broker_silent_s(self) -> float:
        """How long the broker has been silent."""
        return round(max(0.0, time.monotonic() - self.heard_s), 3)

    def worker_silent_s(self, partition: int, now_ms: int) -> float:
        """How long the worker of a partition has been silent; 0 if there never was one."""
        status = self.worker_of.get(partition)
        return age_s(now_ms, status.time_ms) if status is not None else 0.0

    def dead_letters(self) -> dict[str, int]:
        """Reason → dead letters, as far as the workers' stores remember; the most frequent first."""
        found: Counter[str] = Counter()
        for status in self.workers.values():
            found.update(status.dead)
        return dict(found.most_common())

    def live_servers(self, now_ms: int) -> list[ServerStatus]:
        """The servers that have reported in the last ten seconds."""
        return [server for server in self.servers.values() if now_ms - server.time_ms < SILENT_MS]

    def unheld(self, now_ms: int, line: str) -> frozenset[int]:
        """The partitions whose users no live server of this line of training answers; none while no server says how
        many there are, or none has a version."""
        live = [each for each in self.live_servers(now_ms) if each.line == line]
        if all(each.epoch < 0 for each in live):
            return frozenset()
        if any(not each.partitions and each.epoch >= 0 for each in live):  # of an earlier build: it holds all
            return frozenset()
        num = max((each.num_partitions for each in live), default=0)
        return frozenset(range(num)).difference(*(partitions_held(each.partitions, num) for each in live))

    def processes(self, now_ms: int) -> list[dict[str, Any]]:
        """Every process that has not been forgotten: its role, its name, and how long it has been silent."""
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
    """Seconds since a wall-clock time; 0 if there is none (0 or -1)."""
    return round(max(0, now_ms - then_ms) / 1000, 3) if then_ms > 0 else 0.0
