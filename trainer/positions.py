"""Whether positions fit the topic that they are resumed in: it is still the same one, and still reaches so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import UnknownTopicOrPartitionError

from trainer.errors import SourceError
from trainer.kafka_source import REMEDY
from trainer.source import Position
from wire.config import KafkaConfig
from wire.kafka.admin import make_admin
from wire.kafka.consumer import make_consumer, partitions_of
from wire.kafka.retry import patiently
from wire.topics import Topics
from wire.weights import TOPIC_ID

ANSWER_S = 5.0


def topic_id(kafka: KafkaConfig, topic: str) -> str:
    """The broker's own id of a topic; empty where it gives none. Raises KafkaError, also where there is no topic."""
    admin = make_admin(kafka)
    try:
        found = admin.describe_topics([topic])
    finally:
        admin.close()
    if not found or found[0]["error_code"]:
        raise UnknownTopicOrPartitionError(f"{topic}: the broker has no such topic")
    given = str(found[0].get("topic_id") or "")
    return given if given.strip("0-") else ""


def sequences_identity(kafka: KafkaConfig, stop: threading.Event) -> dict[str, Any]:
    """What decides which examples the numbers of the sequences topic are."""
    topic = Topics.under(kafka.prefix).sequences
    found = patiently(lambda: topic_id(kafka, topic), "finding the sequences topic", kafka, stop)
    return {"kafka.prefix": kafka.prefix, **({TOPIC_ID: found} if found else {})}


def check_ends(kafka: KafkaConfig, positions: Mapping[int, Position], stop: threading.Event) -> None:
    """Raise `SourceError` where a position lies behind the end of its partition."""
    if any(position.next_offset for position in positions.values()):
        topic = Topics.under(kafka.prefix).sequences
        ends = patiently(
            lambda: _ends(kafka, topic, positions), "comparing positions with the sequences topic", kafka, stop
        )
        for partition, position in sorted(positions.items()):
            if position.next_offset > ends[partition]:
                raise SourceError(
                    f"{topic} partition {partition}: expected it to reach to offset {position.next_offset}, where the "
                    f"checkpoint would read on (example {position.next_number}), but it ends at {ends[partition]}: "
                    f"records were lost, or it is another topic. {REMEDY}"
                )


def _ends(kafka: KafkaConfig, topic: str, positions: Mapping[int, Position]) -> dict[int, int]:
    reader = make_consumer(kafka, auto_offset_reset="none")
    try:
        known = {each.partition: each for each in partitions_of(reader, topic)}
        ends = dict.fromkeys(positions, 0)
        told = reader.end_offsets([known[number] for number in positions if number in known])
        for where, end in told.items():
            is_short = positions[where.partition].next_offset > end
            ends[where.partition] = max(end, _fetched_end(reader, where, end)) if is_short else end
        return ends
    finally:
        reader.close()


def _fetched_end(reader: KafkaConsumer, where: TopicPartition, near_end: int) -> int:
    """The end as a fetch tells it: asked for it, the embedded broker names the first record of the last batch."""
    reader.assign([where])
    reader.seek(where, near_end)
    deadline_s = time.monotonic() + ANSWER_S
    while reader.highwater(where) is None and time.monotonic() < deadline_s:
        reader.poll(timeout_ms=100)
    return int(reader.highwater(where) or near_end)
