"""Waiting for a broker: what is said, how often, and what ends the wait."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import KafkaError
from structlog.testing import capture_logs

from tests.brokers import free_port
from wire.config import KafkaConfig
from wire.errors import BrokerUnavailable, TopicMissing
from wire.kafka.addresses import announced
from wire.kafka.admin import make_admin
from wire.kafka.consumer import connect, make_consumer, reconnect
from wire.kafka.options import sync_options
from wire.kafka.producer import make_producer
from wire.kafka.retry import Absence, StoppedError, connect_patiently, patiently

BRIEFLY = {"bootstrap_timeout_ms": 50}


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def nowhere() -> KafkaConfig:
    return KafkaConfig(bootstrap=f"127.0.0.1:{free_port()}")


def test_an_absence_is_told_at_once_then_every_so_often_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("wire.kafka.retry.time.monotonic", lambda: now_s[0])
    absence, told = Absence("reading", nowhere()), list[tuple[str, float]]()
    for _ in range(2):
        with capture_logs() as lines:
            for _ in range(65):
                absence.note(OSError("away"))
                now_s[0] += 1.0
            absence.end()
            absence.end()
        told += [(line["event"], line["away_s"]) for line in lines]
    once = [("broker away, trying again", float(each)) for each in (0, 30, 60)] + [("broker is back", 65.0)]
    assert told == once * 2


def test_a_topic_that_turns_out_to_be_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that loses a topic first times out, which looks like a broker that is away."""
    now_s = [100.0]
    monkeypatch.setattr("wire.kafka.retry.time.monotonic", lambda: now_s[0])
    absence = Absence("reporting", nowhere())
    with capture_logs() as lines:
        for error in (OSError("no answer"), *[TopicMissing("topic x: expected on the broker")] * 35):
            absence.note(error)
            now_s[0] += 1.0
    told = [(line["event"], line["away_s"]) for line in lines]
    missing = "topic missing, trying again"
    assert told == [("broker away, trying again", 0.0), (missing, 1.0), (missing, 31.0)]


def test_what_waits_for_a_broker_ends_at_once_when_it_is_told_to() -> None:
    stop, took_s = threading.Event(), time.monotonic()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(StoppedError):
        connect_patiently(nowhere(), stop)
    assert time.monotonic() - took_s < 3.0


def test_a_port_that_something_else_answers_is_named_as_such() -> None:
    """A web server: it takes the connection, and closes it when it sees no request."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as other, capture_logs() as lines:
        port = other.getsockname()[1]
        threading.Thread(target=_closes_everything, args=(other,), daemon=True).start()
        threading.Timer(7.0, stop.set).start()
        with pytest.raises(StoppedError):
            connect_patiently(KafkaConfig(bootstrap=f"127.0.0.1:{port}"), stop)
    assert "and that it is a Kafka broker" in lines[0]["error"]


def test_a_port_that_takes_connections_and_answers_no_handshake_is_no_broker() -> None:
    """A broker that is paused: kafka-python would wait for its handshake for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        for ask in (reconnect, make_consumer, make_admin, make_producer):
            with pytest.raises(BrokerUnavailable, match="answers no TLS handshake within 2 s"):
                ask(KafkaConfig(bootstrap=where, client={"security_protocol": "SSL"}))


def _closes_everything(listener: socket.socket) -> None:
    try:
        while True:
            accepted, _ = listener.accept()
            accepted.close()
    except OSError:
        return


@pytest.mark.parametrize("make", [make_consumer, make_producer, make_admin])
def test_who_tries_again_until_a_broker_answers_holds_nothing_more_each_time(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is paused, or expects another protocol."""
    for name in ("admin", "consumer", "producer"):
        monkeypatch.setattr(f"wire.kafka.{name}.sync_options", lambda kafka: {**sync_options(kafka), **BRIEFLY})
    monkeypatch.setattr("wire.kafka.admin.wait_for_broker", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        kafka = KafkaConfig(bootstrap=f"127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(3):
            before = threading.active_count(), num_open()
            with pytest.raises((KafkaError, OSError)):
                make(kafka)
            with suppress(BlockingIOError):
                while True:
                    silent.accept()[0].close()
            assert (threading.active_count(), num_open()) == before


def test_a_command_says_what_it_waits_for_before_it_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(BrokerUnavailable):
        connect(nowhere(), 3.0)
    assert "waiting up to 3 s for a Kafka broker" in caplog.text


def test_nothing_is_said_of_a_broker_that_is_there(caplog: pytest.LogCaptureFixture) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as there,
        announced(KafkaConfig(bootstrap=f"127.0.0.1:{there.getsockname()[1]}"), 5.0),
    ):
        time.sleep(1.5)
    assert caplog.text == ""


def test_an_action_that_fails_for_another_reason_is_not_tried_again() -> None:
    with pytest.raises(ValueError, match="no"):
        patiently(lambda: int("no"), "counting", nowhere(), threading.Event())
