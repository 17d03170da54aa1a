"""One partition of the actions topic, from its assignment to its loss.

Of two tasks, one claims the partition (`stream.claim`) and relays the store's outbox, and starts over after errors; the
other applies what Faust delivers. They take turns under one lock. Offsets decide, not Faust: records at or below the
store's applied offset are skipped, and missing records are read with a plain consumer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from state.store import PartitionStore
from stream.app import Record, record_of
from stream.claim import Claim, Headers, TopicIds, claim
from stream.config import Settings
from stream.kafka_producer import Producer
from stream.logs import log
from stream.metrics import WorkerMetrics
from stream.relay import Fenced, OutboxRelay
from wire.kafka.async_consumer import read_range
from wire.kafka.options import BROKER_ERRORS
from wire.kafka.refusal import refusal
from wire.status import PartitionStatus
from wire.topics import Topics

RETRY_S = 1.0
STALL_S = 1.5
"""Records that have been available but not applied for this long are read without Faust."""
MAX_BATCH_BYTES = 600_000
"""A write batch blocks the event loop: about three thousand actions are enough."""
MAX_WAITING = 4
"""Batches that may wait for a store before Faust has to wait."""


def batches(records: Sequence[Record], max_records: int, max_bytes: int = MAX_BATCH_BYTES) -> Iterator[list[Record]]:
    """``records`` in order, divided so that each batch stays within both bounds (or is a single record)."""
    batch: list[Record] = []
    num_bytes = 0
    for record in records:
        size = len(record.value or b"")
        if batch and (len(batch) >= max_records or num_bytes + size > max_bytes):
            yield batch
            batch, num_bytes = [], 0
        batch.append(record)
        num_bytes += size
    if batch:
        yield batch


@dataclass(frozen=True)
class Shared:
    """What a worker's partitions share."""

    settings: Settings
    topics: Topics
    metrics: WorkerMetrics
    producer: Producer
    ids: TopicIds
    """Of the topics as they were when this worker started."""
    fail: Callable[[BaseException], None]
    """Ends the worker because of an error that cannot be handled here."""


class Partition:
    """An assigned partition; its tasks run from construction until `close`."""

    def __init__(self, number: int, shared: Shared) -> None:
        self.number = number
        self._shared = shared
        self._store: PartitionStore | None = None
        self._relay: OutboxRelay | None = None
        self._turn = asyncio.Lock()
        """Held while the store is changed."""
        self._waiting: asyncio.Queue[list[Any]] = asyncio.Queue(MAX_WAITING)
        self._claimed = asyncio.Event()
        self._fresh_s = time.monotonic()
        """When a record was last applied."""
        self._read_to = 0
        """Offset below which nothing is left to read. Transaction markers may follow the last applied record."""
        self._num_gone = 0
        """Offsets that retention removed before this worker read them."""
        self._catching_up: asyncio.Task[None] | None = None
        self._claiming: asyncio.Future[Claim] | None = None
        self._closing = threading.Event()
        self._tasks = [asyncio.create_task(self._guard(self._own())), asyncio.create_task(self._guard(self._apply()))]

    async def offer(self, events: list[Any]) -> None:
        """Accept Faust events, in order; waits while the partition is behind."""
        await self._waiting.put(events)

    async def close(self) -> None:
        """Stop, and close the store. What was not applied or relayed is left to the next owner."""
        self._closing.set()
        tasks = [*self._tasks, *([self._catching_up] if self._catching_up else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        store, self._store = self._store, None
        if store is None and self._claiming is not None:
            with suppress(Exception):
                store = (await self._claiming).store
        if store is not None:
            await asyncio.to_thread(store.close)

    async def _guard(self, work: Any) -> None:
        """End the worker on errors that cannot be handled here."""
        try:
            await work
        except Exception as error:  # noqa: BLE001
            log.error("partition failed", partition=self.number, error=repr(error))
            self._shared.fail(error)

    def _give_up_if_refused(self, error: BaseException) -> None:
        if refused := refusal(error, self._shared.settings.kafka.bootstrap):
            raise refused from error

    # Claiming and relaying

    async def _own(self) -> None:
        shared = self._shared
        while True:
            generation = shared.producer.generation
            try:
                async with self._turn:
                    await self._claim()
                assert self._relay is not None
                await self._relay.run()
            except Fenced as error:
                self._lose_claim()
                # Either the group has given the partition to another worker, and we will hear of it within a session
                # timeout; or the other one no longer owns it, and the partition is still ours after that.
                shared.metrics.fenced.inc()
                log.warning("fenced off", partition=self.number, why=str(error))
                await asyncio.sleep(shared.settings.stream.session_timeout_s)
            except BROKER_ERRORS as error:
                self._give_up_if_refused(error)
                self._lose_claim()
                log.warning("the relay failed and will be restarted", partition=self.number, error=repr(error))
                await asyncio.sleep(RETRY_S)
                await self._renew(generation)

    def _lose_claim(self) -> None:
        self._claimed.clear()
        if self._relay is not None:
            self._relay.drained.set()

    async def _claim(self) -> None:
        shared = self._shared
        loop = asyncio.get_running_loop()

        def write_fence(partition: int, key: bytes, value: bytes, headers: Headers) -> int:
            writing = self._write_fence(partition, key, value, headers)
            return asyncio.run_coroutine_threadsafe(writing, loop).result(60.0)

        store, self._store = self._store, None
        self._claiming = asyncio.ensure_future(
            asyncio.to_thread(claim, shared.settings, self.number, store, shared.ids, write_fence, self._closing)
        )
        # A thread cannot be cancelled: `close` asks it to end, waits for it, and closes the store that it opened.
        taken = await asyncio.shield(self._claiming)
        self._store = taken.store
        shared.metrics.restores.inc(taken.was_restored)
        self._relay = OutboxRelay(
            taken.store, shared.producer, shared.settings.kafka, shared.metrics, taken.position, taken.log
        )
        self._fresh_s, self._read_to = time.monotonic(), 0
        self._claimed.set()
        log.info("partition claimed", partition=self.number, writer_epoch=taken.log.writer_epoch,
                 applied_offset=taken.store.applied_offset)  # fmt: skip

    async def _write_fence(self, partition: int, key: bytes, value: bytes, headers: Headers) -> int:
        sent = await self._shared.producer.send(self._shared.topics.sequences, partition, key, value, headers=headers)
        return int((await sent).offset)

    async def _renew(self, generation: int) -> None:
        """Replace the producer, however long the broker is away."""
        while True:
            try:
                await self._shared.producer.renew(generation)
            except BROKER_ERRORS:
                await asyncio.sleep(RETRY_S)
            else:
                return

    # Applying

    async def _apply(self) -> None:
        while True:
            events = await self._waiting.get()
            records = [record_of(event) for event in events]
            while not await self._take_turn(records):  # noqa: ASYNC110
                await asyncio.sleep(RETRY_S)  # the broker is away: nothing would wake us
            for event in events:
                event.ack()

    async def _take_turn(self, records: Sequence[Record]) -> bool:
        """Apply ``records``; False if it has to be retried."""
        await self._claimed.wait()
        async with self._turn:
            store = self._store
            if store is None or not self._claimed.is_set():
                return False
            fresh = [record for record in records if record.offset > store.applied_offset]
            try:
                if fresh and fresh[0].offset > self._next_offset(store):
                    await self._fill(store, fresh[0].offset)
            except BROKER_ERRORS as error:
                self._give_up_if_refused(error)
                log.warning("reading a gap failed and will be retried", partition=self.number, error=repr(error))
                return False
            return await self._write(store, [record for record in fresh if record.offset > store.applied_offset])

    async def _fill(self, store: PartitionStore, stop: int) -> None:
        """Apply the records between the store and ``stop``: Faust will not deliver them, or not soon."""
        start, num_records = self._next_offset(store), 0
        async for batch in read_range(
            self._shared.settings.kafka, self._shared.topics.actions, self.number, start, stop, self._note_gone
        ):
            num_records += len(batch)
            if not await self._write(store, [Record(one.offset, one.timestamp, one.key, one.value) for one in batch]):
                return
        self._read_to = max(self._read_to, stop)
        if num_records:  # transaction markers leave gaps too, but empty ones
            log.info("read a gap", partition=self.number, offsets=[start, stop], num_records=num_records)

    def _note_gone(self, first: int) -> None:
        """The partition begins at ``first``, after what should be read next: retention has overtaken this worker."""
        assert self._store is not None
        start = self._next_offset(self._store)
        self._read_to = max(self._read_to, first)
        if start == 0:
            log.warning("the topic no longer begins at offset 0; what came before is unknown to this worker",
                        topic=self._shared.topics.actions, partition=self.number, first_offset=first)  # fmt: skip
            return
        num_gone = max(0, first - start)
        self._num_gone += num_gone
        self._shared.metrics.gone.inc(num_gone)
        log.error(
            "actions were lost: retention removed them before a worker read them; raise kafka.actions_retention_s, and "
            "watch the ingest lag", topic=self._shared.topics.actions, partition=self.number,
            offsets=[start, first - 1], num_records=num_gone,
        )  # fmt: skip

    def _next_offset(self, store: PartitionStore) -> int:
        """The lowest offset that may hold a record that is not in the store."""
        return max(store.applied_offset + 1, self._read_to)

    async def _write(self, store: PartitionStore, records: Sequence[Record]) -> bool:
        """Apply in write batches of bounded size; False if the partition was lost meanwhile."""
        for batch in batches(records, self._shared.settings.stream.max_batch):
            if not await self._room(store):
                return False
            metrics, before = self._shared.metrics, store.counts
            with metrics.batch_seconds.time():
                applied = store.apply(batch)
            metrics.count(len(batch), before, applied.counts)
            self._fresh_s = time.monotonic()
            if self._relay is not None:
                self._relay.wake()
            await asyncio.sleep(0)
        return True

    async def _room(self, store: PartitionStore) -> bool:
        """Wait until the outbox is not too long; False if the partition was lost meanwhile."""
        while store.outbox_len > self._shared.settings.stream.max_outbox and self._claimed.is_set():
            relay = self._relay
            assert relay is not None
            relay.drained.clear()
            await relay.drained.wait()
        return self._claimed.is_set()

    # Called by the worker once a second

    def look(self, end: int) -> None:
        """Given the end of the actions partition, catch up if Faust does not."""
        store, idle_s = self._store, time.monotonic() - self._fresh_s
        if store is None or not self._claimed.is_set() or idle_s <= STALL_S:
            return
        if end <= self._next_offset(store):
            return
        busy = self._catching_up is not None and not self._catching_up.done()
        if not busy and store.outbox_len <= self._shared.settings.stream.max_outbox:
            self._catching_up = asyncio.create_task(self._guard(self._catch_up(end)))

    async def _catch_up(self, end: int) -> None:
        async with self._turn:
            if self._store is not None and self._claimed.is_set():
                try:
                    await self._fill(self._store, end)
                except BROKER_ERRORS as error:
                    self._give_up_if_refused(error)
                    log.warning("catching up failed", partition=self.number, error=repr(error))

    def status(self) -> PartitionStatus:
        """The partition's position; unknown while it is being claimed. Offsets without a record count as applied."""
        store = self._store
        if store is None:
            return PartitionStatus()
        return msgspec.structs.replace(
            store.status(), applied_offset=self._next_offset(store) - 1, num_gone=self._num_gone
        )
