"""What a worker does once a second: see how far its partitions have come, and report it to the status topic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stream.claim import check_reached
from stream.config import Settings
from stream.held_back import HeldBack
from stream.kafka_producer import Producer
from stream.metrics import WorkerMetrics
from stream.partition import Partition
from wire.kafka.async_consumer import end_offsets, plain_consumer
from wire.kafka.options import BROKER_ERRORS
from wire.kafka.refusal import refusal
from wire.kafka.retry import Absence
from wire.status import PartitionStatus, WorkerStatus, encode_status, key_of
from wire.topics import Topics

BEAT_S = 1.0
ANSWER_S = 5.0
"""A broker that takes longer to answer counts as away."""
CHECK_S = 10.0
"""How often to look closely at a topic that seems to end before what was applied. The embedded broker's often seem to:
for the end, it gives the start of the last batch."""


@dataclass(slots=True)
class Heartbeat:
    """Reports ``partitions``, which the worker changes as they are assigned. ``fail`` ends the worker."""

    settings: Settings
    component: str
    disk: str
    process: str
    partitions: Mapping[int, Partition]
    producer: Producer
    metrics: WorkerMetrics
    fail: Callable[[BaseException], None]
    reached: dict[int, int] = field(default_factory=dict)
    """Partition → the last offset applied here, including partitions that disappeared with their topic."""
    _check_at_s: float = 0.0
    """Monotonic time before which an end that is too low is not looked at again."""

    async def run(self) -> None:
        """Every second: look up the ends of the partitions, make stalled ones catch up, and report."""
        kafka, topic = self.settings.kafka, self._topics.actions
        absence = Absence("reporting", kafka)
        held_back = HeldBack(topic, self.metrics)
        while True:
            try:
                async with plain_consumer(kafka) as consumer, plain_consumer(kafka, "read_uncommitted") as everything:
                    while True:
                        await asyncio.sleep(BEAT_S)
                        async with asyncio.timeout(ANSWER_S):
                            numbers, applied = sorted(self.partitions), self._applied()
                            ends = await end_offsets(consumer, topic, numbers)
                            self.metrics.heard_s = time.monotonic()
                            real_ends = await end_offsets(everything, topic, numbers)
                            # A partition that has moved meanwhile is forgotten, and stays so.
                            ends = {number: end for number, end in ends.items() if number in self.partitions}
                            held_back.note(ends, real_ends)
                            self._look_after(ends)
                            await self._report()
                        if not absence.is_over or self._seems_short(ends, applied):
                            await self._check_reached()
                            absence.end()
            except BROKER_ERRORS as error:
                if refused := refusal(error, kafka.bootstrap, "asking for the end offsets"):
                    self.fail(refused)
                absence.note(error)
                await asyncio.sleep(BEAT_S)

    @property
    def _topics(self) -> Topics:
        return Topics.under(self.settings.kafka.prefix)

    def _applied(self) -> dict[int, int]:
        """Partition → the offset of the record that was applied last, of those that are claimed."""
        reached = {number: partition.reached for number, partition in self.partitions.items()}
        return {number: found[0] for number, found in reached.items() if found is not None}

    def _seems_short(self, ends: Mapping[int, int], applied: Mapping[int, int]) -> bool:
        """Whether a partition ends before what had been ``applied`` when the broker was asked for the ``ends``."""
        now_s = time.monotonic()
        if now_s < self._check_at_s or all(ends.get(number, offset + 1) > offset for number, offset in applied.items()):
            return False
        self._check_at_s = now_s + CHECK_S
        return True

    async def _check_reached(self) -> None:
        """Whether the broker still has what was applied. Raises `TopicReplaced`."""
        for number, partition in sorted(self.partitions.items()):
            if (reached := partition.reached) is not None:
                await asyncio.to_thread(check_reached, self.settings, number, *reached)

    def _look_after(self, ends: dict[int, int]) -> None:
        for number, end in ends.items():
            partition = self.partitions[number]
            partition.look(end)
            status = partition.status()
            self.reached[number] = status.applied_offset
            self.metrics.show(number, status, max(0, end - 1 - status.applied_offset))

    async def _report(self) -> None:
        statuses: dict[int, PartitionStatus] = {number: part.status() for number, part in self.partitions.items()}
        status = WorkerStatus(
            component=self.component, time_ms=time.time_ns() // 1_000_000, partitions=statuses, disk=self.disk,
            process=self.process, num_partitions=self.settings.kafka.partitions,
        )  # fmt: skip
        # It may get lost: the next one follows in a second. But if one is refused, all will be.
        sent = await self.producer.send(self._topics.status, 0, key_of(status), encode_status(status))
        sent.add_done_callback(self._note_refusal)

    def _note_refusal(self, sent: asyncio.Future[Any]) -> None:
        error = None if sent.cancelled() else sent.exception()
        if error is not None and (refused := refusal(error, self.settings.kafka.bootstrap, "writing")):
            self.fail(refused)
