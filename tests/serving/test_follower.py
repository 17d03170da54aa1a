"""The follower of the sequences topic on a real broker: a new topic with the same name, more partitions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kafka import KafkaAdminClient

from serving.follower import HistoryFollower
from serving.histories import Histories
from tests.brokers import Broker, wait_until
from tests.serving.wire import Wire
from tests.serving.world import example, interactions, slice_of
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect

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
    consumer = connect(wire.kafka, 20, metadata_max_age_ms=500, auto_offset_reset="none")
    thread = HistoryFollower(consumer, wire.topics.sequences, kept)
    thread.start()
    yield kept
    thread.stop()
    thread.join(60)
    assert thread.failure is None


def length_of(histories: Histories, user: str) -> int:
    past = histories.get(user)
    return -1 if past is None else len(past.interactions)


def test_a_user_begins_a_new_life_in_a_topic_that_was_made_again(wire: Wire, histories: Histories) -> None:
    late = example("a", slice_of(ROWS, 0, 4), number=0, segment=15, segment_len=4)
    wire.tell([late, example("b", slice_of(ROWS, 0, 3), number=1, segment_len=4)])
    wait_until(lambda: length_of(histories, "b") == 3, 60, "the first topic to be read")
    admin = KafkaAdminClient(bootstrap_servers=wire.kafka.bootstrap)
    admin.delete_topics([wire.topics.sequences])
    wait_until(lambda: wire.topics.sequences not in admin.list_topics(), 60, "the topic to be gone")
    ensure_topics(wire.kafka)
    admin.close()
    wire.tell([example("a", slice_of(ROWS, 10, 12), number=0, segment_len=4)])
    wait_until(lambda: length_of(histories, "a") == 2, 60, "the second topic to be read, and that one alone")
    assert histories.get("b") is None
    past = histories.get("a")
    assert past is not None
    np.testing.assert_array_equal(past.interactions.item_hash, ROWS.item_hash[10:12])


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
    consumer = connect(wire.kafka, 20, auto_offset_reset="none")
    thread = HistoryFollower(consumer, wire.topics.sequences, Histories(10**8, topic=wire.topics.sequences))
    assert thread.waits_for == f"topic {wire.topics.sequences} to exist (headrace topics --create)"
    told: list[str] = []
    thread._fold = lambda *_: told.append(thread.waits_for)  # type: ignore[method-assign]
    thread.start()
    assert thread.caught_up.wait(60)
    assert thread.waits_for == ""
    read = f"histories: 0 of 4 records of {wire.topics.sequences} are read; most are left of partition 0: 3"
    assert told[0] == read
    thread.stop()
    thread.join(60)
