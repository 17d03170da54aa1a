"""Whether positions fit the topic in which they are resumed: it must be the same one, and reach as far."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from kafka.errors import UnknownTopicOrPartitionError

from trainer.errors import GapError, SourceError
from trainer.sources.kafka import GAP_REMEDY, REMEDY
from trainer.sources.source import Position
from wire.config import KafkaConfig
from wire.kafka.admin import make_admin
from wire.kafka.beginning import removed
from wire.kafka.consumer import ends, make_consumer, partitions_of
from wire.kafka.retry import patiently
from wire.topics import Topics
from wire.weights import TOPIC_ID


def topic_id(kafka: KafkaConfig, topic: str) -> str:
    """The broker's id of a topic; empty if it has none. Raises KafkaError, also if there is no such topic."""
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
    """What determines which examples the numbers in the sequences topic stand for."""
    topic = Topics.under(kafka.prefix).sequences
    found = patiently(lambda: topic_id(kafka, topic), "finding the sequences topic", kafka, stop)
    return {"kafka.prefix": kafka.prefix, **({TOPIC_ID: found} if found else {})}


def check_ends(kafka: KafkaConfig, positions: Mapping[int, Position], on_gap: str, stop: threading.Event) -> None:
    """Raise `SourceError` if a position lies beyond the end of its partition; or before its beginning, with
    ``trainer.on_gap = "stop"``: the gap would be met only when the next example arrives."""
    if any(position.next_offset for position in positions.values()):
        topic = Topics.under(kafka.prefix).sequences
        begins, reached = patiently(
            lambda: _span(kafka, topic, positions), "comparing positions with the sequences topic", kafka, stop
        )
        for partition, position in sorted(positions.items()):
            if position.next_offset > reached[partition]:
                raise SourceError(
                    f"{topic} partition {partition}: expected it to reach offset {position.next_offset}, where the "
                    f"checkpoint resumes (example {position.next_number}), but it ends at {reached[partition]}: "
                    f"records were lost, or it is another topic. {REMEDY}"
                )
        read = {partition: each.next_offset for partition, each in positions.items() if each.next_offset}
        gone = removed(topic, {partition: begins.get(partition, 0) for partition in read}, read)
        if gone and on_gap == "stop":
            raise GapError(f"{gone}. {GAP_REMEDY}")


def _span(kafka: KafkaConfig, topic: str, positions: Mapping[int, Position]) -> tuple[dict[int, int], dict[int, int]]:
    """The beginning of each partition, and its end; 0 for one that does not exist."""
    reader = make_consumer(kafka, auto_offset_reset="none")
    try:
        known = [each for each in partitions_of(reader, topic) if each.partition in positions]
        begins = {where.partition: begin for where, begin in reader.beginning_offsets(known).items()}
        reached = {where.partition: end for where, end in ends(reader, known).items()}
        return begins, dict.fromkeys(positions, 0) | reached
    finally:
        reader.close()
