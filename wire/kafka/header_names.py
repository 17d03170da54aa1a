"""Header names that are not UTF-8. Kafka's protocol requires UTF-8, but its brokers do not check it.

At the first such record in any topic, both clients would raise from every poll, for ever. Here the record is decoded
again, with U+FFFD in place of what cannot be decoded. None of our own headers has such a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import aiokafka.consumer.fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from kafka.record.default_records import DefaultRecordBatch

from wire.kafka.decompression import NO_OFFSET, readable, stand_in

_BEFORE_LENGTH = 12
"""Bytes of a batch that its length does not count: offset and length."""
_read_strictly = DefaultRecordBatch._read_msg  # noqa: SLF001


class _Lenient(bytearray):
    """A buffer whose slices can always be decoded as text."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Lenient(found) if isinstance(found, bytearray) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        del errors
        return super().decode(encoding, "replace")


def _read_leniently(batch: Any, *arguments: Any) -> Any:
    """kafka-python's next record of a batch; it moves on only if it succeeds."""
    try:
        return _read_strictly(batch, *arguments)
    except UnicodeDecodeError:
        batch._buffer = _Lenient(batch._buffer)  # noqa: SLF001
        return _read_strictly(batch, *arguments)


class _Batch:
    """A batch of aiokafka's compiled reader; once that fails, its Python reader goes on. What neither can
    read, or is too large, is a single record."""

    def __init__(self, batch: Any, content: memoryview) -> None:
        self._batch, self._content = batch, content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        batch = self._batch
        first = getattr(batch, "base_offset", NO_OFFSET)  # a format from before Kafka 0.11 does not say it
        found: Iterator[Any] = readable(self._read(), first, batch.next_offset - 1, partial(stand_in, batch))
        return found

    def _read(self) -> Iterator[Any]:
        num_read = 0
        try:
            for record in self._batch:
                num_read += 1
                yield record
        except UnicodeDecodeError:
            yield from islice(self._read_again(), num_read, None)

    def _read_again(self) -> Iterator[Any]:
        batch: Any = _DefaultRecordBatchPy(self._content)
        batch._maybe_uncompress()  # noqa: SLF001
        batch._buffer = _Lenient(batch._buffer)  # noqa: SLF001
        return iter(batch)


class _Records:
    """What aiokafka fetched, as batches that can always be read."""

    def __init__(self, content: bytes) -> None:
        self._records = _strict_records(content)
        self._content, self._at = memoryview(content), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)

    def next_batch(self) -> Any:
        """The next one, or None."""
        batch = self._records.next_batch()
        if batch is None:
            return None
        begin, length = self._at, int.from_bytes(self._content[self._at + 8 : self._at + _BEFORE_LENGTH], "big")
        self._at += _BEFORE_LENGTH + length
        return _Batch(batch, self._content[begin : self._at])


_strict_records = aiokafka.consumer.fetcher.MemoryRecords


def read_any_header() -> None:
    """Make both clients read such records, from now on."""
    DefaultRecordBatch._read_msg = _read_leniently  # noqa: SLF001
    aiokafka.consumer.fetcher.MemoryRecords = _Records
