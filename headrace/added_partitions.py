"""Actions in partitions that were added to a deployment's topic: its workers take none of them, and the deployment that
continues it gets them all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec
from kafka.errors import KafkaError

from headrace.config import Settings
from headrace.dead_letters import actions_of
from stream.producer import placed
from wire.errors import HeadraceError
from wire.kafka.consumer import connect, read, spans
from wire.kafka.producer import make_producer
from wire.partitioner import partition_of
from wire.topics import Topics

BATCH_RECORDS = 500
ACKNOWLEDGED_S = 60.0
CARRIED = "carried_from"
"""The header of a record that was carried: PARTITION/OFFSET in the old topic."""


def carry(old: Settings, new: Settings) -> int:
    """Send what is in the added partitions to the new actions topic, each record once however often this is called;
    returns how many records there are. Actions of a list go to the partitions of their users."""
    source, target = (Topics.under(each.kafka.prefix).actions for each in (old, new))
    consumer = connect(old.kafka)
    producer = make_producer(new.kafka, max_in_flight_requests_per_connection=1)  # a user's actions stay in their order
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
    """A record by new partition. One that is more or less than actions (a request to forget, or what a worker refuses)
    stays as it is."""
    actions = actions_of(record.value, new.action)
    if not actions:
        yield partition_of(record.key or b"", new.kafka.partitions), record.value
    of: dict[int, list[dict[str, Any]]] = {}
    for action in actions:
        of.setdefault(placed(action, new.kafka.partitions), []).append(action)
    for home, some in of.items():
        yield home, msgspec.json.encode(some)


def _carried(new: Settings, target: str) -> set[tuple[bytes, int]]:
    """What has been carried: its place in the old topic, and its new partition."""
    consumer = connect(new.kafka)
    try:
        records = read(consumer, target, spans(consumer, target))
        found = ((dict(record.headers).get(CARRIED), record.partition) for record in records)
        return {(place, home) for place, home in found if place is not None}
    finally:
        consumer.close()
