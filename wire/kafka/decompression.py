"""Batches of records are decompressed up to a bound, and one that cannot be read stops no reader.

Brokers bound a batch as it was compressed, and anyone who may write to a topic can make 30 kB of a gigabyte of zeros.
Both clients would decompress it whole, at each attempt to read on, so each process that reads the topic would run out
of memory, also after a restart. Here such a batch reads as one record with the offset of its last, no key, and an
`Unread` as its value: no record in any of our topics, so each reader skips and counts it, or refuses it. So does one
that a broker accepts and neither client can read, such as bytes behind the end of a gzip; both would raise from every
poll, for ever. A batch whose checksum is wrong was damaged on its way, and is still an error. Batches of the formats
before Kafka 0.11 are read in the same way; all that they say of their offsets is the last.
"""

from __future__ import annotations

import gzip
import io
import logging
import struct
from collections.abc import Callable, Iterator, Sized
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import aiokafka.errors
import aiokafka.record._crecords.default_records
import aiokafka.record._crecords.legacy_records
import aiokafka.record.default_records
import cramjam
import kafka.codec
import kafka.errors
import kafka.record.default_records
import kafka.record.legacy_records
import lz4.frame
import zstandard
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch

from wire.thinned_log import is_told
from wire.unread import Unread

logger = logging.getLogger(__name__)
MOST_BYTES = 64 << 20
"""A batch may always be as large as this; producers make none of more than some MB."""
MOST_RATIO = 16
"""A batch that is so many times as large as it was compressed may be larger."""
MOST_POLL_BYTES = 16 << 20
"""A poll returns no further records after values of so many bytes; each may be of a batch that was a thousandth."""
_PIECE = 1 << 20
NO_OFFSET = -1
"""In place of the first offset of a batch that does not say it."""
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER_LEN = 16
_OLD_OVERHEAD, _LEAST_OLD = 12, 14
"""Of a message of a format from before Kafka 0.11: what its length does not count, and the least that it does."""
_num_told = 0


class TooLarge(ValueError):
    """A batch is larger than it may be."""


def most_bytes(num_compressed: int) -> int:
    """How large a batch of so many compressed bytes may be."""
    return max(MOST_BYTES, MOST_RATIO * num_compressed)


def _bounded(num_bytes: int, payload: Sized) -> None:
    if num_bytes > most_bytes(len(payload)):
        raise TooLarge(f"{len(payload)} bytes decompress to more than {most_bytes(len(payload))}")


def _read(reader: Any, payload: Sized) -> bytes:
    """What a reader has, in pieces: it may make room for as much as it is asked for."""
    pieces, num_left = list[bytes](), most_bytes(len(payload)) + 1
    while num_left > 0 and (piece := reader.read(min(num_left, _PIECE))):
        pieces.append(piece)
        num_left -= len(piece)
    _bounded(sum(map(len, pieces)), payload)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def gzip_decode(payload: bytes) -> bytes:
    """As the clients do. Raises `TooLarge`, as all of these."""
    with gzip.GzipFile(fileobj=io.BytesIO(payload)) as reader:
        return _read(reader, payload)


def lz4_decode(payload: bytes) -> bytes:
    """As the clients do. A frame may say how large it is; otherwise each piece may be as large as all before."""
    reader, most = lz4.frame.LZ4FrameDecompressor(), most_bytes(len(payload))
    told: int = lz4.frame.get_frame_info(payload)["content_size"]
    pieces = [reader.decompress(payload, max_length=told if 0 < told <= most else _PIECE)]
    num_bytes = len(pieces[0])
    while not reader.eof and pieces[-1] and num_bytes <= most:
        pieces.append(reader.decompress(b"", max_length=min(max(num_bytes, _PIECE), most + 1 - num_bytes)))
        num_bytes += len(pieces[-1])
    _bounded(num_bytes, payload)
    if not reader.eof:
        raise RuntimeError("LZ4: expected the end of a frame, got fewer bytes")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def zstd_decode(payload: bytes) -> bytes:
    """As the clients do."""
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(payload), read_across_frames=True) as reader:
        return _read(reader, payload)


def snappy_decode(payload: bytes) -> bytes:
    """As the clients do. Each block says how large it is."""
    blocks = list(_blocks(payload))
    _bounded(sum(cramjam.snappy.decompress_raw_len(block) for block in blocks), payload)
    return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)


def _blocks(payload: bytes) -> Iterator[bytes]:
    """The blocks of Java's stream; what is none is a block itself. Raises ValueError, struct.error."""
    if payload[: len(_XERIAL)] != _XERIAL or len(payload) <= _XERIAL_HEADER_LEN:
        yield payload
        return
    at = _XERIAL_HEADER_LEN
    while at < len(payload):
        (length,) = struct.unpack_from(">i", payload, at)
        at += 4
        if not 0 < length <= len(payload) - at:
            raise ValueError(f"snappy: expected a block of 1 to {len(payload) - at} bytes, got {length}")
        yield payload[at : at + length]
        at += length


def _of_messages(decode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """The same, of a batch of messages of a format from before Kafka 0.11. Both clients follow the messages' lengths
    wherever they lead, also back to where they have been. Raises ValueError if one is shorter than it can be."""

    def decode_messages(payload: Any) -> bytes:
        data, at = decode(payload), 0
        while at + _OLD_OVERHEAD <= len(data):
            (length,) = struct.unpack_from(">i", data, at + 8)
            if length < _LEAST_OLD:
                raise ValueError(f"expected messages of {_LEAST_OLD} bytes or more, got one of {length}")
            at += _OLD_OVERHEAD + length
        return data

    return decode_messages


_DECODERS: tuple[Callable[[bytes], bytes], ...] = (gzip_decode, lz4_decode, snappy_decode, zstd_decode)


_OF_THE_PROCESS = (MemoryError, kafka.errors.UnsupportedCodecError, aiokafka.errors.UnsupportedCodecError)
"""What says nothing about the batch: another process can read it."""
_NO_MEMORY = ("Allocation error", "not enough memory", "Error -4 ")
"""How zstd and zlib say that there was no memory."""


def unread(base_offset: int, last_offset: int, error: Exception) -> Unread:
    """What is read instead of this batch; the log has a line of it. Raises the error if it is not about the batch."""
    global _num_told  # noqa: PLW0603
    if isinstance(error, _OF_THE_PROCESS):
        raise error
    if any(words in str(error) for words in _NO_MEMORY):
        raise MemoryError(f"to decompress a batch of records: {error}") from error
    _num_told += 1
    which = f"one {'up' if base_offset == NO_OFFSET else f'at offsets {base_offset}'} to {last_offset}"
    if isinstance(error, TooLarge):
        value = Unread(
            f"expected a batch of records that decompresses to at most {MOST_BYTES >> 20} MiB or {MOST_RATIO} times "
            f"its size, got {which} of which {error}; have the producer send smaller ones"
        )
    else:
        value = Unread(
            f"expected a batch of records, got {which} that cannot be read ({type(error).__name__}: "
            f"{str(error)[:200]}); have the producer write it as Kafka's own clients do",
            "malformed",
        )
    if is_told(_num_told):
        logger.warning("passed over a batch: %s", value.why)
    return value


def readable(records: Iterator[Any], base_offset: int, last_offset: int, stand_in: Callable[[Unread], Any]) -> Any:
    """Iterates over a batch's records as far as they can be read; ``stand_in`` makes the record that is there instead
    of the rest, with the offset of the last."""
    offset = base_offset - 1
    try:
        for record in records:
            if not offset < record.offset <= last_offset:
                raise ValueError(f"expected an offset from {offset + 1} on, got {record.offset}")
            offset = record.offset
            yield record
    except Exception as error:  # noqa: BLE001  # each codec and reader raises its own kinds
        value = unread(base_offset, last_offset, error)
        if offset < last_offset:
            yield stand_in(value)


def stand_in(batch: Any, value: Unread) -> Any:
    """aiokafka's record instead of those of a batch."""
    return SimpleNamespace(
        offset=batch.next_offset - 1, timestamp=getattr(batch, "max_timestamp", -1),
        timestamp_type=getattr(batch, "timestamp_type", 0), key=None, value=value, checksum=None, headers=(),
    )  # fmt: skip


_iterate, _iterate_old = DefaultRecordBatch.__iter__, LegacyRecordBatch.__iter__


def _iterate_readable(batch: Any) -> Iterator[Any]:
    """kafka-python's records of a batch."""

    def stand_in_of(value: Unread) -> DefaultRecord:
        return DefaultRecord(0, batch.last_offset, batch.max_timestamp, batch.timestamp_type, None, value, [])

    found: Iterator[Any] = readable(_records(batch), batch.base_offset, batch.last_offset, stand_in_of)
    return found


def _records(batch: Any) -> Iterator[Any]:
    """Those that kafka-python finds: a batch iterates over itself."""
    yield from iter(partial(next, _iterate(batch), None), None)


def _iterate_old_readable(batch: Any) -> Iterator[Any]:
    """kafka-python's records of a batch of an older format; what it calls the base offset is the last."""

    def stand_in_of(value: Unread) -> DefaultRecord:
        return DefaultRecord(0, batch.base_offset, -1, batch.timestamp_type, None, value, [])

    found: Iterator[Any] = readable(_iterate_old(batch), NO_OFFSET, batch.base_offset, stand_in_of)
    return found


def bound_decompression() -> None:
    """Make both clients read such batches so, from now on. (aiokafka's part is in `wire.kafka.header_names`.)"""
    old = aiokafka.record._crecords.legacy_records, kafka.record.legacy_records  # noqa: SLF001
    modules: tuple[ModuleType, ...] = (
        aiokafka.record._crecords.default_records,  # noqa: SLF001
        aiokafka.record.default_records,
        kafka.codec,
        kafka.record.default_records,
    )
    for decode in _DECODERS:
        for module in modules:
            setattr(module, decode.__name__, decode)
        for module in old:
            setattr(module, decode.__name__, _of_messages(decode))
    kafka.record.legacy_records.lz4_decode_old_kafka = _of_messages(kafka.codec.lz4_decode_old_kafka)
    DefaultRecordBatch.__iter__, LegacyRecordBatch.__iter__ = _iterate_readable, _iterate_old_readable
