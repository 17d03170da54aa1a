"""What partitions of the sequences topic have lost: their start, which retention and deletions remove, and compaction
does not; or their end, as when a broker's data is restored from an older copy, or a leader's election was unclean."""

from __future__ import annotations

from collections.abc import Mapping

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import LogTruncationError, OffsetOutOfRangeError

OUT_OF_RANGE = (OffsetOutOfRangeError, LogTruncationError)
"""What the poll of a consumer that does not reset its positions raises: see `out_of_range`."""
ASK_TIMEOUT_MS = 2_000


def removed(topic: str, begins: Mapping[int, int], expected: Mapping[int, int] | None = None) -> str:
    """What was removed from the start of partitions, in words; empty if none begins after ``expected`` (0)."""
    first = expected or {}
    late = [number for number, begin in sorted(begins.items()) if begin > first.get(number, 0)]
    if not late:
        return ""
    places = ", ".join(f"partition {number} begins at {begins[number]}, not {first.get(number, 0)}" for number in late)
    return (
        f"topic {topic}: expected what compaction leaves, but {places}: a cleanup.policy with delete, or "
        "kafka-delete-records, has removed what users' sequences consist of. See docs/operations.md, Back up and "
        "restore, for a lost sequences topic"
    )


def out_of_range(
    consumer: KafkaConsumer, error: OffsetOutOfRangeError | LogTruncationError
) -> tuple[dict[TopicPartition, int], list[TopicPartition]]:
    """Why a consumer that does not reset its positions cannot go on: the partitions that have lost records before where
    they begin now, with that offset; and those that have lost their end. Raises KafkaError if the broker does not say.

    What was read once is never out of range otherwise; so a partition that has grown again meanwhile is one of those.
    """
    if isinstance(error, LogTruncationError):
        return {}, sorted(error.divergent_offsets)
    asked: Mapping[TopicPartition, int] = error.args[0]
    begins = consumer.beginning_offsets(list(asked), timeout_ms=ASK_TIMEOUT_MS)
    later = {where: begin for where, begin in begins.items() if begin > asked[where]}
    return later, sorted(where for where in asked if where not in later)
