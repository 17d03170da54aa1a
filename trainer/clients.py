"""The trainer's names for `wire.kafka`."""

from __future__ import annotations

from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from trainer.errors import SourceError
from wire.config import KafkaConfig
from wire.errors import TopicMissing
from wire.kafka import consumer as consumers
from wire.kafka.producer import make_producer
from wire.kafka.retry import StoppedError, patiently

__all__ = ["StoppedError", "consumer", "partitions_of", "patiently", "producer"]


def consumer(kafka: KafkaConfig, **more: Any) -> KafkaConsumer:
    """`wire.kafka.consumer.make_consumer`."""
    return consumers.make_consumer(kafka, **more)


def producer(kafka: KafkaConfig, **more: Any) -> KafkaProducer:
    """`wire.kafka.producer.make_producer`."""
    return make_producer(kafka, **more)


def partitions_of(client: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """All partitions of a topic; raises `SourceError` when there is no such topic."""
    try:
        return consumers.partitions_of(client, topic)
    except TopicMissing as error:
        raise SourceError(str(error)) from None
