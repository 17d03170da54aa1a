"""Topics that are set otherwise than the configuration says: the worker warns of them when it starts.

Those whose ``cleanup.policy`` would remove what is needed are refused instead (`wire.kafka.admin.check_policies`).
"""

from __future__ import annotations

from contextlib import suppress

from kafka.errors import KafkaError

from stream.logs import log
from wire.config import KafkaConfig
from wire.kafka.admin import config_drift, untold
from wire.topics import topics_of


def warn_of_drift(kafka: KafkaConfig) -> None:
    """Log which settings differ, or are not told: a shorter retention removes what a trainer may still need."""
    with suppress(KafkaError):
        if hidden := untold(kafka):
            log.warning(
                "the broker does not say how these topics are set, so nobody compares that with the configuration: "
                "give this user the right to describe their settings", topics=hidden,
            )  # fmt: skip
        for topic, broker in config_drift(kafka).items():
            configured = {each.name: each.settings for each in topics_of(kafka)}[topic]
            log.warning(
                "a topic's settings differ from the configuration; change one or the other (kafka-configs.sh)",
                topic=topic, broker=broker, configured={key: configured[key] for key in broker},
            )  # fmt: skip


def warn_of_times(topic: str) -> None:
    """Log that records have their producers' times, although each topic is created with the broker's."""
    log.warning(
        "records have their producers' times, not the broker's: these decide what is in the future, and how old "
        "answers are; set message.timestamp.type = LogAppendTime (the embedded broker cannot)", topic=topic,
    )  # fmt: skip
