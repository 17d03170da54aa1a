"""The follower of the sequences topic on a real broker: a new topic with the same name, more partitions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from threading import Event
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.errors import KafkaTimeoutError

from serving.users.catalogue import Conditions
from serving.users.follower import HistoryFollower
from serving.users.histories import Histories
from serving.users.look_back import LookBack
from tests.brokers import Broker, taken_back, wait_until
from tests.serving.wire import Wire
from tests.serving.world import example, interactions, slice_of
from wire.config import ActionConfig, SequenceConfig
from wire.errors import ConfigError
from wire.example import Interactions, fence
from wire.example_codec import encode_example
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect
from wire.kafka.identity import record_ms_at
from wire.kafka.polls import Consumer
from wire.kafka.producer import make_producer
from wire.shape import SHAPE, encode_shape, shape_of

ROWS = interactions(np.random.default_rng(0), 60)


@pytest.fixture
def wire(kafka: Broker, topic_prefix: str) -> Iterator[Wire]:
    if kafka.kind != "apache":
        pytest.skip("topics are changed on real Apache Kafka (java 17+ and mvn)")
    made = Wire(kafka, topic_prefix)
    yield made
    made.close()


@pytest.fixture
def histories(wire: Wire) -> Iterator[Histories]:
    """Histories kept by a thread that refreshes its metadata every half second."""
    kept = Histories(10**8, topic=wire.topics.sequences)
    options = {"metadata_max_age_ms": 500, "auto_offset_reset": "none"}
    thread = HistoryFollower(lambda _: connect(wire.kafka, 20, **options), wire.topics.sequences, kept)
    thread.start()
    yield kept
    thread.stop()
    thread.join(60)
    assert thread.failure is None


def test_a_follower_has_not_caught_up_with_a_topic_that_was_made_again(wire: Wire) -> None:
    wire.tell([example("a", slice_of(ROWS, 0, 3), number=0)])
    options = {"metadata_max_age_ms": 500, "auto_offset_reset": "none"}
    thread = HistoryFollower(
        lambda _: connect(wire.kafka, 20, **options), wire.topics.sequences,
        Histories(10**8, topic=wire.topics.sequences),
    )  # fmt: skip
    place, had_caught_up = thread._place, list[bool]()
    thread._place = lambda where: had_caught_up.append(thread.caught_up.is_set()) or place(where)  # type: ignore[method-assign,func-returns-value]
    thread.start()
    try:
        assert thread.caught_up.wait(60)
        recreate_sequences(wire)
        wait_until(lambda: len(had_caught_up) == 2, 60, "the new topic to be found")
        assert not any(had_caught_up)
        wait_until(thread.caught_up.is_set, 60, "the new topic to be read")
    finally:
        thread.stop()
        thread.join(60)


def recreate_sequences(wire: Wire) -> None:
    """Delete the topic, and create it again."""
    admin = KafkaAdminClient(bootstrap_servers=wire.kafka.bootstrap)
    admin.delete_topics([wire.topics.sequences])
    wait_until(lambda: wire.topics.sequences not in admin.list_topics(), 60, "the topic to be gone")
    ensure_topics(wire.kafka)
    admin.close()


def length_of(histories: Histories, user: str) -> int:
    past = histories.get(user)
    return -1 if past is None else len(past.interactions)


def test_a_user_begins_a_new_life_in_a_topic_that_was_made_again(wire: Wire, histories: Histories) -> None:
    late = example("a", slice_of(ROWS, 0, 4), number=0, segment=15, segment_len=4)
    wire.tell([late, example("b", slice_of(ROWS, 40, 43), number=1, segment_len=4)])
    wait_until(lambda: length_of(histories, "b") == 3, 60, "the first topic to be read")
    recreate_sequences(wire)
    wire.tell([example("a", slice_of(ROWS, 10, 12), number=0, segment_len=4)])
    wait_until(lambda: length_of(histories, "a") == 2, 60, "the second topic to be read, and that one alone")
    assert histories.get("b") is None
    past = histories.get("a")
    assert past is not None
    np.testing.assert_array_equal(past.interactions.item_hash, ROWS.item_hash[10:12])
    check_known(histories, slice_of(ROWS, 10, 12))


def check_known(histories: Histories, rows: Interactions) -> None:
    """What is known of items and of the time is what a server that has read these rows alone knows."""
    wait_until(lambda: len(histories.items) > 0, 60, "the items to be noted")
    first_ms = {item: int(rows.timestamp_ms[rows.item_hash == item].min()) for item in set(rows.item_hash.tolist())}
    for item, at_ms in first_ms.items():
        seen_then = Conditions(first_from_ms=at_ms, first_until_ms=at_ms)
        assert item in histories.items.fulfilling(seen_then), "as old as in this topic"
    assert set(histories.items.fulfilling(Conditions()).tolist()) == set(first_ms)
    assert histories.clock_ms == rows.timestamp_ms.max()


def test_what_a_topic_lost_with_its_end_is_in_no_history(
    wire: Wire, histories: Histories, durable_kafka: Broker
) -> None:
    wire.tell([example("a", slice_of(ROWS, 0, 3), number=0, segment_len=4)])
    with taken_back(durable_kafka, wire.topics.sequences):
        wire.tell([example("b", slice_of(ROWS, 3, 5), number=1, segment_len=4)])
        wait_until(lambda: length_of(histories, "b") == 2, 60, "both to be read")
    durable_kafka.restart()
    wait_until(lambda: histories.get("b") is None, 60, "the loss to be noticed")
    wait_until(lambda: length_of(histories, "a") == 3, 60, "what is left to be read again")
    check_known(histories, slice_of(ROWS, 0, 3))


def taken_back_unseen(wire: Wire, histories: Histories, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The topic loses its end and grows again before the follower reads on."""
    gate, poll = Event(), Consumer.poll

    def gated(consumer: Consumer, *arguments: Any, **options: Any) -> Any:
        gate.wait(600)
        return poll(consumer, *arguments, **options)

    wire.tell([example("a", slice_of(ROWS, 0, 3), number=0, segment_len=4)])
    gate.set()
    with taken_back(broker, wire.topics.sequences, whole=True):
        wire.tell([example("b", slice_of(ROWS, 3, 5), number=1, segment_len=4)])
        wait_until(lambda: length_of(histories, "b") == 2, 60, "both to be read")
        monkeypatch.setattr(Consumer, "poll", gated)
        gate.clear()
        time.sleep(1.0)
    broker.restart()
    producer = make_producer(wire.kafka)  # another one: that of before may wait for long before it connects again
    for number in range(1, 4):
        later = example("c", slice_of(ROWS, number, number + 1), number=number, segment_len=4)
        producer.send(wire.topics.sequences, encode_example(later), b"c%d" % number, partition=0).get(60)
    producer.close()
    gate.set()


def test_what_a_topic_lost_before_it_grew_again_is_in_no_history(
    wire: Wire, histories: Histories, durable_kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_back_unseen(wire, histories, durable_kafka, monkeypatch)
    wait_until(lambda: length_of(histories, "c") > 0, 60, "what has come since to be read")
    wait_until(lambda: histories.get("b") is None, 60, "the loss to be noticed")
    wait_until(lambda: length_of(histories, "a") == 3, 60, "what is left to be read again")


def test_a_follower_that_does_not_look_back_is_caught(
    wire: Wire, histories: Histories, durable_kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LookBack, "is_due", lambda *_: False)
    taken_back_unseen(wire, histories, durable_kafka, monkeypatch)
    wait_until(lambda: length_of(histories, "c") > 0, 60, "what has come since to be read")
    assert histories.get("b") is not None


def test_what_was_fetched_before_the_broker_went_away_is_not_lost(
    wire: Wire, histories: Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a new connection the follower looks back; here the broker does not answer that at first."""
    wire.tell([example("a", slice_of(ROWS, 0, 3), number=0)])
    wait_until(lambda: length_of(histories, "a") == 3, 60, "the topic to be read")
    answers, connections = [KafkaTimeoutError("no answer")] * 2, itertools.count(1000)

    def silent_at_first(*arguments: Any) -> int:
        if answers:
            raise answers.pop()
        return record_ms_at(*arguments)

    monkeypatch.setattr("serving.users.look_back.record_ms_at", silent_at_first)
    monkeypatch.setattr("serving.users.look_back.connections_made", lambda _: next(connections))
    wire.tell([example("b", slice_of(ROWS, 0, 3), number=1)])
    wait_until(lambda: length_of(histories, "b") == 3, 60, "what was fetched to be folded")
    assert not answers, "it has looked back, in vain"


def test_users_who_were_forgotten_while_the_follower_was_cut_off_are_in_no_history(
    wire: Wire, histories: Histories, caplog: pytest.LogCaptureFixture
) -> None:
    wire.tell([example("a", slice_of(ROWS, 0, 3), number=0)])
    wait_until(lambda: length_of(histories, "a") == 3, 60, "the topic to be read")
    wait_until(lambda: histories.is_complete, 60, "it to be known as read")
    wire.tell([example("b", slice_of(ROWS, 0, 3), number=2)])
    wait_until(lambda: "lacks 1 examples from number 1 on" in caplog.text, 60, "the gap to be seen")
    wait_until(lambda: histories.is_complete and length_of(histories, "b") == 3, 60, "the topic to be read again")
    wire.tell([example("b", slice_of(ROWS, 0, 4), number=3)])
    wait_until(lambda: length_of(histories, "b") == 4, 60, "it to be followed")
    assert caplog.text.count("are gone: reading it again") == 1


def test_a_follower_of_another_configuration_than_the_workers_ends(wire: Wire) -> None:
    theirs = shape_of(ActionConfig(features=("brand", "price")), SequenceConfig())
    ours = shape_of(ActionConfig(features=("price", "brand")), SequenceConfig())
    for shape in (theirs, ours):
        wire.tell([fence(1, 1)], [(SHAPE, encode_shape(theirs))])
        thread = HistoryFollower(
            lambda _: connect(wire.kafka, 20, auto_offset_reset="none"), wire.topics.sequences,
            Histories(10**8, topic=wire.topics.sequences, shape=shape),
        )  # fmt: skip
        thread.start()
        if shape == theirs:
            assert thread.caught_up.wait(60)
            thread.stop()
        thread.join(60)
        assert (thread.failure is None) == (shape == theirs)
    assert isinstance(thread.failure, ConfigError)
    assert "partition 1 offset 0: action.features: expected ('price', 'brand')" in str(thread.failure)


def test_partitions_that_are_added_are_told(wire: Wire, histories: Histories, caplog: pytest.LogCaptureFixture) -> None:
    wire.tell([example("b", slice_of(ROWS, 0, 3), number=0)])
    wait_until(lambda: length_of(histories, "b") == 3, 60, "the topic to be read")
    admin = KafkaAdminClient(bootstrap_servers=wire.kafka.bootstrap)
    admin.create_partitions({wire.topics.sequences: wire.kafka.partitions + 2})
    admin.close()
    expected = f"topic {wire.topics.sequences}: expected {wire.kafka.partitions} partitions, the broker has"
    wait_until(lambda: expected in caplog.text, 60, "it to be said")


def test_a_follower_that_has_not_read_everything_says_what_is_left(wire: Wire) -> None:
    wire.tell([example("a", slice_of(ROWS, number, number + 1), number=number) for number in range(3)])
    wire.tell([example("b", slice_of(ROWS, 0, 1), number=0, partition=1)])
    connecting = Event()

    def connected(_: Event) -> KafkaConsumer:
        connecting.wait(60)
        return connect(wire.kafka, 20, auto_offset_reset="none")

    thread = HistoryFollower(connected, wire.topics.sequences, Histories(10**8, topic=wire.topics.sequences))
    assert thread.waits_for == "", "the server says that the broker is away"
    told: list[str] = []
    thread._fold = lambda *_: told.append(thread.waits_for)  # type: ignore[method-assign]
    thread.start()
    connecting.set()
    assert thread.caught_up.wait(60)
    assert thread.waits_for == ""
    read = f"histories: 0 of 4 records of {wire.topics.sequences} are read; most are left of partition 0: 3"
    assert told[0] == read
    thread.stop()
    thread.join(60)
