"""One partition of the actions topic, from its assignment to its loss.

Of two tasks, one claims the partition (`stream.claim`) and relays the store's outbox, and starts over after errors; the
other applies what Faust delivers (`stream.applier`). They take turns under one lock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from state.store import PartitionStore
from stream.applier import Applier, give_up_if_refused
from stream.claim import Claim, Headers, TopicIds, claim, remedies
from stream.config import Settings
from stream.kafka_producer import Producer
from stream.logs import log
from stream.metrics import WorkerMetrics
from stream.relay import Fenced, OutboxRelay
from stream.retention import Retention
from stream.transport import Stretch, stretch_of
from wire.errors import brief
from wire.kafka.options import BROKER_ERRORS
from wire.status import PartitionStatus
from wire.topics import Topics

RETRY_S = 1.0
STALL_S = 1.5
"""Records that have been available but not applied for this long are read without Faust."""
MAX_WAITING = 4
"""How many write batches may wait for a store before Faust has to wait."""


@dataclass(frozen=True)
class Shared:
    """What a worker's partitions share."""

    settings: Settings
    topics: Topics
    metrics: WorkerMetrics
    producer: Producer
    ids: TopicIds
    """The ids of the topics when this worker started."""
    fail: Callable[[BaseException], None]
    """Ends the worker because of an error that cannot be handled here."""


class Partition:
    """An assigned partition; its tasks run from `start` to `close`."""

    def __init__(self, number: int, shared: Shared) -> None:
        self.number = number
        self._shared = shared
        self._applier: Applier | None = None
        """The applier of the last claim; None while the partition is being claimed."""
        self._num_gone = 0
        self._turn = asyncio.Lock()
        """Held while the store is changed."""
        self._waiting: asyncio.Queue[Any] = asyncio.Queue()
        self._num_waiting = 0
        """How many records wait."""
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._claimed = asyncio.Event()
        self._catching_up: asyncio.Task[None] | None = None
        self._claiming: asyncio.Future[Claim] | None = None
        self._retention = Retention(number, shared.settings, shared.producer)
        self._forgetting: asyncio.Task[None] | None = None
        self._closing = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> Self:
        """Start to claim the partition, and to apply what arrives."""
        self._tasks = [asyncio.create_task(self._guard(work)) for work in (self._own(), self._apply())]
        return self

    async def offer(self, event: Any) -> None:
        """Accept a Faust event, in order; waits while the partition is behind."""
        await self._has_room.wait()
        self._num_waiting += len(event.message.value)
        if self._num_waiting >= MAX_WAITING * self._shared.settings.stream.max_batch:
            self._has_room.clear()
        self._waiting.put_nowait(event)

    async def close(self) -> None:
        """Stop, and close the store. What was not applied or relayed is left to the next owner."""
        self._closing.set()
        self._has_room.set()  # what is offered from here on is left to the next owner too
        tasks = [*self._tasks, *filter(None, (self._catching_up, self._forgetting))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        store = self._take_store()
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
            log.error("partition failed", partition=self.number, error=brief(error))
            self._shared.fail(error)

    def _take_store(self) -> PartitionStore | None:
        """Give up the store: nothing is applied to it from here on."""
        applier, self._applier = self._applier, None
        if applier is None:
            return None
        self._num_gone = applier.num_gone
        return applier.store

    # Claiming and relaying

    async def _own(self) -> None:
        shared = self._shared
        while True:
            generation, doing = shared.producer.generation, "reading"
            try:
                async with self._turn:
                    relay = await self._claim()
                doing = "writing"
                await relay.run()
            except Fenced as error:
                self._lose_claim()
                # Either the group has given the partition to another worker, and we will hear of it within a session
                # timeout; or the other one no longer owns it, and the partition is still ours after that.
                shared.metrics.fenced.inc()
                log.warning("fenced off", partition=self.number, why=str(error))
                await asyncio.sleep(shared.settings.stream.session_timeout_s)
            except BROKER_ERRORS as error:
                give_up_if_refused(error, shared.settings, doing)
                self._lose_claim()
                log.warning("the relay failed and will be restarted", partition=self.number, error=brief(error))
                await asyncio.sleep(RETRY_S)
                await self._renew(generation)

    def _lose_claim(self) -> None:
        self._claimed.clear()
        if self._applier is not None:
            self._applier.lose()

    async def _claim(self) -> OutboxRelay:
        shared = self._shared
        loop = asyncio.get_running_loop()

        def write_fence(partition: int, key: bytes, value: bytes, headers: Headers) -> int:
            writing = self._write_fence(partition, key, value, headers)
            return asyncio.run_coroutine_threadsafe(writing, loop).result(60.0)

        store = self._take_store()
        self._claiming = asyncio.ensure_future(
            asyncio.to_thread(claim, shared.settings, self.number, store, shared.ids, write_fence, self._closing)
        )
        # A thread cannot be cancelled: `close` asks it to end, waits for it, and closes the store that it opened.
        taken = await asyncio.shield(self._claiming)
        shared.metrics.restores.inc(taken.was_restored)
        relay = OutboxRelay(
            taken.store,
            shared.producer,
            shared.settings.kafka,
            shared.metrics,
            taken.position,
            taken.log,
            remedies(shared.settings)[shared.topics.sequences],
        )
        self._applier = Applier(self.number, taken.store, relay, shared.settings, shared.metrics, self._num_gone)
        self._claimed.set()
        log.info("partition claimed", partition=self.number, writer_epoch=taken.log.writer_epoch,
                 applied_offset=taken.store.applied_offset)  # fmt: skip
        return relay

    async def _write_fence(self, partition: int, key: bytes, value: bytes, headers: Headers) -> int:
        shared = self._shared
        try:
            sent = await shared.producer.send(shared.topics.sequences, partition, key, value, headers=headers)
            return int((await sent).offset)
        except BROKER_ERRORS as error:
            give_up_if_refused(error, shared.settings, "writing")
            raise

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
            events = await self._arrived()
            stretches = [stretch_of(event) for event in events]
            while not await self._take_turn(stretches):  # noqa: ASYNC110
                await asyncio.sleep(RETRY_S)  # the broker is away, so no event would wake us
            for event in events:
                event.ack()

    async def _arrived(self) -> list[Any]:
        """The events that have arrived shortly after the first of them; at once, if they fill a write batch."""
        stream, events = self._shared.settings.stream, [await self._waiting.get()]
        if self._num_waiting < stream.max_batch:
            await asyncio.sleep(stream.max_wait_s)
        while not self._waiting.empty():
            events.append(self._waiting.get_nowait())
        self._num_waiting = 0
        self._has_room.set()
        return events

    async def _take_turn(self, stretches: Sequence[Stretch]) -> bool:
        """Apply these; False if it has to be retried."""
        await self._claimed.wait()
        async with self._turn:
            applier = self._applier
            return applier is not None and self._claimed.is_set() and await applier.apply(stretches)

    # Called by the worker once a second

    def look(self, end: int) -> None:
        """Given the end of the actions partition, catch up if Faust does not; and look for users to forget."""
        applier = self._applier
        if applier is None or not self._claimed.is_set() or applier.is_full:
            return
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = asyncio.create_task(self._guard(self._forget_quiet_users()))
        if time.monotonic() - applier.applied_s <= STALL_S:
            return
        is_busy = self._catching_up is not None and not self._catching_up.done()
        if end > applier.store.next_offset and not is_busy:
            self._catching_up = asyncio.create_task(self._guard(self._catch_up(end)))

    async def _forget_quiet_users(self) -> None:
        # Between the look at the store and the answer of the broker, the partition may be lost, and that is all right.
        if self._applier is None or not self._claimed.is_set():
            return
        try:
            await self._retention.step(self._applier.store)
        except BROKER_ERRORS as error:
            give_up_if_refused(error, self._shared.settings, "asking to forget users")
            log.warning("a request to forget users failed and will be repeated", partition=self.number,
                        error=brief(error))  # fmt: skip

    async def _catch_up(self, end: int) -> None:
        async with self._turn:
            if self._applier is not None and self._claimed.is_set():
                await self._applier.catch_up(end)

    @property
    def reached(self) -> tuple[int, int] | None:
        """`PartitionStore.reached`; None while the partition is being claimed, which checks it too."""
        return self._applier.store.reached if self._applier is not None else None

    def status(self) -> PartitionStatus:
        """The partition's position; unknown while it is being claimed. Offsets without a record count as applied."""
        applier = self._applier
        if applier is None:
            return PartitionStatus()
        return msgspec.structs.replace(
            applier.store.status(), applied_offset=applier.store.next_offset - 1, num_gone=applier.num_gone
        )
