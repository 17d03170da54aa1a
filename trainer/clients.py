"""Kafka clients of the trainer: plain consumers with manual assignment, and patience with an absent broker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from trainer.errors import SourceError
from wire.config import KafkaConfig

log = structlog.get_logger("trainer")
RETRY_S = 1.0
Result = TypeVar("Result")


class StoppedError(Exception):
    """The process is asked to end while it waits for the broker."""


def patiently(action: Callable[[], Result], what: str, kafka: KafkaConfig, stop: threading.Event) -> Result:
    """Do it, and again every second while the broker is away. Raises `StoppedError` once ``stop`` is set."""
    away = False
    while True:
        try:
            result = action()
        except (KafkaError, OSError) as error:
            if not away:
                log.warning(
                    "broker away, trying again until it answers", what=what, broker=kafka.bootstrap, error=repr(error)
                )
            away = True
            if stop.wait(RETRY_S):
                raise StoppedError(what) from error
            continue
        if away:
            log.info("broker is back", what=what, broker=kafka.bootstrap)
        return result


def consumer(kafka: KafkaConfig, **more: Any) -> KafkaConsumer:
    """A consumer without a group: offsets are ours."""
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "allow_auto_create_topics": False,
        "max_poll_records": 2000,
        "fetch_max_bytes": 32 << 20,
        "max_partition_fetch_bytes": 8 << 20,
        "request_timeout_ms": 10_000,
        "bootstrap_timeout_ms": 5_000,
        "reconnect_backoff_max_ms": 1_000,
        "metrics_enabled": False,
        **more,
        **kafka.client,
    }
    return KafkaConsumer(**options)


def producer(kafka: KafkaConfig, **more: Any) -> KafkaProducer:
    """A producer that reports what was not acknowledged within seconds; the caller tries again.

    Without idempotence: readers know our records by epoch, number and index, and the embedded broker has none.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap,
        "acks": "all",
        "request_timeout_ms": 5_000,
        "delivery_timeout_ms": 15_000,
        "max_block_ms": 10_000,
        "enable_idempotence": False,
        "bootstrap_timeout_ms": 5_000,
        "reconnect_backoff_max_ms": 1_000,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
        **more,
        **kafka.client,
    }
    return KafkaProducer(**options)


def partitions_of(client: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """All partitions of a topic; raises `SourceError` when there is no such topic."""
    found = client.partitions_for_topic(topic)
    if not found:
        raise SourceError(
            f"topic {topic}: expected it on the broker, got none; start a worker, or: headrace topics --create"
        )
    return [TopicPartition(topic, partition) for partition in sorted(found)]
