"""Deliberately broken workers: ``BROKEN=<names> python -m tests.stream.broken worker``. The kill tests must catch each.

The moments at which a break shows are short; here they are prolonged, as by a slow disk or broker.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import aiokafka.codec
import aiokafka.errors
import aiokafka.record.default_records
import msgspec
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator

import state.meta_store
import state.restore
import stream.app
import stream.applier
import stream.claim
import stream.heartbeat
import stream.held_back
import stream.partition
import stream.relay
import stream.retention
import stream.transport
import stream.worker
import wire.kafka.identity
from stream.__main__ import main


def acks_before_it_writes() -> None:
    """Faust's commits are trusted: events are acknowledged on arrival, and gaps are not read."""
    offer = stream.partition.Partition.offer

    async def acknowledge_first(self: Any, event: Any) -> None:
        event.ack()
        await asyncio.sleep(2.0)  # long enough for a commit: whenever a kill comes, it has happened
        await offer(self, event)

    async def fill_nothing(self: Any, stop: int) -> None:
        return None

    stream.partition.Partition.offer = acknowledge_first  # type: ignore[method-assign]
    stream.applier.Applier._fill = fill_nothing  # type: ignore[method-assign]


def deletes_before_the_broker_has_it() -> None:
    """The outbox deletes entries as soon as they are sent."""
    pass_on = stream.relay.OutboxRelay._pass_on

    async def forget_first(self: Any, entries: Sequence[Any]) -> None:
        self._store.ack(entries[-1].index, self._position)
        await asyncio.sleep(1.0)  # long enough for a kill to happen meanwhile
        await pass_on(self, entries)

    stream.relay.OutboxRelay._pass_on = forget_first  # type: ignore[method-assign]


def relays_slowly() -> None:
    """Not broken: a slow broker, so that there is something in the outbox."""
    pass_on = stream.relay.OutboxRelay._pass_on

    async def wait_first(self: Any, entries: Sequence[Any]) -> None:
        await asyncio.sleep(2.0)
        await pass_on(self, entries)

    stream.relay.OutboxRelay._pass_on = wait_first  # type: ignore[method-assign]


def takes_without_a_fence() -> None:
    """A partition is read to its end and written to under the existing epoch."""

    def read_only(self: Any) -> Iterator[Any]:
        consumer = stream.claim.KafkaConsumer(bootstrap_servers=self._config.bootstrap, enable_auto_commit=False)
        consumer.assign([self._key])
        yield from self._read_to(consumer, consumer.end_offsets([self._key])[self._key])
        consumer.close()

    stream.claim._Reader.examples = read_only  # type: ignore[method-assign]


def forgets_the_disk_is_gone() -> None:
    """A wiped disk starts empty instead of reading the sequences topic.

    It would write the same examples again if it applied the same batches, as it may on a busy machine where each life
    begins with a backlog. So records are applied one by one, and by full batches once the disk is gone.
    """
    read_to, divide, is_gone = stream.claim._Reader._read_to, stream.applier.batches, False

    def yield_nothing(self: Any, consumer: Any, stop: int) -> Iterator[Any]:
        nonlocal is_gone
        starts_over = self.position == 0
        for _example in read_to(self, consumer, stop):
            is_gone |= starts_over
        yield from ()

    def divided(records: Any, max_records: int) -> Iterator[Any]:
        return divide(records, max_records if is_gone else 1)

    stream.claim._Reader._read_to = yield_nothing  # type: ignore[method-assign]
    stream.applier.batches = divided


def knows_no_topic_ids() -> None:
    """Not broken: a broker that gives no topic ids."""
    identity = wire.kafka.identity._identity
    wire.kafka.identity._identity = lambda told: identity(told)._replace(id="")


def without_snappy() -> None:
    """Not broken: an installation without a package."""
    aiokafka.codec.has_snappy = lambda: False
    aiokafka.record.default_records.codecs.has_snappy = lambda: False


def tells_soon_of_transactions() -> None:
    """Not broken: it waits one second."""
    stream.held_back.PATIENCE_S = 1.0


def reads_only_through_faust() -> None:
    """Not broken, as long as Faust delivers everything: it ends where it would read with a plain consumer."""

    def refuse(_kafka: Any, _topic: str, *where: Any) -> Any:
        raise AssertionError(f"a plain read of {where}")

    stream.applier.read_range = refuse
    stream.partition.STALL_S = math.inf


def knows_only_the_offsets_of_records() -> None:
    """What a fetch has passed over at its ends is not known."""
    getall = stream.transport._Fetched.getall

    def between_records(self: Any, max_records: int | None = None) -> Any:
        found = getall(self, max_records)
        if found:
            found.begin, found.end = found[0].offset, found[-1].offset + 1
        return found

    stream.transport._Fetched.getall = between_records  # type: ignore[method-assign]


def keeps_in_memory_what_it_passed_over() -> None:
    """A worker that starts again knows the last record, and nothing of the markers after it."""
    encode = state.meta_store.encode_meta
    state.meta_store.encode_meta = lambda meta: encode(msgspec.structs.replace(meta, read_to=0))


def _at_the_first_join(happens: Callable[[], Awaitable[None]]) -> None:
    join, num_joins = CoordinatorGroupRebalance.perform_group_join, itertools.count()

    async def perform(self: Any) -> Any:
        if next(num_joins) == 0:
            await happens()
        return await join(self)

    CoordinatorGroupRebalance.perform_group_join = perform


def is_refused_by_its_group_once() -> None:
    """Not broken: an answer to the first attempt to join that Faust does not expect."""

    async def refuse() -> None:
        raise aiokafka.errors.KafkaError("FencedInstanceId")

    _at_the_first_join(refuse)


def hears_nothing_of_its_group_once() -> None:
    """Not broken: the first attempt to join the group hangs, and cannot be stopped. It does not wait for long."""

    async def hang() -> None:
        await asyncio.Event().wait()

    stream.worker.JOIN_S = 0.1
    _at_the_first_join(hang)


def is_told_of_no_partitions_once() -> None:
    """Not broken: a broker that has just started does not know the topic when the group divides its partitions."""
    perform, known = GroupCoordinator._perform_assignment, ClusterMetadata.partitions_for_topic
    hidden = iter((True,))

    async def divide(self: Any, response: Any) -> Any:
        if next(hidden, False):
            ClusterMetadata.partitions_for_topic = lambda *_: None
        try:
            return await perform(self, response)
        finally:
            ClusterMetadata.partitions_for_topic = known

    GroupCoordinator._perform_assignment = divide
    stream.app.METADATA_MS = 500


def forgets_one_at_a_time() -> None:
    """Not broken: a request for each user, one a second."""
    stream.retention.MOST = 1


def restores_whom_it_forgot() -> None:
    """A disk is rebuilt from examples alone."""
    state.restore._apply_mark = lambda *_: None


def loses_its_beat() -> None:
    """Whatever may happen to the task that tells of the worker."""

    def fail(self: Any, ends: dict[int, int]) -> None:
        raise ValueError("no beat")

    stream.heartbeat.Heartbeat._look_after = fail  # type: ignore[method-assign]


if __name__ == "__main__":
    for name in os.environ["BROKEN"].split(","):
        globals()[name]()
    sys.exit(main())
