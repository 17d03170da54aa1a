"""Lines of training beside each other: servers follow the one that an operator has chosen."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from kafka import KafkaProducer

from serving.versions.rollout import PinFollower, Rollout
from tests.brokers import Broker, wait_until
from tests.serving.wire import Wire, served
from tests.serving.world import World
from wire.control import LINE_KEY, Pin, Switch, encode_decision
from wire.kafka.consumer import connect

TO_B = Switch(line="b", made_ms=0)


@pytest.fixture
def main(kafka: Broker, topic_prefix: str) -> Iterator[Wire]:
    wire = Wire(kafka, topic_prefix)
    yield wire
    wire.close()


@pytest.fixture
def beside(kafka: Broker, topic_prefix: str, main: Wire) -> Iterator[Wire]:
    wire = Wire(kafka, main.kafka.prefix, line="b")
    yield wire
    wire.close()


def test_a_server_follows_the_line_that_it_is_told_to_and_comes_back(main: Wire, beside: Wire) -> None:
    old, new = World(num_users=2), World(num_users=2, seed=1)
    with main.subscriber() as thread:
        for kind in ("base", "delta", "delta"):
            last = main.publish(old, kind)
        served(thread, last)
        first = beside.publish(new)
        thread.intake.rollout.switched = TO_B
        served(thread, first)
        assert first < last, "the lines count on their own, and a lower number of the other line may follow"
        behind = main.publish(old, "delta")
        served(thread, beside.publish(new, "delta"))
        thread.intake.rollout.switched = None
        served(thread, behind)
        served(thread, main.publish(old, "delta"))


def test_the_last_version_answers_until_the_other_line_has_one(
    main: Wire, kafka: Broker, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = World(num_users=2)
    with main.subscriber() as thread:
        served(thread, main.publish(old))
        with caplog.at_level(logging.ERROR):
            thread.intake.rollout.switched = TO_B
            wait_until(lambda: "line 'b': topic" in caplog.text, 60, "the missing topic to be told")
        served(thread, main.publish(old, "delta"))
        other = Wire(kafka, main.kafka.prefix, line="b")
        try:
            served(thread, other.publish(World(num_users=2, epoch=0, seed=1)))
        finally:
            other.close()


def test_a_server_that_starts_after_the_order_follows_it_at_once(main: Wire, beside: Wire) -> None:
    main.publish(World(num_users=2))
    wanted = beside.publish(World(num_users=2, epoch=3, seed=1))
    rollout = Rollout()
    rollout.switched = TO_B
    with main.subscriber(rollout) as thread:
        served(thread, wanted)
        assert thread.manager.num_swaps == 1, "no version of the main line has answered"


def test_a_pin_counts_for_its_own_line(main: Wire, beside: Wire) -> None:
    old, new = World(num_users=2), World(num_users=2, seed=1)
    first = main.publish(old)
    main.publish(old, "delta")
    beside.publish(new)
    newest = beside.publish(new, "delta")
    with main.subscriber() as thread:
        thread.intake.rollout.ordered = Pin(epoch=first[0], number=first[1], made_ms=0)
        served(thread, first)
        thread.intake.rollout.switched = TO_B
        served(thread, newest)
        assert thread.intake.rollout.wanted is None
        thread.intake.rollout.switched = None
        served(thread, first)


def test_the_order_is_read_from_the_topic(main: Wire) -> None:
    rollout = Rollout(own_line="mine")
    producer = KafkaProducer(bootstrap_servers=main.kafka.bootstrap)
    follower = PinFollower(lambda: connect(main.kafka, 20), main.topics.control, rollout)
    follower.start()
    try:
        assert rollout.known.wait(60)
        assert rollout.line == "mine"
        producer.send(main.topics.control, key=LINE_KEY, value=encode_decision(TO_B)).get(60)
        wait_until(lambda: rollout.line == "b", 60, "the decision")
        producer.send(main.topics.control, key=LINE_KEY, value=b"{}").get(60)
        producer.send(main.topics.control, key=LINE_KEY, value=encode_decision(Switch(line="", made_ms=0))).get(60)
        wait_until(lambda: rollout.line == "", 60, "the decision after what is none")
        producer.send(main.topics.control, key=LINE_KEY, value=None).get(60)
        wait_until(lambda: rollout.line == "mine", 60, "the decision to be gone")
    finally:
        follower.stop()
        follower.join(60)
        producer.close(timeout=2)
