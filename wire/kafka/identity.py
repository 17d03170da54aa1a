"""The identities of topics: the broker's own id of each, and its number of partitions.

A topic that was deleted and created again has the same name, other records under the same offsets, and another id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, UnknownTopicOrPartitionError, for_code

from wire.config import KafkaConfig
from wire.errors import TopicMissing, TopicReplaced
from wire.kafka.admin import check_policies, make_admin, partitions_added
from wire.kafka.consumer import Span, read
from wire.kafka.refusal import refusal

LOOK_S = 5.0
"""How often a process checks that its topics are still the same."""
MISSES = 2
"""A topic that is missing this many times in a row is gone. (A broker that has just started may not know it yet.)"""


class Identity(NamedTuple):
    """A topic's id (empty if the broker gives none), and its number of partitions."""

    id: str
    num_partitions: int


def identities(kafka: KafkaConfig, names: Iterable[str]) -> dict[str, Identity]:
    """The identities of those topics that exist. Raises KafkaError or OSError."""
    admin = make_admin(kafka)
    try:
        return _ask(admin, names)
    finally:
        admin.close()


def _ask(admin: KafkaAdminClient, names: Iterable[str]) -> dict[str, Identity]:
    found = {}
    for described in admin.describe_topics(list(names)):
        if described["error_code"] not in (0, UnknownTopicOrPartitionError.errno):
            raise for_code(described["error_code"])(described["name"])
        if described["partitions"]:
            found[described["name"]] = _identity(described)
    return found


def _identity(described: Mapping[str, object]) -> Identity:
    given, partitions = str(described.get("topic_id") or ""), described["partitions"]
    assert isinstance(partitions, list)
    return Identity(given if given.strip("0-") else "", len(partitions))


def check_same(name: str, before: str, now: str, where: str, remedy: str) -> None:
    """Raise `TopicReplaced` if a topic is not the one that a position (``where``) refers to; unknown ids pass."""
    if before and now and before != now:
        raise TopicReplaced(
            f"topic {name}: expected the one with id {before}, which {where} refers to, got one with id {now}: it was "
            f"deleted and created again. {remedy}"
        )


def record_ms_at(consumer: KafkaConsumer, where: TopicPartition, offset: int, otherwise: int) -> int:
    """The Kafka timestamp (ms) of the record at an offset before the end; ``otherwise`` if that is negative (unknown),
    or the record is gone. Assigns the partition. Raises KafkaError.

    It tells one record from another at its place, as in a broker whose data was restored from an older copy."""
    if otherwise < 0 or consumer.beginning_offsets([where])[where] > offset:
        return otherwise
    found = next(read(consumer, where.topic, {where.partition: Span(offset, offset + 1)}), None)
    return otherwise if found is None else int(found.timestamp)


class TopicWatch:
    """Compares topics with what they were at first. For one thread at a time."""

    def __init__(self, kafka: KafkaConfig, known: Mapping[str, Identity], remedies: Mapping[str, str]) -> None:
        self._kafka, self._known, self._remedies = kafka, dict(known), remedies
        self._num_misses = dict.fromkeys(known, 0)
        self._admin: KafkaAdminClient | None = None

    def look(self, where: str) -> None:
        """Raise `TopicReplaced`, `TopicMissing` or `TopicsMismatch` if a topic is no longer the same, or removes what
        is needed; ``where`` names the position that refers to it. While the broker is away, nothing is raised."""
        try:
            self._admin = self._admin or make_admin(self._kafka)
            self._compare(_ask(self._admin, self._known), where)
            check_policies(self._admin, self._kafka)
        except (KafkaError, OSError) as error:
            self.close()
            if refused := refusal(error, self._kafka.bootstrap):
                raise refused from error

    def _compare(self, found: Mapping[str, Identity], where: str) -> None:
        for name, before in self._known.items():
            now = found.get(name)
            self._num_misses[name] = 0 if now is not None else self._num_misses[name] + 1
            if now is not None:
                check_same(name, before.id, now.id, where, self._remedies[name])
                if now.num_partitions != before.num_partitions:
                    raise partitions_added(name, before.num_partitions, now.num_partitions)
            elif self._num_misses[name] >= MISSES:
                raise TopicMissing(
                    f"topic {name}: expected it to exist still, with {where}, but it is gone. {self._remedies[name]}"
                )

    def close(self) -> None:
        """Disconnect."""
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()
