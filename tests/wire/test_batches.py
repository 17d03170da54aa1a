"""A topic read by whole batches holds what it holds record by record."""

from __future__ import annotations

import time

import pytest
from kafka import TopicPartition

from tests.brokers import Broker
from wire.config import COMPRESSIONS, KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.batches import Batch, by_batch
from wire.kafka.consumer import ends, make_consumer
from wire.kafka.producer import make_producer
from wire.topics import Topics


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "snappy"])
def test_batches_hold_every_record_and_move_the_position_past_them(compression: str, kafka: Broker) -> None:
    config = KafkaConfig(
        bootstrap=kafka.bootstrap, prefix=f"batches{time.time_ns()}", partitions=1, compression=compression
    )
    ensure_topics(config)
    where = TopicPartition(Topics.under(config.prefix).sequences, 0)
    producer = make_producer(config, linger_ms=50)
    values = [b"value %d " % number * 9 for number in range(500)]
    for number, value in enumerate(values):
        producer.send(where.topic, value, b"k%d" % number, partition=0)
    producer.flush(10)
    producer.close()
    consumer = by_batch(make_consumer(config))
    try:
        end = ends(consumer, [where])[where]
        consumer.seek(where, 0)
        batches: list[Batch] = []
        deadline = time.monotonic() + 20
        while consumer.position(where) < end:
            assert time.monotonic() < deadline
            batches += [record.value for records in consumer.poll(200).values() for record in records]
    finally:
        consumer.close()
    assert consumer.config["isolation_level"] == "read_committed"
    assert sum(batch.num_records for batch in batches) == len(values) > len(batches)
    assert [batch.base_offset for batch in batches] == [
        sum(batch.num_records for batch in batches[:number]) for number in range(len(batches))
    ]
    assert all(value in b"".join(bytes(batch.data) for batch in batches) for value in values)
