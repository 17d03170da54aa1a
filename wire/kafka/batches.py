"""Reading a topic by whole batches, as the producer made them, for callers that decode many records at a time.

kafka-python creates several objects per record, which takes longer than everything else in reading a topic. `by_batch`
makes a consumer return one record per batch instead: its value is the batch's records, decompressed and checked, its
offset that of the last of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher

FORMAT = 2
"""Of batches. Kafka has written it since 0.11."""


class Batch(NamedTuple):
    """The records of a batch, as format 2 lays them out, not compressed."""

    base_offset: int
    num_records: int
    data: bytearray


class _Whole:
    """A batch of kafka-python's that iterates as one record."""

    key = None
    headers: tuple[()] = ()
    checksum = None

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[_Whole]:
        yield self

    @property
    def offset(self) -> int:
        """That of the last record."""
        return int(self._batch.last_offset)

    @property
    def timestamp(self) -> int:
        """That of the newest record."""
        return int(self._batch.max_timestamp)

    @property
    def value(self) -> Batch:
        """All of it."""
        batch = self._batch
        batch._maybe_uncompress()  # noqa: SLF001
        return Batch(batch.base_offset, batch.records_count, batch._buffer[batch._pos :])  # noqa: SLF001


class _WholeBatches:
    """The records of a fetched range, of which each batch is one."""

    def __init__(self, records: Any) -> None:
        self._records = records

    def next_batch(self) -> Any:
        """The next one, or None."""
        batch = self._records.next_batch()
        return batch if batch is None or batch.magic != FORMAT else _Whole(batch)


class _Range(Fetcher.PartitionRecords):
    """kafka-python's reading of what was fetched, transactions and checksums included."""

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Any:
        return super()._unpack_records(tp, _WholeBatches(records), *deserializers)


def by_batch(consumer: KafkaConsumer) -> KafkaConsumer:
    """Make a consumer return batches: the value of each record is a `Batch`. (Those of an older format come record by
    record, with bytes as values.) The first batch may begin before the requested position."""
    consumer._fetcher.PartitionRecords = _Range  # noqa: SLF001
    return consumer
