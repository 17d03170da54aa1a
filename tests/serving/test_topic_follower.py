"""Threads that read topics beside the answers: a broker that is away, records of others, failures said once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError

import serving.topic_follower
from serving.topic_follower import TopicFollower
from serving.versions.rollout import PinFollower, Rollout
from tests.brokers import Broker, wait_until
from tests.serving.wire import Wire
from wire.control import PIN_KEY, Pin, encode_decision
from wire.errors import BrokerUnavailable
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect, follow

LOGGER = "serving.topic_follower"


class Reader(TopicFollower):
    """Keeps what it reads; ``b"fails"`` is more than it can handle, the first time."""

    what: ClassVar[str] = "the test's topic cannot be read now"
    retry_s: ClassVar[float] = 0.1

    def __init__(self, connect: Callable[[], KafkaConsumer], topic: str) -> None:
        super().__init__("reader", connect)
        self.topic, self.values, self.num_failures = topic, list[bytes](), 0

    def follow(self, consumer: KafkaConsumer) -> None:
        for record in follow(consumer, self.topic, num_last=1000):
            if record is not None and record.value not in self.values:
                self.values.append(record.value)
                if record.value == b"fails":
                    raise ValueError("a value that nobody has thought of")
            if self.stopping.is_set():
                return

    def failed(self) -> None:
        self.num_failures += 1


def send(wire: Wire, *values: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=wire.kafka.bootstrap)
    for value in values:
        producer.send(wire.topics.control, key=b"k", value=value, partition=0).get(60)
    producer.close(timeout=5)


@pytest.mark.slow
def test_a_follower_goes_on_after_the_broker_was_away_and_after_any_failure(
    durable_kafka: Broker, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(durable_kafka, topic_prefix)
    send(wire, b"1")
    durable_kafka.kill()
    reader = Reader(lambda: connect(wire.kafka, 0.5), wire.topics.control)
    reader.start()
    try:
        wait_until(lambda: reader.num_failures > 2, 60, "it to find no broker")
        away = [each for each in caplog.records if each.levelno == logging.WARNING and each.name == LOGGER]
        assert len(away) == 1, "told once, not with each try"
        assert "no Kafka broker answers" in away[0].getMessage()
        durable_kafka.restart()
        wait_until(lambda: reader.values == [b"1"], 60, "what was there")
        send(wire, b"2", b"fails", b"3")
        wait_until(lambda: reader.values == [b"1", b"2", b"fails", b"3"], 60, "what follows a failure")
        durable_kafka.kill()
        durable_kafka.restart()
        send(wire, b"4")
        wait_until(lambda: reader.values[-1] == b"4", 60, "what is written after the broker was away")
    finally:
        reader.stop()
        reader.join(60)
        wire.close()
    assert not reader.is_alive()
    messages = [(each.levelno, each.getMessage()) for each in caplog.records if each.name == LOGGER]
    assert (logging.ERROR, "the test's topic cannot be read now; starting again") in messages


def told(errors: list[Exception], caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged as a warning of a reader that meets these, one after the other."""

    def fail() -> Any:
        if len(errors) == 1:
            reader.stop()
        raise errors.pop(0)

    caplog.clear()
    reader = Reader(fail, "")
    reader.retry_s = 0.0  # type: ignore[misc]
    reader.run()
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def test_a_failure_is_told_when_it_is_another_than_the_last(caplog: pytest.LogCaptureFixture) -> None:
    away, closed = BrokerUnavailable("no broker"), KafkaError("closed")
    assert told([away, away, closed, OSError("x"), OSError("x"), away], caplog) == [
        f"the test's topic cannot be read now ({text}); trying again"
        for text in ("no broker", str(closed), "x", "no broker")
    ]


def test_a_failure_is_told_again_when_reading_has_worked_since(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = BrokerUnavailable("no broker")
    assert len(told([away, away, away], caplog)) == 1
    monkeypatch.setattr(serving.topic_follower, "SETTLED_S", 0.0)
    assert len(told([away, away, away], caplog)) == 3


class Watched(Rollout):
    """Notes each pin that it is given."""

    def __init__(self) -> None:
        self.__dict__["pins"] = []
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "ordered" and value not in self.__dict__["pins"]:
            self.__dict__["pins"].append(value)


def test_of_the_pins_that_a_topic_has_only_the_last_ever_counts(kafka: Broker, topic_prefix: str) -> None:
    """Read again after the broker was away, an earlier one would move the server for a moment."""
    wire, rollout = Wire(kafka, topic_prefix), Watched()
    pin(wire, 1, 2, 3)
    assert following(wire, rollout) == (1, 3)
    assert [each and each.number for each in rollout.__dict__["pins"]] == [None, 3]
    wire.close()


def test_a_pin_that_the_topic_no_longer_has_is_forgotten_when_it_is_read_again(
    kafka: Broker, topic_prefix: str
) -> None:
    wire, rollout = Wire(kafka, topic_prefix), Rollout()
    rollout.ordered = Pin(epoch=1, number=1, made_ms=0)
    assert following(wire, rollout) is None
    wire.close()


@pytest.mark.slow
def test_pins_of_a_topic_that_is_created_again_while_it_is_followed_are_heard(kafka: Broker, topic_prefix: str) -> None:
    wire, rollout = Wire(kafka, topic_prefix), Rollout()
    pin(wire, 1, 2, 3)
    follower = PinFollower(lambda: connect(wire.kafka, 20, metadata_max_age_ms=500), wire.topics.control, rollout)
    follower.retry_s = 0.1  # type: ignore[misc]
    follower.start()
    try:
        wait_until(lambda: rollout.wanted == (1, 3), 60, "the last pin")
        again(wire)
        wait_until(lambda: rollout.wanted is None, 60, "a topic without pins")
        pin(wire, 4)
        wait_until(lambda: rollout.wanted == (1, 4), 60, "a pin of the new topic")
    finally:
        follower.stop()
        follower.join(60)
        wire.close()


def again(wire: Wire) -> None:
    """Delete the control topic, and create it."""
    admin = KafkaAdminClient(bootstrap_servers=wire.kafka.bootstrap)
    admin.delete_topics([wire.topics.control])
    wait_until(lambda: wire.topics.control not in admin.list_topics(), 60, "the topic to be gone")
    admin.close()
    ensure_topics(wire.kafka)


def pin(wire: Wire, *numbers: int) -> None:
    """Decide for these versions, one after the other."""
    producer = KafkaProducer(bootstrap_servers=wire.kafka.bootstrap)
    for number in numbers:
        decision = encode_decision(Pin(epoch=1, number=number, made_ms=0))
        producer.send(wire.topics.control, key=PIN_KEY, value=decision, partition=0).get(60)
    producer.close(timeout=5)


def following(wire: Wire, rollout: Rollout) -> tuple[int, int] | None:
    """The version that is wanted once the control topic is read."""
    follower = PinFollower(lambda: connect(wire.kafka, 20), wire.topics.control, rollout)
    follower.start()
    try:
        assert rollout.known.wait(60)
        return rollout.wanted
    finally:
        follower.stop()
        follower.join(60)
