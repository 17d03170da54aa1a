"""Whether a topic still holds what was read of it before: one that was restored from an older copy may have grown again
beyond the place where a reader goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from wire.kafka.batches import by_batch
from wire.kafka.identity import record_ms_at
from wire.kafka.options import connections_made


class LookBack:
    """Compares, after each new connection of a consumer that reads by batches, the last batch of each partition."""

    def __init__(self) -> None:
        self._num_connections = -1
        self._last: dict[TopicPartition, tuple[int, int]] = {}
        """The offset of the last record and the newest Kafka timestamp of the last batch."""

    def note(self, fetched: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Remember what was read last."""
        self._last |= {where: (records[-1].offset, records[-1].timestamp) for where, records in fetched.items()}

    def forget(self) -> None:
        """The topic is read anew."""
        self._last.clear()

    def is_due(self, consumer: KafkaConsumer) -> bool:
        """Whether the consumer has connected since `moved` has answered."""
        num_connections = connections_made(consumer)
        if not self._last:
            self._num_connections = num_connections
        return num_connections != self._num_connections

    def moved(self, consumer: KafkaConsumer, another: KafkaConsumer) -> list[int]:
        """The partitions that have something else at the place of what was read last; ``another`` consumer reads it,
        and is closed. What compaction has removed is not missed. Raises KafkaError; then it stays due."""
        num_connections = connections_made(consumer)
        with closing(by_batch(another)) as reader:
            found = sorted(
                where.partition for where, (offset, ms) in self._last.items()
                if record_ms_at(reader, where, offset, ms) != ms
            )  # fmt: skip
        self._num_connections = num_connections
        return found
