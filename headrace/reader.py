"""Reading topics from one end to the other, for the commands that look and the audit that recounts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from wire.config import KafkaConfig
from wire.errors import HeadraceError

POLL_MS = 200
STALL_S = 60.0


class ReadError(HeadraceError):
    """A broker or a topic that should be there is not; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a partition holds: offsets ``first`` up to but not including ``end``."""

    first: int
    end: int


def connect(kafka: KafkaConfig, timeout_s: float = 5.0) -> KafkaConsumer:
    """A consumer without a group. Raises `ReadError` where no broker answers within ``timeout_s``."""
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "group_id": None,
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "auto_offset_reset": "earliest",
        "bootstrap_timeout_ms": int(timeout_s * 1000),
        "fetch_max_wait_ms": 100,
        "fetch_max_bytes": 64 << 20,
        "max_partition_fetch_bytes": 16 << 20,
        "max_poll_records": 5000,
        **kafka.client,
    }
    try:
        return KafkaConsumer(**options)
    except (KafkaError, OSError) as error:
        raise ReadError(
            f"no Kafka broker answers at {kafka.bootstrap} ({type(error).__name__}); "
            "start it, or name another: --bootstrap HOST:PORT"
        ) from None


def spans(consumer: KafkaConsumer, topic: str) -> dict[int, Span]:
    """What each partition of ``topic`` holds now. Raises `ReadError` where there is no such topic.

    The end comes from a fetch: asked for its latest offset, the embedded broker names the first of the last batch.
    """
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise ReadError(f"there is no topic {topic}; create the topics with: headrace topics --create")
    partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
    first, near_end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, near_end[partition])
    deadline = time.monotonic() + STALL_S
    while any(consumer.highwater(partition) is None for partition in partitions):
        consumer.poll(timeout_ms=POLL_MS, max_records=1)
        if time.monotonic() > deadline:
            raise ReadError(f"{topic}: the broker did not say within {STALL_S:.0f} s where its partitions end")
    return {each.partition: Span(first[each], max(near_end[each], consumer.highwater(each))) for each in partitions}


def read(consumer: KafkaConsumer, topic: str, wanted: dict[int, Span]) -> Iterator[Any]:
    """Every record of ``wanted``; each partition in its order, the partitions mixed.

    Raises `ReadError` when the broker sends nothing for a minute.
    """
    waiting = {number: span for number, span in wanted.items() if span.end > span.first}
    partitions = [TopicPartition(topic, number) for number in waiting]
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, waiting[partition.partition].first)
    heard = time.monotonic()
    while waiting:
        batches = consumer.poll(timeout_ms=POLL_MS)
        for partition, records in batches.items():
            span = waiting.get(partition.partition)
            yield from (record for record in records if span is not None and record.offset < span.end)
        done = [number for number, span in waiting.items() if _position(consumer, topic, number) >= span.end]
        for number in done:
            del waiting[number]
            consumer.pause(TopicPartition(topic, number))
        if batches or done:
            heard = time.monotonic()
        elif time.monotonic() - heard > STALL_S:
            raise ReadError(f"{topic}: the broker sent nothing for {STALL_S:.0f} s; partitions left: {sorted(waiting)}")


def _position(consumer: KafkaConsumer, topic: str, partition: int) -> int:
    # Compaction may leave no record right before the end, so the position counts, not the last record's offset.
    return int(consumer.position(TopicPartition(topic, partition)))


def follow(consumer: KafkaConsumer, *topics: str, num_last: int = 1) -> Iterator[Any]:
    """The last ``num_last`` records of each partition, then every new one as it comes; None while there is none."""
    held = {TopicPartition(topic, number): span for topic in topics for number, span in spans(consumer, topic).items()}
    consumer.assign(list(held))
    for partition, span in held.items():
        consumer.seek(partition, max(span.first, span.end - num_last))
    while True:
        batches = consumer.poll(timeout_ms=POLL_MS)
        for records in batches.values():
            yield from records
        if not batches:
            yield None
