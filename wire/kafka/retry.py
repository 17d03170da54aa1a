"""Waiting for a broker that is away. Every wait can be ended by a `threading.Event`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError

from wire.config import KafkaConfig
from wire.errors import BrokerUnavailable, TopicMissing, brief
from wire.kafka.addresses import accepts_connections, remedy_for
from wire.kafka.consumer import partitions_of, reconnect
from wire.kafka.refusal import refusal

RETRY_S = 1.0
SAY_AGAIN_S = 30.0
"""While the broker is away, the log says so this often."""
log = structlog.get_logger("wire")
Result = TypeVar("Result")


class StoppedError(Exception):
    """The process was asked to end while it waited for the broker."""


class Absence:
    """What the log says while the broker or a topic is away: that it is, again every `SAY_AGAIN_S`, and when it is
    back."""

    def __init__(self, what: str, kafka: KafkaConfig) -> None:
        self._what, self._kafka = what, kafka
        self._since_s = self._told_s = 0.0
        self._told_of_topic = False
        self.is_over = True

    def note(self, error: BaseException) -> None:
        """Note that the broker did not answer."""
        now_s = time.monotonic()
        if self.is_over:
            self.is_over, self._since_s, self._told_s, self._told_of_topic = False, now_s, float("-inf"), False
        is_topic = isinstance(error, TopicMissing)  # often met as a time-out first
        if now_s - self._told_s < SAY_AGAIN_S and not (is_topic and not self._told_of_topic):
            return
        self._told_s, self._told_of_topic = now_s, is_topic or self._told_of_topic
        event = "topic missing, trying again" if is_topic else "broker away, trying again"
        log.warning(
            event, what=self._what, broker=self._kafka.bootstrap,
            away_s=round(now_s - self._since_s, 1), error=_described(error, self._kafka),
        )  # fmt: skip

    def end(self) -> None:
        """Note that it answers."""
        if not self.is_over:
            away_s = round(time.monotonic() - self._since_s, 1)
            log.info("broker is back", what=self._what, broker=self._kafka.bootstrap, away_s=away_s)
        self.is_over = True


def patiently(action: Callable[[], Result], what: str, kafka: KafkaConfig, stop: threading.Event) -> Result:
    """Call ``action``, again every second while the broker is away.

    Raises `StoppedError` once ``stop`` is set, and `ClientRefused` if no retry would help.
    """
    absence = Absence(what, kafka)
    while True:
        try:
            result = action()
        except (KafkaError, OSError) as error:
            if refused := refusal(error, kafka.bootstrap, what):
                raise refused from error
            absence.note(error)
            if stop.wait(RETRY_S):
                raise StoppedError(what) from error
            continue
        absence.end()
        return result


def _described(error: BaseException, kafka: KafkaConfig) -> str:
    return f"{brief(error)}; {remedy_for(kafka)}" if isinstance(error, KafkaTimeoutError) else brief(error)


def connect_patiently(kafka: KafkaConfig, stop: threading.Event, **options: Any) -> KafkaConsumer:
    """A consumer, once a broker answers, however long that takes: how every long-running process starts.

    Raises `StoppedError` once ``stop`` is set, and `ClientRefused` if no retry would help.
    """
    return patiently(lambda: reconnect(kafka, **options), "connecting", kafka, stop)


def wait_for_broker(config: KafkaConfig, timeout_s: float) -> None:
    """Return when any bootstrap server accepts a connection. Raises `BrokerUnavailable` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not accepts_connections(config):
        if time.monotonic() >= deadline:
            raise BrokerUnavailable(
                f"no Kafka broker answered at {config.bootstrap} within {timeout_s:g} s; {remedy_for(config)}"
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
