"""Writes the migrated users into the sequences topic of the new deployment, and reads them back.

If an earlier run was interrupted, what it wrote is compared by digest, and only the rest is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import xxhash
from kafka import KafkaProducer
from kafka.errors import KafkaError

from headrace.config import Settings
from headrace.migration import EPOCH, MigratedRecord, Migrator, Source
from stream.claim import ACTIONS_ID
from trainer.sources.source import Position
from wire.errors import HeadraceError
from wire.example import fence
from wire.example_codec import encode_example
from wire.kafka.consumer import connect, partitions_of, read, spans, topic_id_of
from wire.kafka.producer import make_producer
from wire.shape import SHAPE, encode_shape, shape_of
from wire.topics import Topics, fence_key

ACK_EVERY = 10_000


@dataclass(slots=True)
class Tally:
    """The first migrated records of a partition: how many, and a digest of their keys and values in order."""

    num: int = 0
    digest: Any = field(default_factory=xxhash.xxh3_128)

    def add(self, key: bytes, value: bytes) -> None:
        """Count a record."""
        self.num += 1
        for part in (key, value):
            self.digest.update(len(part).to_bytes(8, "little"))
            self.digest.update(part)


def fill(old: Settings, new: Settings, source: Source) -> tuple[list[Tally], int]:
    """Write what the new sequences topic lacks; returns what each partition should hold, and the number of users."""
    present, tallies = _present(new), [Tally() for _ in range(new.kafka.partitions)]
    users = set[bytes]()
    producer = make_producer(new.kafka, max_in_flight_requests_per_connection=1, linger_ms=20, batch_size=1 << 18)
    writer = Writer(producer, Topics.under(new.kafka.prefix).sequences)
    try:
        _write_fences(new, writer, present)
        for each in Migrator(old, new, source).records():
            tally, there = tallies[each.partition], present[each.partition]
            tally.add(each.key, each.value)
            users.add(xxhash.xxh3_64_digest(each.key.rpartition(b"\x00")[0]))
            if tally.num > there.num:
                writer.write(each)
            elif tally.num == there.num and tally.digest.digest() != there.digest.digest():
                raise _other_content(new, each.partition)
        writer.wait()
    finally:
        producer.close(timeout=2)
    return tallies, len(users)


class Writer:
    """Writes records in order. Raises `HeadraceError` if the broker does not take one."""

    def __init__(self, producer: KafkaProducer, topic: str) -> None:
        self._producer, self._topic, self._sent = producer, topic, list[Any]()

    def write(self, record: MigratedRecord, headers: list[tuple[str, bytes]] | None = None) -> None:
        """Begin to write a record."""
        sent = self._producer.send(
            self._topic, key=record.key, value=record.value, partition=record.partition, headers=headers
        )
        self._sent.append(sent)
        if len(self._sent) == ACK_EVERY:
            self.wait()

    def wait(self) -> None:
        """Wait until the broker has acknowledged all of them."""
        try:
            self._producer.flush()
            for each in self._sent:
                each.get(0)
        except KafkaError as error:
            raise HeadraceError(f"{self._topic}: the broker did not take a record ({error!r}); run it again") from error
        self._sent = []


def _write_fences(new: Settings, writer: Writer, present: list[Tally]) -> None:
    """Begin each partition with a fence, which says what the bits and columns mean."""
    consumer = connect(new.kafka)
    try:
        topics = Topics.under(new.kafka.prefix)
        partitions_of(consumer, topics.actions)
        headers = [
            (ACTIONS_ID, topic_id_of(consumer, topics.actions).encode()),
            (SHAPE, encode_shape(shape_of(new.action, new.sequence, new.kafka.partitions))),
        ]
    finally:
        consumer.close()
    for number, there in enumerate(present):
        if not there.num:
            writer.write(MigratedRecord(number, fence_key(EPOCH), encode_example(fence(number, EPOCH))), headers)
    writer.wait()


def _present(new: Settings) -> list[Tally]:
    """What the new sequences topic holds."""
    tallies = [Tally() for _ in range(new.kafka.partitions)]
    topic, consumer = Topics.under(new.kafka.prefix).sequences, connect(new.kafka)
    try:
        for record in read(consumer, topic, spans(consumer, topic)):
            if record.key != fence_key(EPOCH):
                tallies[record.partition].add(record.key or b"", record.value or b"")
    finally:
        consumer.close()
    return tallies


def verify(new: Settings, tallies: list[Tally]) -> dict[int, Position]:
    """Compare what the broker holds with what it should hold; returns the positions after it."""
    topic, consumer = Topics.under(new.kafka.prefix).sequences, connect(new.kafka)
    for number, (there, wanted) in enumerate(zip(_present(new), tallies, strict=True)):
        if there.num != wanted.num or there.digest.digest() != wanted.digest.digest():
            raise _other_content(new, number)
    try:
        held = spans(consumer, topic)
    finally:
        consumer.close()
    return {
        number: Position(next_number=wanted.num, next_offset=held[number].end, writer_epoch=EPOCH)
        for number, wanted in enumerate(tallies)
    }


def _other_content(new: Settings, partition: int) -> HeadraceError:
    return HeadraceError(
        f"{Topics.under(new.kafka.prefix).sequences} partition {partition}: expected nothing but the old deployment's "
        "users, in order, got other records: a worker has written there, or the old topics have changed since an "
        "earlier run; choose another kafka.prefix"
    )
