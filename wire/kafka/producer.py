"""The one way to create kafka-python's producers, and to send a single record."""

from __future__ import annotations

from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from wire.config import KafkaConfig
from wire.errors import HeadraceError
from wire.kafka.addresses import refuse_silence
from wire.kafka.admin import partitions_mismatch
from wire.kafka.consumer import connect, partitions_of
from wire.kafka.options import made, sync_options
from wire.kafka.refusal import refusal
from wire.partitioner import partition_of
from wire.topics import topics_of

SEND_S = 20.0
"""How long `send_one` waits for the broker."""

MOST_BYTES = 16 << 20
"""The size of the largest record that a producer accepts, before compression."""


def make_producer(kafka: KafkaConfig, **options: Any) -> KafkaProducer:
    """A producer that reports within seconds what was not acknowledged; the caller tries again.

    ``kafka.client`` overrides ``options``. It is not idempotent: readers recognise our records by epoch, number and
    index, and the embedded broker does not support idempotence. Raises ``KafkaError`` or OSError when no broker
    answers.
    """
    refuse_silence(kafka)
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
    return made(KafkaProducer, {**ours, **options, **sync_options(kafka)})


def home_of(kafka: KafkaConfig, topic: str, key: bytes, num_found: int) -> int:
    """The partition of a topic of the deployment in which the key's records belong: by the number of partitions that it
    was created with, whatever was added since. ``num_found``: how many it is known to have.

    Raises `TopicsMismatch` if that is another number: the configuration may be that of another deployment.
    """
    [expected] = [each.num_partitions for each in topics_of(kafka) if each.name == topic]
    if num_found != expected:
        raise partitions_mismatch(topic, expected, num_found)
    return partition_of(key, expected)


def send_one(kafka: KafkaConfig, topic: str, key: bytes, value: bytes | None, what: str) -> Any:
    """Send a record to its key's partition, and wait until the broker has it; returns its metadata.

    Raises `TopicMissing`, `TopicsMismatch` (`home_of`), or `HeadraceError` if the broker does not accept it; ``what``
    names the record there.
    """
    consumer = connect(kafka)
    try:
        home = home_of(kafka, topic, key, len(partitions_of(consumer, topic)))
    finally:
        consumer.close()
    producer = make_producer(kafka)
    try:
        return producer.send(topic, key=key, value=value, partition=home).get(SEND_S)
    except KafkaError as error:
        raise refusal(error, kafka.bootstrap, "writing") or HeadraceError(
            f"the broker did not accept the {what} ({error}); nothing has changed, try again"
        ) from error
    finally:
        producer.close(timeout=2)
