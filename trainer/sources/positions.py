"""Whether positions fit the topic in which they are resumed: it must be the same one, reach as far, and have the same
record before each."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from kafka import TopicPartition
from kafka.errors import UnknownTopicOrPartitionError

from trainer.errors import GapError, SourceError
from trainer.sources.source import Position
from wire.config import KafkaConfig
from wire.kafka.admin import make_admin
from wire.kafka.beginning import removed
from wire.kafka.consumer import ends, make_consumer, partitions_of
from wire.kafka.identity import record_ms_at
from wire.kafka.retry import patiently
from wire.topics import Topics
from wire.weights import TOPIC_ID

REMEDY = (
    "Name an empty trainer.checkpoint_dir and start with --from-published, to keep what was learned and read this "
    "topic from its beginning; or without that option, to train from scratch"
)
GAP_REMEDY = 'To go on without them set trainer.on_gap = "skip"; without a checkpoint, start with --from-published'


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
    """Raise `SourceError` if a position lies beyond the end of its partition, or behind another record than the one
    that was learned; or before its beginning, with ``trainer.on_gap = "stop"``: the gap would be met only when the next
    example arrives."""
    if any(position.next_offset for position in positions.values()):
        topic = Topics.under(kafka.prefix).sequences
        begins = patiently(
            lambda: _check_ends(kafka, topic, positions), "comparing positions with the sequences topic", kafka, stop
        )
        read = {partition: each.next_offset for partition, each in positions.items() if each.next_offset}
        gone = removed(topic, {partition: begins.get(partition, 0) for partition in read}, read)
        if gone and on_gap == "stop":
            raise GapError(f"{gone}. {GAP_REMEDY}")


def _check_ends(kafka: KafkaConfig, topic: str, positions: Mapping[int, Position]) -> dict[int, int]:
    """The beginning of each partition that exists. Raises `SourceError`."""
    reader = make_consumer(kafka, auto_offset_reset="none", max_partition_fetch_bytes=1)
    try:
        known = [each for each in partitions_of(reader, topic) if each.partition in positions]
        begins = {where.partition: begin for where, begin in reader.beginning_offsets(known).items()}
        reached = {where.partition: end for where, end in ends(reader, known).items()}
        for partition, position in sorted(positions.items()):
            where, end = TopicPartition(topic, partition), reached.get(partition, 0)
            if position.next_offset > end:
                raise lost_end(where, position, "where the checkpoint resumes", f"it ends at {end}")
            if position.next_offset and partition in reached:
                found_ms = record_ms_at(reader, where, position.next_offset - 1, position.record_ms)
                if found_ms != position.record_ms:
                    raise lost_end(where, position, "where the checkpoint resumes", "another record is before that")
        return begins
    finally:
        reader.close()


def lost_end(where: TopicPartition, position: Position, expected: str, got: str) -> SourceError:
    """The error of a partition in which other records than those learned are before ``position``, or none."""
    return SourceError(
        f"{where.topic} partition {where.partition}: expected it to reach offset {position.next_offset}, "
        f"{expected} (example {position.next_number}), but {got}: records were lost, or it is another topic. {REMEDY}"
    )
