"""Waiting for a broker that is away. Every wait can be ended by a `threading.Event`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError

from wire.config import KafkaConfig
from wire.errors import BrokerUnavailable, TopicMissing, brief
from wire.kafka.consumer import accepts_connections, partitions_of
from wire.kafka.refusal import refusal

RETRY_S = 1.0
log = structlog.get_logger("wire")
Result = TypeVar("Result")


class StoppedError(Exception):
    """The process was asked to end while it waited for the broker."""


def patiently(action: Callable[[], Result], what: str, kafka: KafkaConfig, stop: threading.Event) -> Result:
    """Call ``action``, again every second while the broker is away.

    Raises `StoppedError` once ``stop`` is set, and `ClientRefused` if no retry would help.
    """
    is_away = False
    while True:
        try:
            result = action()
        except (KafkaError, OSError) as error:
            if refused := refusal(error, kafka.bootstrap, what):
                raise refused from error
            if not is_away:
                log.warning(
                    "broker away, trying again", what=what, broker=kafka.bootstrap, error=_described(error, kafka)
                )
            is_away = True
            if stop.wait(RETRY_S):
                raise StoppedError(what) from error
            continue
        if is_away:
            log.info("broker is back", what=what, broker=kafka.bootstrap)
        return result


def _described(error: Exception, kafka: KafkaConfig) -> str:
    if isinstance(error, KafkaTimeoutError) and accepts_connections(kafka):
        return f"{brief(error)}; it accepts connections: is kafka.client.security_protocol that of its listener?"
    return brief(error)


def wait_for_broker(config: KafkaConfig, timeout_s: float) -> None:
    """Return when any bootstrap server accepts a connection. Raises `BrokerUnavailable` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not accepts_connections(config):
        if time.monotonic() >= deadline:
            raise BrokerUnavailable(
                f"no Kafka broker answered at {config.bootstrap} within {timeout_s:g} s; "
                "start it, or name another one by kafka.bootstrap (HEADRACE_KAFKA__BOOTSTRAP)"
            )
        time.sleep(0.2)


def wait_for_partitions(consumer: KafkaConsumer, topic: str, stop: threading.Event) -> list[TopicPartition]:
    """The topic's partitions; waits until the topic exists. Raises `StoppedError` once ``stop`` is set, and
    `ClientRefused` if no retry would help."""
    while not stop.is_set():
        try:
            return partitions_of(consumer, topic)
        except (KafkaError, TopicMissing) as error:
            if refused := refusal(error, str(consumer.config["bootstrap_servers"])):
                raise refused from error
            stop.wait(0.2)
    raise StoppedError(f"finding topic {topic}")
