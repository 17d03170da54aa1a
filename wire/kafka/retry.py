"""Waiting for a broker that is away. Every wait can be ended by a `threading.Event`."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from wire.config import KafkaConfig
from wire.errors import BrokerUnavailable, TopicMissing
from wire.kafka.consumer import partitions_of
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
            if refused := refusal(error, kafka.bootstrap):
                raise refused from error
            if not is_away:
                log.warning("broker away, trying again", what=what, broker=kafka.bootstrap, error=repr(error))
            is_away = True
            if stop.wait(RETRY_S):
                raise StoppedError(what) from error
            continue
        if is_away:
            log.info("broker is back", what=what, broker=kafka.bootstrap)
        return result


def wait_for_broker(config: KafkaConfig, timeout_s: float) -> None:
    """Return when any bootstrap server accepts a connection. Raises `BrokerUnavailable` after ``timeout_s``."""
    servers = config.bootstrap.split(",")
    deadline = time.monotonic() + timeout_s
    while True:
        for server in servers:
            host, _, port = server.strip().rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
            except (OSError, ValueError):
                continue
            return
        if time.monotonic() >= deadline:
            raise BrokerUnavailable(
                f"no Kafka broker answered at {config.bootstrap} within {timeout_s:g} s; "
                "start it, or name another one by kafka.bootstrap (HEADRACE_KAFKA__BOOTSTRAP)"
            )
        time.sleep(0.2)


def wait_for_partitions(
    consumer: KafkaConsumer, topic: str, stop: threading.Event, every_s: float = 0.2
) -> list[TopicPartition]:
    """The topic's partitions; waits until the topic exists. Raises `StoppedError` once ``stop`` is set."""
    while not stop.is_set():
        try:
            return partitions_of(consumer, topic)
        except (KafkaError, TopicMissing):
            stop.wait(every_s)
    raise StoppedError(f"finding topic {topic}")
