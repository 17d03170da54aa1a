"""Applies records to the store of a claimed partition: in write batches of bounded size, and without gaps.

Offsets decide, not Faust: records at or below the store's applied offset are skipped, and missing records are read with
a plain consumer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from state.store import PartitionStore
from stream.config import Settings
from stream.logs import log
from stream.metrics import WorkerMetrics
from stream.relay import OutboxRelay
from stream.transport import Record, Stretch
from wire.errors import brief
from wire.kafka.async_consumer import read_range
from wire.kafka.options import BROKER_ERRORS
from wire.kafka.refusal import refusal
from wire.topics import Topics

MAX_BATCH_BYTES = 600_000
"""A write batch blocks the event loop: about three thousand actions are enough."""


def joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """``stretches`` in the order of their arrival, joined where one begins at the end of the one before."""
    runs: list[list[Stretch]] = []
    begin = end = -1
    for each in stretches:
        if runs and begin <= each.begin <= end:
            runs[-1].append(each)
            end = max(end, each.end)
        else:
            runs.append([each])
            begin, end = each.begin, each.end
    return [run[0] if len(run) == 1 else _as_one(run) for run in runs]


def _as_one(run: Sequence[Stretch]) -> Stretch:
    """Copies each record once, however many stretches there are."""
    records = list(chain.from_iterable(each.records for each in run))
    return Stretch(run[0].begin, max(each.end for each in run), records)


def batches(records: Sequence[Record], max_records: int) -> Iterator[list[Record]]:
    """``records`` in order, divided so that each batch stays within this bound and `MAX_BATCH_BYTES` (or is a single
    record)."""
    batch: list[Record] = []
    num_bytes = 0
    for record in records:
        size = len(record.value or b"")
        if batch and (len(batch) >= max_records or num_bytes + size > MAX_BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(record)
        num_bytes += size
    if batch:
        yield batch


class Applier:
    """The store of one claim. Whoever calls `apply` or `catch_up` holds the partition's lock."""

    def __init__(
        self, partition: int, store: PartitionStore, relay: OutboxRelay, settings: Settings, metrics: WorkerMetrics,
        num_gone: int,
    ) -> None:  # fmt: skip
        self.store = store
        self._partition, self._relay, self._settings, self._metrics = partition, relay, settings, metrics
        self._topic = Topics.under(settings.kafka.prefix).actions
        self._is_lost = False
        self.applied_s = time.monotonic()
        """When a record was last applied."""
        self.num_gone = num_gone
        """Offsets that retention removed before this worker read them, in all claims."""

    @property
    def is_full(self) -> bool:
        """Whether the outbox is so long that nothing may be applied before the relay has shortened it."""
        return self.store.outbox_len > self._settings.stream.max_outbox

    def lose(self) -> None:
        """Apply nothing any more: the claim is lost."""
        self._is_lost = True
        self._relay.drained.set()

    async def apply(self, stretches: Sequence[Stretch]) -> bool:
        """Apply each of these, and before it the records that are missing; False if that has to be tried again."""
        for each in joined(stretches):
            if each.begin > self.store.next_offset and not await self.catch_up(each.begin):
                return False
            if not await self._write(self._fresh(each.records)):
                return False
            self.store.pass_over(each.end)
        return True

    def _fresh(self, records: Sequence[Record]) -> list[Record]:
        return [record for record in records if record.offset > self.store.applied_offset]

    async def catch_up(self, stop: int) -> bool:
        """Apply the records between the store and ``stop``: Faust will not deliver them, or not soon.

        False if the broker is away. Raises `wire.errors.ClientRefused` if it refuses us.
        """
        try:
            await self._fill(stop)
        except BROKER_ERRORS as error:
            give_up_if_refused(error, self._settings, "reading")
            log.warning("reading a gap failed and will be retried", partition=self._partition, error=brief(error))
            return False
        return True

    async def _fill(self, stop: int) -> None:
        start, num_records = self.store.next_offset, 0
        async for batch in read_range(self._settings.kafka, self._topic, self._partition, start, stop, self._note_gone):
            num_records += len(batch)
            if not await self._write([Record(one.offset, one.timestamp, one.key, one.value) for one in batch]):
                return
        self.store.pass_over(stop, at_once=not num_records)
        if num_records:  # transaction markers leave gaps too, but empty ones
            log.info("read a gap", partition=self._partition, offsets=[start, stop], num_records=num_records)

    def _note_gone(self, first: int) -> None:
        """The partition begins at ``first``, after what should be read next: retention has overtaken this worker."""
        start = self.store.next_offset
        self.store.pass_over(first, at_once=True)
        if start == 0:
            log.warning("the topic no longer begins at offset 0; what came before is unknown to this worker",
                        topic=self._topic, partition=self._partition, first_offset=first)  # fmt: skip
            return
        num_gone = max(0, first - start)
        self.num_gone += num_gone
        self._metrics.gone.inc(num_gone)
        log.error(
            "actions were lost: retention removed them before a worker read them; raise kafka.actions_retention_s, and "
            "watch the ingest lag", topic=self._topic, partition=self._partition, offsets=[start, first - 1],
            num_records=num_gone,
        )  # fmt: skip

    async def _write(self, records: Sequence[Record]) -> bool:
        """Apply in write batches of bounded size; False if the partition was lost meanwhile."""
        for batch in batches(records, self._settings.stream.max_batch):
            if not await self._wait_for_outbox():
                return False
            before = self.store.counts
            with self._metrics.batch_seconds.time():
                applied = self.store.apply(batch)
            self._metrics.count(len(batch), before, applied.counts)
            self._metrics.forgotten.inc(applied.num_forgotten)
            self.applied_s = time.monotonic()
            self._relay.wake()
            await asyncio.sleep(0)
        return True

    async def _wait_for_outbox(self) -> bool:
        """Wait until the outbox is not too long; False if the partition was lost meanwhile."""
        while self.is_full and not self._is_lost:
            self._relay.drained.clear()
            await self._relay.drained.wait()
        return not self._is_lost


def give_up_if_refused(error: BaseException, settings: Settings, doing: str) -> None:
    """Raise `wire.errors.ClientRefused` if ``error`` says that no retry would help."""
    if refused := refusal(error, settings.kafka.bootstrap, doing):
        raise refused from error
