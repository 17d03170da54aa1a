"""Versions kept by count: what the trainer deletes from the weights topic, and what it never deletes."""

from __future__ import annotations

import time

import msgspec
import pytest
from kafka import KafkaProducer

from tests.brokers import Broker
from tests.serving.wire import Wire, served
from tests.serving.world import World
from trainer.versions.keeper import VersionKeeper
from wire.config import KafkaConfig
from wire.control import PIN_KEY, Pin, encode_decision
from wire.kafka.consumer import connect, read, spans
from wire.weights import Manifest, decode_manifest, record_kind


def manifest(number: int, base_offset: int) -> Manifest:
    """Only what a keeper looks at."""
    (record,) = World(num_users=1).records("base", 0)[-1:]
    return msgspec.structs.replace(decode_manifest(record[2]), number=number, base_offset=base_offset)


def keeper(keep: int, every: int = 4, num: int = 20, kafka: KafkaConfig | None = None) -> VersionKeeper:
    """A keeper that has seen ``num`` versions, every so many of them a base, 10 records each."""
    made = VersionKeeper(kafka or KafkaConfig(), keep)
    made.note([manifest(number, number // every * every * 10) for number in range(num)])
    return made


@pytest.mark.parametrize(
    ("keep", "first"), [(1, 120), (4, 120), (8, 120), (9, 80), (12, 80), (13, 40), (20, 0), (99, 0)]
)
def test_what_the_newest_versions_build_on_is_kept_and_always_two_bases(keep: int, first: int) -> None:
    assert keeper(keep).first_kept(None) == first


@pytest.mark.parametrize(
    ("pin", "first"),
    [
        (Pin(epoch=1, number=6, made_ms=0), 40),
        (Pin(epoch=1, number=18, made_ms=0), 120),
        (Pin(epoch=2, number=0, made_ms=0), 120),
        (Pin(epoch=1, number=6, made_ms=0, line="b"), 120),
        (Pin(epoch=0, number=5, made_ms=0), 0),
    ],
    ids=["an old one", "a new one", "one to come", "of another line", "not known here"],
)
def test_a_pinned_version_is_kept(pin: Pin, first: int) -> None:
    assert keeper(5).first_kept(pin) == first


def first_version(wire: Wire) -> tuple[int, int]:
    """The first version that the topic still has."""
    consumer = connect(wire.kafka)
    try:
        held = read(consumer, wire.topics.weights, spans(consumer, wire.topics.weights))
        return next(decode_manifest(each.value).which for each in held if record_kind(each.headers) == "manifest")
    finally:
        consumer.close()


def test_older_versions_leave_the_topic_and_any_that_is_left_can_still_be_served(
    kafka: Broker, topic_prefix: str
) -> None:
    if kafka.kind != "apache":
        pytest.skip("the embedded broker cannot delete records")
    wire, world = Wire(kafka, topic_prefix), World(num_users=2)
    made = VersionKeeper(wire.kafka, keep=5)
    producer = KafkaProducer(bootstrap_servers=wire.kafka.bootstrap)
    published = list[tuple[int, int]]()
    try:
        for number in range(12):
            kind = "delta" if number % 3 else "base"
            records = world.records(kind, wire.next_offset)
            wire.send(records)
            published.append((world.epoch, world.number))
            made.note([decode_manifest(records[-1][2])])
            if number == 8:
                pin = Pin(epoch=world.epoch, number=published[4][1], made_ms=int(time.time() * 1000))
                producer.send(wire.topics.control, key=PIN_KEY, value=encode_decision(pin)).get(60)
                producer.send(wire.topics.control, key=PIN_KEY, value=b"of somebody else").get(60)
        made.trim()
        assert first_version(wire) == published[3], "the pinned one is the fifth, and builds on the fourth"
        producer.send(wire.topics.control, key=PIN_KEY, value=None).get(60)
        made.trim()
        assert first_version(wire) == published[6], "of the newest five, the oldest builds on the seventh"
        with wire.subscriber() as thread:
            served(thread, published[-1])
            for which in (published[7], published[6], published[10]):
                thread.intake.rollout.ordered = Pin(epoch=which[0], number=which[1], made_ms=0)
                served(thread, which)
    finally:
        producer.close(timeout=2)
        wire.close()


def test_what_the_broker_does_not_delete_is_not_remembered_for_ever(kafka: Broker, topic_prefix: str) -> None:
    wire = Wire(kafka, topic_prefix)
    try:
        made = keeper(3, kafka=wire.kafka)
        made.trim()
        assert made._trimmed == 0, "the topic ends before"
        assert [which for which, _ in made._versions] == [(1, number) for number in range(12, 20)]
    finally:
        wire.close()


def test_a_broker_that_is_away_is_no_reason_to_stop() -> None:
    keeper(3, kafka=KafkaConfig(bootstrap="127.0.0.1:1")).trim()
