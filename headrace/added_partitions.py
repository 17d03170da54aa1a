"""Actions in partitions that were added to a deployment's topic: its workers take none of them, and the deployment that
continues it gets them all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec
from kafka.errors import KafkaError

from headrace.config import Settings
from stream.producer import BULK
from wire.action import Rejection, decode_record
from wire.action_json import ForgetRequest
from wire.errors import HeadraceError
from wire.kafka.consumer import connect, read, spans
from wire.kafka.producer import make_producer
from wire.partitioner import partition_of
from wire.topics import Topics

BATCH_RECORDS = 500
ACKNOWLEDGED_S = 150.0
CARRIED = "carried_from"
"""The header of a record that was carried: PARTITION/OFFSET in the old topic."""


def carry(old: Settings, new: Settings) -> int:
    """Send what is in the added partitions to the new actions topic, each record once however often this is called;
    returns how many records there are. Actions of a list go to the partitions of their users."""
    source, target = (Topics.under(each.kafka.prefix).actions for each in (old, new))
    consumer = connect(old.kafka)
    producer = make_producer(new.kafka, **BULK)  # idempotent: workers do not look at headers
    try:
        added = {number: span for number, span in spans(consumer, source).items() if number >= old.kafka.partitions}
        there = _carried(new, target) if added else set()
        records = read(consumer, source, added)
        while some := list(islice(records, BATCH_RECORDS)):
            sent = [
                producer.send(target, value=body, key=record.key, headers=[(CARRIED, place)], partition=home)
                for record in some
                for place in (f"{record.partition}/{record.offset}".encode(),)
                for home, body in _parts(record, new)
                if (place, home) not in there
            ]
            for each in sent:
                each.get(ACKNOWLEDGED_S)
        return sum(span.end - span.first for span in added.values())
    except KafkaError as error:
        raise HeadraceError(f"{target}: the broker did not take a record ({error!r}); run it again") from error
    finally:
        producer.close()
        consumer.close()


def _parts(record: Any, new: Settings) -> Iterator[tuple[int, bytes | None]]:
    """A record by new partition: actions and requests to forget where their users or items belong, and what a worker
    refuses where its key does. One that belongs to one partition stays as it is."""
    num, outcomes = new.kafka.partitions, decode_record(record.value, record.timestamp, new.action)
    if isinstance(outcomes[0], ForgetRequest) and outcomes[0].users:
        return  # a worker's own, which is about offsets of the old topic
    by_key = partition_of(record.key or b"", num)
    homes = [by_key if isinstance(each, Rejection) else partition_of(each.keys[0].encode(), num) for each in outcomes]
    if len(set(homes)) == 1:
        yield homes[0], record.value
        return
    elements = msgspec.json.decode(record.value, type=list[msgspec.Raw])
    for home in sorted(set(homes)):
        some = [bytes(element) for element, its in zip(elements, homes, strict=True) if its == home]
        yield home, b"[" + b",".join(some) + b"]"


def _carried(new: Settings, target: str) -> set[tuple[bytes, int]]:
    """What has been carried: its place in the old topic, and its new partition."""
    consumer = connect(new.kafka)
    try:
        records = read(consumer, target, spans(consumer, target))
        found = ((dict(record.headers).get(CARRIED), record.partition) for record in records)
        return {(place, home) for place, home in found if place is not None}
    finally:
        consumer.close()
