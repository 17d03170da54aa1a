"""A topic read by whole batches holds what it holds record by record."""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from crc32c import crc32c
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from tests.brokers import Broker, wait_until
from wire.config import COMPRESSIONS, KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.batches import Batch, _Range, _WholeBatches, by_batch
from wire.kafka.consumer import ends, make_consumer
from wire.kafka.producer import make_producer
from wire.topics import Topics


@pytest.mark.parametrize("compression", [name for name in COMPRESSIONS if name != "snappy"])
def test_batches_hold_every_record_and_move_the_position_past_them(
    compression: str, kafka: Broker, topic_prefix: str
) -> None:
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix, partitions=1, compression=compression)
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

        def is_read() -> bool:
            batches.extend(record.value for records in consumer.poll(200).values() for record in records)
            return bool(consumer.position(where) >= end)

        wait_until(is_read, 60, "the end of the topic", every_s=0)
    finally:
        consumer.close()
    assert consumer.config["isolation_level"] == "read_committed"
    assert sum(batch.num_records for batch in batches) == len(values) > len(batches)
    assert [batch.base_offset for batch in batches] == [
        sum(batch.num_records for batch in batches[:number]) for number in range(len(batches))
    ]
    assert all(value in b"".join(bytes(batch.data) for batch in batches) for value in values)


class Slowly(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python comes without types
    """Reads every batch by kafka-python's own means."""

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Any:
        return super()._unpack_records(tp, _WholeBatches(records), *deserializers)


NONE, GZIP, LZ4, ZSTD = 0, 1, 3, 4


def batch_of(first: int, num: int, codec: int, *, in_transaction: bool = False) -> bytes:
    """As a producer would send it and a broker would keep it."""
    whose = {"producer_id": 9, "producer_epoch": 0, "base_sequence": first} if in_transaction else {}
    builder = MemoryRecordsBuilder(2, codec, 1 << 16, transactional=in_transaction, **whose)
    for number in range(num):
        builder.append(first + number, b"key", b"value %d " % (first + number) * 9)
    builder.close()
    whole = bytearray(builder.buffer())
    whole[:8] = first.to_bytes(8, "big")
    return bytes(whole)


def marker(at: int, *, is_commit: bool) -> bytes:
    """As a broker ends a transaction of `batch_of`."""
    builder = MemoryRecordsBuilder(
        2, NONE, 1 << 16, transactional=True, producer_id=9, producer_epoch=0, base_sequence=0
    )
    builder.append(0, struct.pack(">hh", 0, is_commit), struct.pack(">hi", 0, 0))
    builder.close()
    whole = bytearray(builder.buffer())
    whole[:8] = at.to_bytes(8, "big")
    whole[22] |= 0x20  # attributes
    whole[17:21] = crc32c(bytes(whole[21:])).to_bytes(4, "big")
    return bytes(whole)


def read(
    kind: Any, raw: bytes, first: int = 0, most: int = 1000, aborted_from: int | None = None
) -> tuple[list[Any], int]:
    """(offset, time, records) of each batch that is handed out, and where the next fetch begins."""
    aborted = [] if aborted_from is None else [SimpleNamespace(producer_id=9, first_offset=aborted_from)]
    reader = kind(
        first, TopicPartition("topic", 0), MemoryRecords(raw), isolation_level=1, aborted_transactions=aborted
    )
    told = [
        (each.offset, each.timestamp, each.value) for _ in range(3) for each in (reader and reader.take(most)) or ()
    ]
    plain = [(at, ms, value.base_offset, value.num_records, bytes(value.data)) for at, ms, value in told]
    return plain, reader.next_fetch_offset


@pytest.mark.parametrize("seed", range(8))
def test_plain_batches_are_read_as_kafka_python_reads_them_and_the_others_by_it(seed: int) -> None:
    rng, raw, first = random.Random(seed), b"", 0
    for _ in range(rng.randrange(1, 9)):
        num = rng.randrange(1, 6)
        raw += batch_of(first, num, rng.choice((NONE, ZSTD, ZSTD, GZIP, LZ4)), in_transaction=rng.random() < 0.1)
        first += num + rng.randrange(3)  # compaction leaves gaps
    for cut in (0, 1, 40, 70):
        for begin in (0, first // 2):
            assert read(_Range, raw[: len(raw) - cut], begin) == read(Slowly, raw[: len(raw) - cut], begin)


@pytest.mark.parametrize("kind", [_Range, Slowly])
def test_transactions_are_read_if_they_were_committed(kind: Any) -> None:
    committed = batch_of(2, 2, ZSTD, in_transaction=True) + marker(4, is_commit=True)
    aborted = batch_of(5, 2, NONE, in_transaction=True) + marker(7, is_commit=False)
    raw = batch_of(0, 2, ZSTD) + committed + aborted + batch_of(8, 2, ZSTD)
    told, at = read(kind, raw, aborted_from=5)
    assert [(offset, num) for offset, _, _, num, _ in told] == [(1, 2), (3, 2), (9, 2)]
    assert at == 10


def test_a_batch_that_was_damaged_is_refused_behind_those_that_were_not() -> None:
    damaged = bytearray(batch_of(3, 2, ZSTD))
    damaged[-1] ^= 1
    reader = _Range(0, TopicPartition("topic", 0), MemoryRecords(batch_of(0, 3, ZSTD) + bytes(damaged)))
    assert [each.offset for each in reader.take()] == [2]
    with pytest.raises(CorruptRecordError, match="failed crc check"):
        reader.take()
