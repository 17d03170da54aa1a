"""Plain Kafka consumers for a server: bounded waiting at start, manual assignment, no groups, no commits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from wire.config import KafkaConfig
from wire.errors import BrokerUnavailable

POLL_MS = 200


def connect(kafka: KafkaConfig, timeout_s: float, **options: Any) -> KafkaConsumer:
    """A consumer of ``kafka.bootstrap``; `BrokerUnavailable` when the broker does not answer within ``timeout_s``."""
    settings: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "group_id": None,
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "auto_offset_reset": "none",
        "reconnect_backoff_max_ms": 1000,
        "metadata_max_age_ms": 5000,
        "bootstrap_timeout_ms": max(1, int(timeout_s * 1000)),
        **options,
        **kafka.client,
    }
    try:
        return KafkaConsumer(**settings)
    except (KafkaError, OSError) as error:
        raise BrokerUnavailable(
            f"kafka.bootstrap: expected a broker at {kafka.bootstrap}, got no answer in {timeout_s:g} s "
            f"({type(error).__name__}); start it, or set kafka.bootstrap"
        ) from error


def partitions_of(consumer: KafkaConsumer, topic: str, stopping: Callable[[], bool]) -> list[TopicPartition]:
    """The topic's partitions, waiting for the topic to exist; empty when ``stopping`` comes first."""
    while not stopping():
        try:
            numbers = consumer.partitions_for_topic(topic)
        except KafkaError:
            numbers = None
        if numbers:
            return [TopicPartition(topic, number) for number in sorted(numbers)]
        time.sleep(POLL_MS / 1000)
    return []


class Contact:
    """When a broker was last heard of: one object, shared by everything that talks to it."""

    def __init__(self) -> None:
        self._heard = time.monotonic()
        self._up = True

    def heard(self) -> None:
        """The broker answered just now."""
        self._heard, self._up = time.monotonic(), True

    def missed(self) -> None:
        """The broker did not answer."""
        self._up = False

    @property
    def is_up(self) -> bool:
        """Whether the last attempt was answered."""
        return self._up

    @property
    def away_s(self) -> float:
        """How long it has not answered; 0 while it does."""
        return 0.0 if self._up else time.monotonic() - self._heard
