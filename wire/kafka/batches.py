"""Reading a topic by whole batches, as the producer made them, for callers that decode many records at a time.

kafka-python creates several objects per record, which takes longer than everything else in reading a topic. `by_batch`
makes a consumer return one record per batch instead: its value is the batch's records, decompressed and checked, its
offset that of the last of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

from crc32c import crc32c
from kafka import KafkaConsumer
from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from zstandard import ZstdDecompressor, ZstdError, frame_content_size

from wire.kafka.decompression import TooLarge, most_bytes, unread
from wire.unread import Unread

FORMAT = 2
"""The format of batches that Kafka has written since 0.11."""
_HEADER = DefaultRecordBatch.HEADER_STRUCT
_BEFORE_LENGTH, _BEFORE_CRC = 12, 21
"""How many bytes a batch's length does not count, and how many its checksum does not cover."""
_ZSTD = DefaultRecordBatch.CODEC_ZSTD
_PLAIN = frozenset({DefaultRecordBatch.CODEC_NONE, _ZSTD})
"""Attributes of a batch outside of transactions, whoever set its times."""
_MOST_UNKNOWN = 1 << 20
"""The assumed size of a batch that does not state its own."""
MOST_RECORDS = 1 << 20
"""A batch of more is too large as well: each takes 200 bytes of whoever decodes it."""


class Batch(NamedTuple):
    """The records of a batch, as format 2 lays them out, not compressed."""

    base_offset: int
    num_records: int
    data: bytes | bytearray
    last_offset: int
    """What the batch says, since compaction may have removed its last record; at least that of the last one here."""


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

    def __next__(self) -> Any:
        """The batch's own next record: kafka-python looks into the markers that end transactions."""
        return next(self._batch)

    @property
    def offset(self) -> int:
        """The offset of the last record."""
        return int(self._batch.last_offset)

    @property
    def timestamp(self) -> int:
        """The timestamp of the newest record."""
        return int(self._batch.max_timestamp)

    @cached_property
    def value(self) -> Batch:
        """All of it. kafka-python asks more than once."""
        batch = self._batch
        try:
            if batch.records_count > MOST_RECORDS:
                raise TooLarge(f"{batch.records_count} records are more than {MOST_RECORDS}")
            if batch.records_count < 0:
                raise ValueError(f"it states {batch.records_count} records")
            batch._maybe_uncompress()  # noqa: SLF001
        except Exception as error:  # noqa: BLE001  # each codec raises its own kinds
            unread(batch.base_offset, batch.last_offset, error)
            return _of_one(batch.last_offset, None, b"")
        content = batch._buffer[batch._pos :]  # noqa: SLF001
        return Batch(batch.base_offset, batch.records_count, content, batch.last_offset)


class _Old:
    """A batch of an older format, of which each record iterates as a batch."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[_OldRecord]:
        return map(_OldRecord, self._batch)


class _OldRecord:
    def __init__(self, record: Any) -> None:
        self._record = record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)

    @property
    def value(self) -> Batch:
        """The record as one of format 2."""
        record = self._record
        is_read = not isinstance(record.value, Unread)
        return _of_one(record.offset, record.key if is_read else None, record.value if is_read else b"")


def _of_one(offset: int, key: bytes | None, value: bytes | None) -> Batch:
    return Batch(offset, 1, _record(0, key, value), offset)


def _record(offset_delta: int, key: bytes | None, value: bytes | None) -> bytes:
    builder = DefaultRecordBatchBuilder(FORMAT, DefaultRecordBatch.CODEC_NONE, False, -1, -1, -1, 1 << 30)
    builder.append(offset_delta, 0, key, value, [])
    return bytes(builder.build()[_HEADER.size :])


class _WholeBatches:
    """The records of a fetched range, of which each batch is one."""

    def __init__(self, records: Any) -> None:
        self._records = records

    def next_batch(self) -> Any:
        """The next one, or None."""
        batch = self._records.next_batch()
        return None if batch is None else _Whole(batch) if batch.magic == FORMAT else _Old(batch)


class _Range(Fetcher.PartitionRecords):
    """A fetched range. Plain batches are read here, checksums included. From the first other one on (transactions,
    markers, other codecs and formats), kafka-python reads the rest, which takes six times as long."""

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Any:
        data = memoryview(records._buffer)  # noqa: SLF001
        at, decompressor = 0, ZstdDecompressor()
        while (found := _plain(data, at, decompressor)) is not None:
            batch, at, last_offset, newest_ms, self.leader_epoch = found
            self.records_read += 1
            self.next_fetch_offset = last_offset + 1
            yield ConsumerRecord(
                tp.topic, tp.partition, self.leader_epoch, last_offset, newest_ms, 0, None, batch, (), None, -1,
                len(batch.data), -1,
            )  # fmt: skip
        rest = MemoryRecords(data[at:])
        yield from super()._unpack_records(tp, _WholeBatches(rest), *deserializers)


def _plain(data: memoryview, at: int, decompressor: ZstdDecompressor) -> tuple[Batch, int, int, int, int] | None:
    """The batch at a place, if it is whole, sound, outside of transactions, no marker, and uncompressed or compressed
    with zstd; also where the next one begins, its last offset, its newest time and its leader's epoch."""
    if len(data) - at < _HEADER.size:
        return None
    base, length, epoch, magic, crc, attributes, last, _, newest_ms, _, _, _, num = _HEADER.unpack_from(data, at)
    end = at + _BEFORE_LENGTH + length
    codec = attributes & ~DefaultRecordBatch.TIMESTAMP_TYPE_MASK
    if magic != FORMAT or codec not in _PLAIN or end > len(data) or crc32c(data[at + _BEFORE_CRC : end]) != crc:
        return None
    content: bytes | bytearray = bytes(data[at + _HEADER.size : end])
    if not 0 <= num <= MOST_RECORDS:
        return None
    if codec == _ZSTD:
        try:
            if frame_content_size(content) > most_bytes(len(content)):
                return None
            content = decompressor.decompress(content, max_output_size=_MOST_UNKNOWN, allow_extra_data=False)
        except ZstdError:
            return None
    return Batch(base, num, content, base + last), end, base + last, newest_ms, epoch


def readable_part(batch: Batch) -> Batch:
    """The records of a batch that kafka-python can read, if some bytes are none; the log has a line of them. Instead of
    those that it cannot read there is one without key, of no bytes, with the offset of the last."""
    last = batch.last_offset - batch.base_offset
    header = _HEADER.pack(batch.base_offset, 0, 0, FORMAT, 0, 0, last, 0, 0, -1, -1, -1, batch.num_records)
    whole, num, end, rest = DefaultRecordBatch(header + batch.data), 0, _HEADER.size, b""
    for record in whole:
        if isinstance(record.value, Unread):
            rest = _record(last, None, b"")
        else:
            end = whole._pos  # noqa: SLF001
        num += 1
    return Batch(batch.base_offset, num, bytes(batch.data[: end - _HEADER.size]) + rest, batch.last_offset)


def by_batch(consumer: KafkaConsumer) -> KafkaConsumer:
    """Make a consumer return batches: the value of each record is a `Batch`; of an older format, that of one record.
    The first batch may begin before the requested position."""
    consumer._fetcher.PartitionRecords = _Range  # noqa: SLF001
    return consumer
