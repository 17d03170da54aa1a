"""A poll takes no more memory the more partitions it reads."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests import bombs
from tests.brokers import Broker
from wire.config import KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.async_consumer import plain_consumer
from wire.kafka.decompression import MOST_POLL_BYTES
from wire.topics import Topics

NUM_PARTITIONS = 6
NUM_BYTES = MOST_POLL_BYTES // 2


async def polls_of(consumer: AIOKafkaConsumer, places: list[TopicPartition]) -> list[dict[int, int]]:
    """By poll and partition: the bytes that were returned. The first poll waits until all partitions are fetched."""
    consumer.assign(places)
    until_s = time.monotonic() + 30
    while len(consumer._fetcher._records) < len(places):
        assert time.monotonic() < until_s, "expected a fetch of each partition"
        await asyncio.sleep(0.05)
    polls = list[dict[int, int]]()
    while sum(map(len, polls)) < len(places):
        found = await consumer.getmany(timeout_ms=5_000)
        assert found, "expected more records"
        polls.append({each.partition: sum(len(record.value) for record in records) for each, records in found.items()})
    return polls


def test_a_poll_of_many_partitions_returns_as_much_as_one_of_one(kafka: Broker, topic_prefix: str) -> None:
    if kafka.kind != "apache":
        pytest.skip("expected Apache Kafka: the embedded broker decompresses by itself")
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix, partitions=NUM_PARTITIONS)
    ensure_topics(config)
    topic = Topics.under(config.prefix).actions
    for partition in range(NUM_PARTITIONS):
        bombs.write(config.bootstrap, topic, partition, bombs.bomb("zstd", NUM_BYTES))

    async def read() -> list[dict[int, int]]:
        async with plain_consumer(config) as consumer:
            return await polls_of(consumer, [TopicPartition(topic, number) for number in range(NUM_PARTITIONS)])

    polls = asyncio.run(read())
    assert [list(poll.values()) for poll in polls] == [[NUM_BYTES] * 2] * (NUM_PARTITIONS // 2)
    assert sorted(number for poll in polls for number in poll) == list(range(NUM_PARTITIONS))
