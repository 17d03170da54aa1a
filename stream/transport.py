"""Faust's Kafka transport, with a consumer that takes all of our options and delivers whole fetches.

Faust itself passes on credentials and nothing else: no timeouts, no isolation level, nothing about missing topics. Its
producer is never started: the worker has its own (`stream.kafka_producer`).

Each message costs Faust two tasks, two locks and a dozen calls, more than anything else that happens to an action. So a
message is not a record here, but all records of a partition that one poll has returned, a `Stretch` of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import aiokafka.consumer.fetcher
import faust
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from faust.app.base import BootStrategy
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from wire.kafka.polls import FetchResult


class Record(NamedTuple):
    """A record of the actions topic as the store takes it."""

    offset: int
    record_ms: int
    key: bytes | None
    value: bytes | None


class Stretch(NamedTuple):
    """All that a partition has at the offsets from ``begin`` up to but not including ``end``. Where records are missing
    between them, before the first or after the last, are markers of transactions, and what was aborted."""

    begin: int
    end: int
    records: Sequence[Record]


class Found(list[Any]):
    """The records that a poll has returned of one partition, and from where to where it has read."""

    def __init__(self, records: Iterable[Any], begin: int, end: int) -> None:
        super().__init__(records)
        self.begin, self.end = begin, end


class _Fetched(FetchResult):
    """A fetch that says what it has passed over, also at its end: a reader that knew nothing but the offsets of records
    would have to read again to learn that there is nothing else."""

    def getall(self, max_records: int | None = None) -> Found:
        """As aiokafka's; what fetches without records have passed over belongs to the one after them."""
        fetched, partition = self._partition_records, self._assignment.state_value(self._topic_partition)
        begin = fetched.next_fetch_offset if fetched is not None else 0
        records = super().getall(max_records)
        end = fetched.next_fetch_offset if fetched is not None else 0
        passed_from, passed_to = getattr(partition, "passed", (0, 0))
        found = Found(records, passed_from if passed_to == begin else begin, end)
        if partition is not None:
            partition.passed = (end, end) if records else (found.begin, end)
        return found


aiokafka.consumer.fetcher.FetchResult = _Fetched


class _Daemon(AIOKafkaConsumerThread.Worker):
    """A thread that does not keep the process alive if it hangs."""

    def __init__(self, service: Any, **options: Any) -> None:
        super().__init__(service, **options)
        self.daemon = True


class _Thread(AIOKafkaConsumerThread):
    Worker = _Daemon
    app: WorkerApp

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:  # noqa: ARG002
        self._assignor = RoundRobinPartitionAssignor
        consumer = AIOKafkaConsumer(partition_assignment_strategy=[self._assignor], **self.app.consumer_options)
        self.app.kafka_consumer = consumer
        return consumer


class _Consumer(Consumer):
    """Its messages have lists of aiokafka's records as values, and the offset of the last one.

    A partition acknowledges its messages in their order, so what may be committed is what follows the last of them.
    Faust would look for holes between the offsets of messages, of which there is one for every list.
    """

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> dict[TP, list[Any]]:  # noqa: ASYNC109
        found = await super()._getmany(active_partitions, timeout)
        return {where: [records] for where, records in found.items()}

    def _to_message(self, tp: TP, record: list[Any]) -> ConsumerMessage:
        message = super()._to_message(tp, record[-1])
        message.key, message.value = None, record
        return message

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing to note."""

    def _new_offset(self, tp: TP) -> int | None:
        offsets = self._acked[tp]
        after = max(offsets) + 1 if offsets else None
        offsets.clear()
        self._acked_index[tp].clear()
        return after


class _Transport(Transport):
    Consumer = _Consumer


class _WithoutProducer(BootStrategy):
    enable_kafka_producer = False


class WorkerApp(faust.App):
    """A Faust app whose consumer is made with ``consumer_options`` (by aiokafka's names)."""

    BootStrategy = _WithoutProducer

    def __init__(self, name: str, consumer_options: Mapping[str, Any], **settings: Any) -> None:
        self.consumer_options = dict(consumer_options)
        self.kafka_consumer: AIOKafkaConsumer | None = None
        super().__init__(name, **settings)

    @property
    def complaint(self) -> BaseException | None:
        """The error that keeps the consumer from joining its group. The consumer retries after a poll has raised it,
        but Faust does not poll before it has partitions."""
        coordinator = self.kafka_consumer._coordinator if self.kafka_consumer is not None else None  # noqa: SLF001
        return getattr(coordinator, "_pending_exception", None)

    def _new_transport(self) -> Transport:
        return _Transport(self.conf.broker_consumer, self)


def stretch_of(event: Any) -> Stretch:
    """What an event's message holds."""
    found: Found = event.message.value
    return Stretch(found.begin, found.end, [Record(one.offset, one.timestamp, one.key, one.value) for one in found])
