"""The one way to use kafka-python's consumers: no group, no commits, the caller gives partitions and offsets.

`ends` says where partitions end. It asks twice, because the embedded broker answers ``end_offsets`` with the *first*
offset of its last batch: if a fetch from there returns records, the high watermark is the end. If it returns none, what
lies between belongs to an open transaction and cannot be read yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError

from wire.config import KafkaConfig
from wire.errors import BrokerUnavailable, TopicMissing
from wire.kafka.addresses import accepts_connections, announced, refuse_silence, remedy_for
from wire.kafka.options import ISOLATION, made, sync_options
from wire.kafka.polls import Consumer
from wire.kafka.refusal import refusal
from wire.topics import what_creates

POLL_MS = 200
ANSWER_S = 10.0
"""How long a broker may take to say where its partitions end."""
STALL_S = 20.0
"""How long the broker may send nothing while a range that it has is being read."""
PROMPT = {"fetch_max_wait_ms": 10}
"""Options for a consumer that asks for news instead of waiting for it: if there is none, the broker answers at once."""
PATIENT = {"fetch_max_wait_ms": 500}
"""Options for a consumer that waits for news that come once a second or less. Kafka answers as soon as there are some
(the embedded broker only looks for them a few times during the wait), and each answer that there are none costs
a millisecond on both sides. Meanwhile the broker keeps the consumer's other requests waiting."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of offsets in a partition: from ``first`` up to but not including ``end``."""

    first: int
    end: int


def make_consumer(kafka: KafkaConfig, **options: Any) -> KafkaConsumer:
    """A consumer; ``kafka.client`` overrides ``options``. Raises ``KafkaError`` or OSError when no broker answers."""
    refuse_silence(kafka)
    ours: dict[str, Any] = {
        "group_id": None,
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "isolation_level": ISOLATION,
        "auto_offset_reset": "earliest",
        "max_poll_records": 5000,
        "fetch_max_wait_ms": 100,
        "enable_incremental_fetch_sessions": False,  # so that every response says where the partitions end
        "fetch_max_bytes": 64 << 20,
        "max_partition_fetch_bytes": 8 << 20,
        "request_timeout_ms": 10_000,
        "bootstrap_timeout_ms": 5_000,
        "reconnect_backoff_max_ms": 1_000,
        "metrics_enabled": False,
    }
    return made(Consumer, {**ours, **options, **sync_options(kafka)})


def connect(kafka: KafkaConfig, timeout_s: float = 5.0, **options: Any) -> KafkaConsumer:
    """`make_consumer` that raises `BrokerUnavailable` when no broker answers within ``timeout_s``, and says meanwhile
    what it waits for."""
    with announced(kafka, timeout_s):
        return _connected(kafka, timeout_s, **options)


def reconnect(kafka: KafkaConfig, timeout_s: float = 5.0, **options: Any) -> KafkaConsumer:
    """`connect` for whoever tries again: it says nothing, and does not wait where nothing accepts connections, since
    nothing could cut that short."""
    if not accepts_connections(kafka):
        raise BrokerUnavailable(
            f"no Kafka broker answers at {kafka.bootstrap}: nothing accepts connections there; {remedy_for(kafka)}"
        )
    return _connected(kafka, timeout_s, **options)


def _connected(kafka: KafkaConfig, timeout_s: float, **options: Any) -> KafkaConsumer:
    try:
        return make_consumer(kafka, **{"bootstrap_timeout_ms": max(1, int(timeout_s * 1000)), **options})
    except BrokerUnavailable:
        raise
    except (KafkaError, OSError) as error:
        if refused := refusal(error, kafka.bootstrap):
            raise refused from error
        raise BrokerUnavailable(
            f"no Kafka broker answers at {kafka.bootstrap} within {timeout_s:g} s ({type(error).__name__}); "
            f"{remedy_for(kafka)}"
        ) from error


def topic_id_of(consumer: KafkaConsumer, topic: str) -> str:
    """The broker's own id of a topic, from the consumer's newest metadata; empty if unknown.

    A different id under the same name means that the topic was deleted and created again. (kafka-python keeps the ids
    only in its cluster metadata.)
    """
    found = str(consumer._client.cluster.topic_id(topic) or "")  # noqa: SLF001
    return found if found.strip("0-") else ""


@contextmanager
def asking(consumer: KafkaConsumer) -> Iterator[None]:
    """Until the block ends, the consumer has the options `PROMPT`, so that nothing waits for the end of a fetch that
    brings nothing, but of one that is under way."""
    options = consumer._fetcher.config  # noqa: SLF001
    before = {name: options[name] for name in PROMPT}
    options.update(PROMPT)
    try:
        yield
    finally:
        options.update(before)


def partitions_of(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """All partitions of a topic. Raises `TopicMissing` if there is no such topic."""
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise TopicMissing(
            f"topic {topic}: expected it on the broker, got none; {what_creates(topic)}; "
            "if it is there, give this client's user the right to describe it"
        )
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def ends(
    consumer: KafkaConsumer, partitions: Iterable[TopicPartition], answer_s: float = ANSWER_S
) -> dict[TopicPartition, int]:
    """The offset after each partition's last readable record. Assigns the partitions and leaves their positions
    undefined.

    Raises `KafkaTimeoutError` when the broker is silent for ``answer_s``.
    """
    wanted = list(partitions)
    if not wanted:
        return {}
    near = consumer.end_offsets(wanted, timeout_ms=round(answer_s * 1000))
    _place(consumer, near)
    deadline = time.monotonic() + answer_s
    returned = set[TopicPartition]()
    with asking(consumer):
        while any(consumer.highwater(partition) is None for partition in wanted):
            returned |= consumer.poll(timeout_ms=POLL_MS).keys()
            if time.monotonic() > deadline:
                raise KafkaTimeoutError(
                    f"{wanted[0].topic}: the broker did not say within {answer_s:.0f} s where its partitions end"
                )
    return {each: max(near[each], consumer.highwater(each)) if each in returned else near[each] for each in wanted}


def _place(consumer: KafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
    consumer.assign([])  # unassigning a partition forgets its high watermark and pauses
    consumer.assign(list(offsets))
    for partition, offset in offsets.items():
        consumer.seek(partition, offset)


def spans(consumer: KafkaConsumer, topic: str) -> dict[int, Span]:
    """What each partition of ``topic`` holds now. Raises `TopicMissing`."""
    partitions = partitions_of(consumer, topic)
    first, end = consumer.beginning_offsets(partitions), ends(consumer, partitions)
    return {each.partition: Span(first[each], end[each]) for each in partitions}


def read(consumer: KafkaConsumer, topic: str, wanted: Mapping[int, Span]) -> Iterator[Any]:
    """Every record in these ranges; in order within a partition, with the partitions interleaved.

    What compaction or retention has removed is simply missing. Raises `KafkaTimeoutError` when the broker sends
    nothing for `STALL_S`.
    """
    waiting = {TopicPartition(topic, number): span for number, span in wanted.items() if span.end > span.first}
    _place(consumer, {partition: span.first for partition, span in waiting.items()})
    heard = time.monotonic()
    with asking(consumer):
        while waiting:
            batches = consumer.poll(timeout_ms=POLL_MS)
            for partition, records in batches.items():
                if partition in waiting:
                    yield from (record for record in records if record.offset < waiting[partition].end)
            # Compaction may have removed the records before the end, so the position decides, not the last offset.
            done = [partition for partition, span in waiting.items() if consumer.position(partition) >= span.end]
            for partition in done:
                del waiting[partition]
                consumer.pause(partition)
            if batches or done:
                heard = time.monotonic()
            elif time.monotonic() - heard > STALL_S:
                left = sorted(each.partition for each in waiting)
                raise KafkaTimeoutError(
                    f"{topic}: the broker sent nothing for {STALL_S:.0f} s; partitions left: {left}"
                )


def read_from(consumer: KafkaConsumer, partition: TopicPartition, first: int) -> Iterator[Any]:
    """Every record of one partition from offset ``first`` to its present end."""
    end = ends(consumer, [partition])[partition]
    return read(consumer, partition.topic, {partition.partition: Span(first, end)})


def follow(consumer: KafkaConsumer, *topics: str, num_last: int = 1) -> Iterator[Any]:
    """The last ``num_last`` records of each partition, then every new one as it arrives; yields None while there is
    none."""
    held = {TopicPartition(topic, number): span for topic in topics for number, span in spans(consumer, topic).items()}
    _place(consumer, {partition: max(span.first, span.end - num_last) for partition, span in held.items()})
    while True:
        batches = consumer.poll(timeout_ms=POLL_MS)
        for records in batches.values():
            yield from records
        if not batches:
            yield None
