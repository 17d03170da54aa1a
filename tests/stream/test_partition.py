"""One partition in this process, without Faust: what it applies and what it writes is asked of a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaAdminClient, TopicPartition
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from state.store import PartitionStore
from stream.applier import joined
from stream.claim import TopicIds
from stream.heartbeat import Heartbeat
from stream.held_back import HeldBack
from stream.kafka_producer import Producer
from stream.metrics import WorkerMetrics
from stream.partition import Partition, Shared
from stream.transport import Found, Record, Stretch
from tests.stream.workers import Deployment
from wire.errors import TopicReplaced
from wire.example_codec import decode_example
from wire.kafka.identity import identities
from wire.partitioner import partition_of
from wire.status import PartitionStatus

START_MS = 1_700_000_000_000


class Event:
    """An event of Faust: the ``records`` of one poll."""

    def __init__(self, records: list[Any]) -> None:
        self.message = self
        self.value = Found(records, records[0].offset, records[-1].offset + 1)
        self.is_acked = False

    def ack(self) -> None:
        self.is_acked = True


def produce(deployment: Deployment, num: int, first: int = 0) -> list[Any]:
    """Send a click of each of ``num`` users of partition 0; returns the partition's records."""
    users = [
        name for name in map(str, range(50 * (first + num))) if partition_of(name.encode(), deployment.partitions) == 0
    ]
    clicks = [
        {"user": name, "item": at, "action": "click", "timestamp": START_MS + at}
        for at, name in enumerate(users[first : first + num], first)
    ]
    deployment.produce([(0, click["user"].encode(), msgspec.json.encode(click)) for click in clicks])  # type: ignore[attr-defined]
    return deployment.read(deployment.topics.actions)[0]


class Counted(list[Record]):
    """Records that say how often they were gone through."""

    num_times = 0

    def __iter__(self) -> Iterator[Record]:
        self.num_times += 1
        return super().__iter__()


def test_stretches_are_joined_by_one_copy() -> None:
    def records(*offsets: int) -> Counted:
        return Counted(Record(offset, 0, None, b"") for offset in offsets)

    parts = [records(0, 1), records(2), records(4, 5), records(6), records(), records(30)]
    bounds = [(0, 2), (2, 4), (3, 6), (6, 9), (9, 12), (30, 31)]
    first, second = joined(Stretch(*each, part) for each, part in zip(bounds, parts, strict=True))
    assert (first.begin, first.end, [each.offset for each in first.records]) == (0, 12, [0, 1, 2, 4, 5, 6])
    assert (second.begin, second.end, second.records) == (30, 31, parts[-1])
    assert [part.num_times for part in parts] == [1, 1, 1, 1, 1, 0]
    assert joined([Stretch(5, 9, []), Stretch(2, 5, [])]) == [Stretch(5, 9, []), Stretch(2, 5, [])]


@asynccontextmanager
async def owned(deployment: Deployment, failures: list[BaseException] | None = None) -> AsyncIterator[Partition]:
    """Partition 0, being claimed; what fails is added to ``failures``, and else is an error."""
    names = deployment.topics.actions, deployment.topics.sequences
    found = identities(deployment.kafka, names)
    ids = TopicIds(*(found[name].id for name in names))
    producer, unexpected = Producer(deployment.kafka), list[BaseException]()
    await producer.start()
    metrics = WorkerMetrics(deployment.folder)
    shared = Shared(
        deployment, deployment.topics, metrics, producer, ids, (unexpected if failures is None else failures).append
    )
    partition = Partition(0, shared).start()
    try:
        yield partition
    finally:
        await partition.close()
        await producer.stop()
    assert not unexpected


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for ``condition``."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def test_nothing_is_shown_of_a_partition_that_has_moved_away(tmp_path: Path) -> None:
    metrics = WorkerMetrics(tmp_path)
    held_back = HeldBack("topic", metrics)
    for readable, now_s in (({3: 10, 4: 10}, 0.0), ({4: 10}, 10.0), ({3: 10, 4: 10}, 29.0)):
        held_back.note(readable, {3: 60, 4: 60}, now_s)
    metrics.show(3, PartitionStatus(), 5)
    assert b'held_records{partition="3"} 50.0' in generate_latest(metrics.registry)
    with capture_logs() as told:
        held_back.note({3: 10, 4: 10}, {3: 60, 4: 60}, 31.0)
    assert [line["partition"] for line in told] == [4], "the other one is held back since it came back"
    metrics.forget(3)
    held_back.note({4: 10}, {4: 60}, 32.0)
    shown = generate_latest(metrics.registry)
    assert b'partition="4"' in shown
    assert b'partition="3"' not in shown


@pytest.mark.parametrize("is_removed", [False, True])
def test_records_that_are_missing_between_two_events_are_read_or_counted(
    is_removed: bool, deployment: Deployment
) -> None:
    """As after a reset of Faust's position, or when it acknowledges an event without delivering it."""
    if deployment.broker.kind != "apache":
        pytest.skip("records are removed from real Apache Kafka")
    records = produce(deployment, 30)
    if is_removed:
        admin = KafkaAdminClient(bootstrap_servers=deployment.broker.bootstrap)
        admin.delete_records({TopicPartition(deployment.topics.actions, 0): 20})
        admin.close()

    async def work() -> tuple[int, int, int]:
        async with owned(deployment) as partition:
            events = Event(records[:10]), Event(records[20:])
            for event in events:  # both wait until the partition is claimed
                await partition.offer(event)
            await until(lambda: all(event.is_acked for event in events))
            status = partition.status()
            return status.num_accepted, status.applied_offset, status.num_gone

    assert asyncio.run(work()) == ((20, 29, 10) if is_removed else (30, 29, 0))


def test_examples_that_arrived_before_a_kill_are_not_written_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compaction would keep the second ones, which readers skip, and drop the first ones."""
    records = produce(deployment, 10)

    def die(*_: Any) -> None:
        raise RuntimeError("killed")

    async def until_killed() -> None:
        failures: list[BaseException] = []
        async with owned(deployment, failures) as partition:
            await partition.offer(Event(records))
            await until(lambda: bool(failures))

    async def again() -> None:
        async with owned(deployment) as partition:
            await until(lambda: partition.status().writer_epoch == 2)
            await partition.offer(Event(produce(deployment, 1, first=10)))
            await until(lambda: partition.status().relayed_number == 10)

    with monkeypatch.context() as patch:
        patch.setattr(PartitionStore, "ack", die)
        asyncio.run(until_killed())
    asyncio.run(again())
    found = [decode_example(record.value) for record in deployment.read(deployment.topics.sequences)[0]]
    assert [example.number for example in found if not example.is_fence] == list(range(11))


def test_a_topic_that_ends_before_what_was_applied_ends_a_running_worker(deployment: Deployment) -> None:
    """As a replica without the newest records that has become the leader."""
    if deployment.broker.kind != "apache":
        pytest.skip("the embedded broker's ends are often too low")
    records = produce(deployment, 3)

    async def work() -> None:
        async with owned(deployment) as partition:
            shared, failures = partition._shared, list[BaseException]()
            heartbeat = Heartbeat(
                deployment, "w", "disk", "process", {0: partition}, shared.producer, shared.metrics, failures.append
            )
            beating = asyncio.create_task(heartbeat.run())
            await partition.offer(Event(records))
            await until(lambda: heartbeat.reached.get(0) == 2)
            assert heartbeat._check_at_s == 0.0, "looked closely without need"
            assert partition._applier is not None
            partition._applier.store.apply([(50, START_MS, b"u", b"{}")])
            with pytest.raises(TopicReplaced, match="applied up to offset 50, but it ends at 3"):
                await asyncio.wait_for(beating, 30)
            assert not failures

    asyncio.run(work())
