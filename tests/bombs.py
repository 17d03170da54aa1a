"""Batches of some kB that decompress to hundreds of MB, and how they are written."""

from __future__ import annotations

import asyncio
import gzip
import io
import struct
import time
from collections.abc import Callable, Iterator

import cramjam
import lz4.frame
import zstandard
from aiokafka import AIOKafkaProducer
from crc32c import crc32c
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import encode_varint

PIECE = bytes(1 << 20)
CODECS = ("gzip", "lz4", "zstd")
"""Snappy makes no more than 21 times of anything."""
_NUMBERS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


def bomb(codec: str, num_bytes: int, num_records: int = 1, key: bytes | None = b"k") -> bytes:
    """A batch whose records' values are this many zeros each."""
    return batch(codec, _COMPRESSORS[codec](_records(num_bytes, num_records, key)), num_records)


def unreadable() -> dict[str, bytes]:
    """Batches of one record that Apache Kafka accepts, which neither of our clients can read."""
    plain = b"".join(_records(9, 1, b"k"))
    block = bytes(cramjam.snappy.compress_raw(plain))
    snappy = b"\x82SNAPPY\0" + struct.pack(">iii", 1, 1, len(block)) + block
    attributes = plain[:1] + b"\x80" + plain[2:]
    return {
        "bytes behind a gzip": batch("gzip", gzip.compress(plain) + b"junk" * 3),
        "half the length of a block of snappy": batch("snappy", snappy + b"\0\0"),
        "half a header of snappy": batch("snappy", snappy + b"\x82SNA" + bytes(12)),
        "attributes of a record that are no varint": batch("gzip", gzip.compress(attributes)),
    }


def batch(codec: str, compressed: bytes, num_records: int = 1) -> bytes:
    """As a producer would send it."""
    now_ms, last = int(time.time() * 1000), num_records - 1
    covered = struct.pack(">hiqqqhii", _NUMBERS[codec], last, now_ms, now_ms, -1, -1, -1, num_records) + compressed
    head = struct.pack(">ibI", -1, 2, crc32c(covered))
    return struct.pack(">qi", 0, len(head) + len(covered)) + head + covered


def _records(num_bytes: int, num_records: int, key: bytes | None) -> Iterator[bytes]:
    for number in range(num_records):
        named = _varint(-1) if key is None else _varint(len(key)) + key
        before = b"\0" + _varint(0) + _varint(number) + named + _varint(num_bytes)
        yield _varint(len(before) + num_bytes + 1) + before
        yield from (PIECE for _ in range(num_bytes >> 20))
        yield bytes(num_bytes & (1 << 20) - 1) + _varint(0)


def _varint(number: int) -> bytes:
    written = bytearray()
    encode_varint(number, written.append)
    return bytes(written)


def _gzip(pieces: Iterator[bytes]) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9) as writer:
        for piece in pieces:
            writer.write(piece)
    return out.getvalue()


def _lz4(pieces: Iterator[bytes]) -> bytes:
    writer = lz4.frame.LZ4FrameCompressor(block_size=lz4.frame.BLOCKSIZE_MAX4MB, block_linked=False)
    return bytes(writer.begin() + b"".join(writer.compress(piece) for piece in pieces) + writer.flush())


def _zstd(pieces: Iterator[bytes]) -> bytes:
    writer = zstandard.ZstdCompressor().compressobj()
    return b"".join(writer.compress(piece) for piece in pieces) + writer.flush()


_COMPRESSORS: dict[str, Callable[[Iterator[bytes]], bytes]] = {"gzip": _gzip, "lz4": _lz4, "zstd": _zstd}
HEADER_LEN: int = DefaultRecordBatch.HEADER_STRUCT.size


def write(bootstrap: str, topic: str, partition: int, *batches: bytes) -> None:
    """Write batches of one record each as they are."""

    async def write_all() -> None:
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
            for raw in batches:
                batch = producer.create_batch()
                batch.append(timestamp=None, key=None, value=b"")
                batch.close()
                batch._buffer = raw
                await (await producer.send_batch(batch, topic, partition=partition))

    asyncio.run(write_all())
