"""Warnings, when a worker starts, about topics whose settings differ from the configuration.

A ``cleanup.policy`` that would remove needed records is refused instead (`wire.kafka.admin.check_policies`).
"""

from __future__ import annotations

from contextlib import suppress

from kafka.errors import KafkaError

from stream.logs import log
from wire.config import KafkaConfig
from wire.kafka.admin import config_drift, untold
from wire.topics import topics_of


def warn_of_drift(kafka: KafkaConfig) -> None:
    """Log which settings differ or are unknown: a shorter retention removes what a trainer may still need."""
    with suppress(KafkaError, OSError):
        if hidden := untold(kafka):
            log.warning(
                "the broker does not show the settings of these topics, so they cannot be compared with the "
                "configuration: give this user the right to describe them", topics=hidden,
            )  # fmt: skip
        for topic, broker in config_drift(kafka).items():
            configured = {each.name: each.settings for each in topics_of(kafka)}[topic]
            log.warning(
                "a topic's settings differ from the configuration; change one or the other (kafka-configs.sh)",
                topic=topic, broker=broker, configured={key: configured[key] for key in broker},
            )  # fmt: skip


def warn_of_times(topic: str) -> None:
    """Log that records have their producers' times, although topics are created to have the broker's."""
    log.warning(
        "records have their producers' times, not the broker's: these decide what is in the future, how old answers "
        "are, the time of day that the model knows, and which domain and features of an item are the last, for a year "
        "after one that is a year ahead; set message.timestamp.type = LogAppendTime (the embedded broker cannot), or "
        "let the broker refuse such times (message.timestamp.after.max.ms, an hour by default since Kafka 4)",
        topic=topic,
    )  # fmt: skip
