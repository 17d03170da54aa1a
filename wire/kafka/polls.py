"""What a poll of either client returns: no more bytes than fit into memory, and also of partitions that were paused.

Both clients bound the records of a poll by their number, and what is fetched as it is compressed. What `wire.kafka.
decompression` lets through may still be 64 MiB a record, so a poll also ends after `MOST_POLL_BYTES` of values
of all its partitions, one batch's excepted. What it leaves stays compressed in memory until the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import aiokafka.consumer.fetcher
from kafka import KafkaConsumer, TopicPartition

from wire.kafka.decompression import MOST_POLL_BYTES


def size_of(value: Any) -> int:
    """The bytes of a record's value; those of all its records if it is a batch (`wire.kafka.batches`)."""
    if value is None:
        return 0
    return len(value) if isinstance(value, (bytes, bytearray)) else len(value.data)


class _Meter(Iterator[Any]):
    """An iterator that pauses, as if it had ended, when `left` bytes were handed out."""

    def __init__(self, records: Iterable[Any], fetcher: Any) -> None:
        self._records, self._fetcher = iter(records), fetcher

    def __next__(self) -> Any:
        if self._fetcher.bytes_left <= 0:
            raise StopIteration
        record = next(self._records)
        self._fetcher.bytes_left -= size_of(record.value)
        return record


class Consumer(KafkaConsumer):
    """kafka-python's, amended.

    kafka-python (3.0.12) puts aside what it has fetched of a paused partition and not returned, and fetches no more of
    it until that is returned. It takes it back only while no fetch is in line, and one stays in line when all of it was
    returned: a partition that is resumed, even elsewhere or after it was assigned again, may never be read again.
    """

    def __init__(self, *topics: str, **options: Any) -> None:
        super().__init__(*topics, **options)
        _bound(self._fetcher)

    def poll(self, *args: Any, **options: Any) -> dict[TopicPartition, list[Any]]:
        """As `KafkaConsumer.poll`."""
        fetcher = self._fetcher
        if not fetcher._next_partition_records:  # noqa: SLF001
            fetcher._next_partition_records = None  # noqa: SLF001
        found: dict[TopicPartition, list[Any]] = super().poll(*args, **options)
        return found


def _bound(fetcher: Any) -> None:
    """Have a poll end when it has taken its bytes: what it is told of the last records is that they were the most."""
    take_all, append = fetcher.fetched_records, fetcher._append  # noqa: SLF001
    fetcher.bytes_left = MOST_POLL_BYTES

    def fetched_records(*arguments: Any, **options: Any) -> Any:
        fetcher.bytes_left = MOST_POLL_BYTES
        return take_all(*arguments, **options)

    def bounded(drained: Any, part: Any, max_records: int, update_offsets: bool) -> int:
        if part and not isinstance(part.record_iterator, _Meter):
            part.record_iterator = _Meter(part.record_iterator, fetcher)
        num: int = append(drained, part, max_records, update_offsets)
        return num if fetcher.bytes_left > 0 else max_records

    fetcher.fetched_records, fetcher._append = fetched_records, bounded  # noqa: SLF001


_bytes_left: ContextVar[int] = ContextVar("_bytes_left", default=MOST_POLL_BYTES)
"""What the poll of aiokafka's that is going on may still return; each runs in one task."""
_take_all = aiokafka.consumer.fetcher.Fetcher.fetched_records


async def _fetched_records(*arguments: Any, **options: Any) -> Any:
    _bytes_left.set(MOST_POLL_BYTES)
    return await _take_all(*arguments, **options)


class FetchResult(aiokafka.consumer.fetcher.FetchResult):
    """What aiokafka fetched of a partition."""

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> list[Any]:
        """As aiokafka's; nothing once the poll has taken its bytes from other partitions."""
        bytes_left = _bytes_left.get()
        if bytes_left <= 0 or not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        taken = list[Any]()
        for record in self._partition_records:
            taken.append(record)
            bytes_left -= size_of(record.value)
            if len(taken) == max_records or bytes_left <= 0:
                self._update_position()
                break
        else:
            self._update_position()
            self._partition_records = None
        _bytes_left.set(bytes_left)
        return taken


aiokafka.consumer.fetcher.Fetcher.fetched_records = _fetched_records
aiokafka.consumer.fetcher.FetchResult = FetchResult
