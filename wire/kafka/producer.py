"""The one way to create kafka-python's producers."""

from __future__ import annotations

from typing import Any

from kafka import KafkaProducer

from wire.config import KafkaConfig
from wire.kafka.options import sync_options

MOST_BYTES = 16 << 20
"""Of a record, before compression."""


def make_producer(kafka: KafkaConfig, **options: Any) -> KafkaProducer:
    """A producer that reports within seconds what was not acknowledged; the caller tries again.

    ``kafka.client`` overrides ``options``. It is not idempotent: readers recognise our records by epoch, number and
    index, and the embedded broker does not support idempotence. Raises ``KafkaError`` or OSError when no broker
    answers.
    """
    ours: dict[str, Any] = {
        "acks": "all",
        # What a broker takes depends on the size after compression, which it knows and this client does not.
        "max_request_size": max(MOST_BYTES, kafka.max_message_bytes),
        "request_timeout_ms": 5_000,
        "delivery_timeout_ms": 15_000,
        "max_block_ms": 10_000,
        "enable_idempotence": False,
        "bootstrap_timeout_ms": 5_000,
        "reconnect_backoff_max_ms": 1_000,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
        "compression_type": None if kafka.compression == "none" else kafka.compression,
    }
    return KafkaProducer(**{**ours, **options, **sync_options(kafka)})
