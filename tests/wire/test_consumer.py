"""Ranges of a topic are read completely on every broker, including the embedded one with its understated ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from headrace.broker import EmbeddedBroker
from tests.brokers import Broker, wait_until
from wire.config import KafkaConfig
from wire.errors import BrokerUnavailable, TopicMissing
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import PATIENT, PROMPT, Span, connect, ends, follow, partitions_of, read, read_from, spans
from wire.kafka.producer import make_producer
from wire.topics import Topics

NUM_BATCHES, BATCH = 4, 5
NUM = NUM_BATCHES * BATCH


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


@pytest.fixture(params=["the tests' broker", "the embedded broker"])
def config(request: pytest.FixtureRequest, kafka: Broker, embedded: str, topic_prefix: str) -> KafkaConfig:
    """A deployment of two partitions, whose actions topic holds four batches of five records in each."""
    bootstrap = embedded if request.param == "the embedded broker" else kafka.bootstrap
    config = KafkaConfig(bootstrap=bootstrap, prefix=topic_prefix, partitions=2)
    ensure_topics(config)
    producer = make_producer(config, linger_ms=100)
    for batch in range(NUM_BATCHES):
        for index in range(batch * BATCH, (batch + 1) * BATCH):
            for partition in (0, 1):
                producer.send(Topics.under(config.prefix).actions, value=b"%d" % index, partition=partition)
        producer.flush()
    producer.close()
    return config


@pytest.fixture
def consumer(config: KafkaConfig) -> Iterator[KafkaConsumer]:
    consumer = connect(config)
    yield consumer
    consumer.close()


def test_a_range_is_read_whole_and_no_further(config: KafkaConfig, consumer: KafkaConsumer) -> None:
    topic = Topics.under(config.prefix).actions
    partitions = partitions_of(consumer, topic)
    assert ends(consumer, partitions) == dict.fromkeys(partitions, NUM)
    assert spans(consumer, topic) == {0: Span(0, NUM), 1: Span(0, NUM)}
    found: dict[int, list[int]] = {0: [], 1: []}
    for record in read(consumer, topic, {0: Span(3, 17), 1: Span(0, NUM)}):
        found[record.partition].append(int(record.value))
    assert found == {0: list(range(3, 17)), 1: list(range(NUM))}
    again = read(consumer, topic, {0: Span(5, 8)})
    assert [record.offset for record in again] == [5, 6, 7], "a range that was read before"


def test_what_is_new_is_read_to_the_last_record_every_time(config: KafkaConfig) -> None:
    where = TopicPartition(Topics.under(config.prefix).actions, 0)
    consumer = connect(config, **PROMPT)
    producer = make_producer(config)
    assert [record.offset for record in read_from(consumer, where, 11)] == list(range(11, NUM))
    for num in range(NUM, NUM + 3):
        assert list(read_from(consumer, where, num)) == []
        producer.send(where.topic, value=b"new", partition=0).get(60)
        assert [record.value for record in read_from(consumer, where, num)] == [b"new"]
    producer.close()
    consumer.close()


def test_a_follower_gets_the_last_records_and_then_each_new_one(config: KafkaConfig, consumer: KafkaConsumer) -> None:
    topic = Topics.under(config.prefix).actions
    records = (record for record in follow(consumer, topic, num_last=2) if record is not None)
    assert sorted((each.partition, each.offset) for each in (next(records) for _ in range(4))) == [
        (0, NUM - 2), (0, NUM - 1), (1, NUM - 2), (1, NUM - 1),
    ]  # fmt: skip
    producer = make_producer(config)
    producer.send(topic, value=b"new", partition=1).get(60)
    producer.close()
    assert next(records).value == b"new"


def test_a_patient_consumer_hears_of_news_at_once_and_rarely_asks(config: KafkaConfig) -> None:
    where = TopicPartition(Topics.under(config.prefix).actions, 0)
    consumer, producer, num_asked = connect(config, **PATIENT), make_producer(config), 0
    taken = consumer._fetcher._handle_fetch_response

    def count(*arguments: Any) -> None:
        nonlocal num_asked
        num_asked += 1
        taken(*arguments)

    consumer._fetcher._handle_fetch_response = count
    consumer.assign([where])
    consumer.seek(where, NUM)
    until_s = time.monotonic() + 4 * PATIENT["fetch_max_wait_ms"] / 1000
    while time.monotonic() < until_s:
        assert not consumer.poll(timeout_ms=100)
    assert num_asked <= 6, "four and those around them"
    consumer.close()
    producer.close()


def test_news_and_what_is_asked_for_wait_for_no_fetch_that_brings_nothing(config: KafkaConfig) -> None:
    where = TopicPartition(Topics.under(config.prefix).actions, 0)
    consumer, producer = connect(config, fetch_max_wait_ms=20_000, request_timeout_ms=60_000), make_producer(config)
    began_s = time.monotonic()
    assert ends(consumer, [where]) == {where: NUM}
    assert list(read(consumer, where.topic, {0: Span(3, NUM)}))[-1].offset == NUM - 1
    assert ends(consumer, [where]) == {where: NUM}
    assert time.monotonic() - began_s < 20, "what is asked for"
    consumer.seek(where, NUM)
    assert not consumer.poll(timeout_ms=100)
    began_s = time.monotonic()
    producer.send(where.topic, b"new", partition=0)
    while not consumer.poll(timeout_ms=100):
        pass
    assert time.monotonic() - began_s < 15, "news"
    producer.close()
    consumer.close()


def test_a_topic_that_is_not_there_is_named(consumer: KafkaConsumer) -> None:
    with pytest.raises(TopicMissing, match=r"topic nothing: expected it on the broker, got none; .* topics --create"):
        spans(consumer, "nothing")
    with pytest.raises(TopicMissing, match=r"none; correct the line of training, or .* \(kafka\.line = 'typo'\)"):
        spans(consumer, Topics.under("a.v1.b", "typo").weights)


def test_a_broker_that_is_not_there_is_named() -> None:
    with pytest.raises(BrokerUnavailable, match=r"no Kafka broker answers at 127.0.0.1:1 within 0.2 s"):
        connect(KafkaConfig(bootstrap="127.0.0.1:1"), 0.2)
    with pytest.raises(BrokerUnavailable, match=r"this machine knows no host nowhere\.invalid: correct it, or name"):
        connect(KafkaConfig(bootstrap="nowhere.invalid:9092"), 0.2)


def pause_and_go_back(consumer: KafkaConsumer, partitions: list[TopicPartition]) -> None:
    """Read each partition beyond offset 10 and pause it, with records fetched and not returned; then go back to 5."""
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    reading = partitions
    while reading:
        consumer.poll(timeout_ms=100)
        consumer.pause(*(each for each in reading if consumer.position(each) >= 10))
        reading = [each for each in reading if consumer.position(each) < 10]
    for each in partitions:
        consumer.seek(each, 5)
    consumer.resume(*partitions)


def test_partitions_that_were_paused_are_read_on(config: KafkaConfig) -> None:
    consumer = connect(config, max_poll_records=7)
    partitions = partitions_of(consumer, Topics.under(config.prefix).actions)
    pause_and_go_back(consumer, partitions)
    found: dict[TopicPartition, list[int]] = {each: [] for each in partitions}

    def all_read() -> bool:
        for each, records in consumer.poll(timeout_ms=100).items():
            found[each] += [record.offset for record in records]
        return all(offsets[-1:] == [NUM - 1] for offsets in found.values())

    wait_until(all_read, 60, "both partitions")
    assert list(found.values()) == [list(range(5, NUM))] * 2
    consumer.close()


def test_the_client_alone_never_reads_one_of_them_again(config: KafkaConfig) -> None:
    """If this fails after an upgrade, `wire.kafka.consumer` no longer needs a consumer of its own."""
    consumer = connect(config, max_poll_records=7)
    partitions = partitions_of(consumer, Topics.under(config.prefix).actions)
    pause_and_go_back(consumer, partitions)
    read_on = {each for _ in range(20) for each in KafkaConsumer.poll(consumer, timeout_ms=100)}
    assert read_on != set(partitions)
    consumer.close()
