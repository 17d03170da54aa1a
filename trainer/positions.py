"""Whether positions fit the topic that they are resumed in: it is still the same one, and still reaches so far."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from kafka.errors import UnknownTopicOrPartitionError

from trainer.errors import SourceError
from trainer.kafka_source import REMEDY
from trainer.source import Position
from wire.config import KafkaConfig
from wire.kafka.admin import make_admin
from wire.kafka.consumer import ends, make_consumer, partitions_of
from wire.kafka.retry import patiently
from wire.topics import Topics
from wire.weights import TOPIC_ID


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
        reached = patiently(
            lambda: _ends(kafka, topic, positions), "comparing positions with the sequences topic", kafka, stop
        )
        for partition, position in sorted(positions.items()):
            if position.next_offset > reached[partition]:
                raise SourceError(
                    f"{topic} partition {partition}: expected it to reach to offset {position.next_offset}, where the "
                    f"checkpoint would read on (example {position.next_number}), but it ends at {reached[partition]}: "
                    f"records were lost, or it is another topic. {REMEDY}"
                )


def _ends(kafka: KafkaConfig, topic: str, positions: Mapping[int, Position]) -> dict[int, int]:
    """Where each partition ends; 0 for one that is not there."""
    reader = make_consumer(kafka, auto_offset_reset="none")
    try:
        known = [each for each in partitions_of(reader, topic) if each.partition in positions]
        reached = {where.partition: end for where, end in ends(reader, known).items()}
        return dict.fromkeys(positions, 0) | reached
    finally:
        reader.close()
