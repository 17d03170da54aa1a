"""A compressed batch that would take gigabytes costs its readers little memory, and nothing else is lost."""

from __future__ import annotations

import ast
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import aiokafka.codec
import aiokafka.consumer.fetcher
import aiokafka.errors
import cramjam
import kafka
import kafka.codec
import kafka.errors
import lz4.frame
import pytest
import xxhash
import zstandard
from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.consumer.fetcher import Fetcher
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords as KafkaRecords

from kernels.examples import decode_block
from tests import bombs
from tests.brokers import REPOSITORY, Broker
from wire.action import Rejection, decode_record
from wire.config import ActionConfig, KafkaConfig
from wire.example import row_type
from wire.kafka import decompression
from wire.kafka.admin import ensure_topics
from wire.kafka.batches import _Range, readable_part
from wire.kafka.decompression import MOST_BYTES, TooLarge, gzip_decode, lz4_decode, snappy_decode, zstd_decode
from wire.kafka.producer import make_producer
from wire.topics import Topics
from wire.unread import Unread

READ = """
import asyncio, pathlib, sys
from kafka import TopicPartition
from wire.config import KafkaConfig
from wire.kafka import decompression
from wire.kafka.async_consumer import read_range
from wire.kafka.batches import by_batch
from wire.kafka.consumer import Span, make_consumer, read
bootstrap, topic, end, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
if "unbounded" in sys.argv:
    decompression.MOST_BYTES = 1 << 31
config = KafkaConfig(bootstrap=bootstrap, partitions=1)
async def read_asynchronously():
    return [keep(each) async for some in read_range(config, topic, 0, 0, end) for each in some]
def keep(record):
    value = record.value.data if hasattr(record.value, "data") else record.value
    return record.offset, len(value), bytes(value[-9:])
if how == "aiokafka":
    found = asyncio.run(read_asynchronously())
else:
    consumer = make_consumer(config)
    if how == "batches":
        by_batch(consumer)
    found = [keep(each) for each in read(consumer, topic, {0: Span(0, end)})]
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
print(repr((found, int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) >> 10)))
"""
HOWS = ("kafka-python", "aiokafka", "batches")
NUM_BYTES = 160 << 20
MOST_MB = 400


Found = list[tuple[int, int, bytes]]
"""Of each record: its offset, its value's length and its end."""


def read_in_a_process(config: KafkaConfig, topic: str, end: int, how: str, *more: str) -> tuple[Found, int]:
    """The records, and the most memory of the process that read them, in MB."""
    command = [sys.executable, "-c", READ, config.bootstrap, topic, str(end), how, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found: tuple[Found, int] = ast.literal_eval(done.stdout)
    return found


def topic_of(kafka: Broker, prefix: str) -> tuple[KafkaConfig, str]:
    if kafka.kind != "apache":
        pytest.skip("expected Apache Kafka: the embedded broker decompresses by itself")
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=prefix, partitions=1)
    ensure_topics(config)
    return config, Topics.under(prefix).actions


def send(config: KafkaConfig, topic: str, value: bytes) -> None:
    producer = make_producer(config)
    producer.send(topic, value, b"k", partition=0)
    producer.flush(10)
    producer.close()


def test_every_reader_passes_over_batches_that_are_too_large(kafka: Broker, topic_prefix: str) -> None:
    config, topic = topic_of(kafka, topic_prefix)
    send(config, topic, b"a value before")
    bombs.write(config.bootstrap, topic, 0, *(bombs.bomb(codec, NUM_BYTES) for codec in bombs.CODECS))
    send(config, topic, b"and after")
    for how in HOWS:
        found, most_mb = read_in_a_process(config, topic, 5, how)
        assert [offset for offset, *_ in found] == list(range(5)), how
        lengths = [length for _, length, _ in found]
        if how != "batches":
            assert lengths == [14, 0, 0, 0, 9], how
        assert max(lengths) < 100, how
        assert most_mb < MOST_MB, how
    _, most_mb = read_in_a_process(config, topic, 5, HOWS[0], "unbounded")
    assert most_mb > MOST_MB, "the client as it is would have taken this much"


def test_every_reader_passes_over_batches_that_cannot_be_read(kafka: Broker, topic_prefix: str) -> None:
    config, topic = topic_of(kafka, topic_prefix)
    batches = bombs.unreadable()
    send(config, topic, b"a value before")
    bombs.write(config.bootstrap, topic, 0, *batches.values())
    send(config, topic, b"and after")
    for how in HOWS:
        found, _ = read_in_a_process(config, topic, len(batches) + 2, how)
        assert [offset for offset, *_ in found] == list(range(len(batches) + 2)), how
        if how != "batches":
            assert [length for _, length, _ in found] == [14, *[0] * len(batches), 9], how


def test_many_batches_that_are_almost_too_large_are_read_by_and_by(kafka: Broker, topic_prefix: str) -> None:
    config, topic = topic_of(kafka, topic_prefix)
    num = 12
    bombs.write(config.bootstrap, topic, 0, *[bombs.bomb("zstd", MOST_BYTES - 100)] * num)
    send(config, topic, b"and after")
    for how in HOWS:
        found, most_mb = read_in_a_process(config, topic, num + 1, how)
        assert [offset for offset, *_ in found] == list(range(num + 1)), how
        assert [length >= MOST_BYTES - 100 for _, length, _ in found] == [True] * num + [False], how
        assert most_mb < MOST_MB + 250, how


@pytest.mark.parametrize("num_bytes", [0, 1, 40_000, 3_000_000])
def test_what_is_not_too_large_is_decompressed_as_before(num_bytes: int) -> None:
    plain = random.Random(num_bytes).randbytes(num_bytes // 2) + bytes(num_bytes - num_bytes // 2)
    assert bytes(gzip_decode(gzip_encode(plain))) == plain
    assert bytes(lz4_decode(lz4_encode(plain))) == plain
    assert bytes(lz4_decode(lz4.frame.compress(plain, store_size=False))) == plain
    assert bytes(zstd_decode(zstd_encode(plain))) == plain
    if plain:  # as both clients, which take an empty one for a block
        assert bytes(snappy_decode(snappy_encode(plain))) == plain
    assert bytes(snappy_decode(bytes(cramjam.snappy.compress_raw(plain)))) == plain


def test_the_bound_is_the_same_for_each_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompression, "MOST_BYTES", 1_000_000)
    monkeypatch.setattr(decompression, "MOST_RATIO", 1)
    unsized = partial(lz4.frame.compress, store_size=False)
    for encode, decode in ((gzip_encode, gzip_decode), (lz4_encode, lz4_decode), (unsized, lz4_decode),
                           (zstd_encode, zstd_decode), (snappy_encode, snappy_decode)):  # fmt: skip
        assert len(decode(encode(bytes(1_000_000)))) == 1_000_000
        with pytest.raises(TooLarge, match="decompress to more than 1000000"):
            decode(encode(bytes(1_000_001)))


@pytest.mark.parametrize("length", [-(1 << 31), -4, -1, 0, 5, (1 << 31) - 1])
def test_a_block_of_snappy_is_some_of_the_bytes_that_are_there(length: int) -> None:
    """Going back would read the same for ever."""
    with pytest.raises(ValueError, match=f"expected a block of 1 to 4 bytes, got {length}"):
        list(islice(decompression._blocks(snappy_encode(b"") + struct.pack(">i", length) + bytes(4)), 9))


def by_kafka_python(kind: Any, raw: bytes) -> list[Any]:
    reader = kind(0, kafka.TopicPartition("topic", 0), KafkaRecords(raw), isolation_level=1)
    return [each.value for each in reader.take()]


def by_aiokafka(raw: bytes) -> list[Any]:
    records = aiokafka.consumer.fetcher.MemoryRecords(raw)
    where = kafka.TopicPartition("topic", 0)
    found = aiokafka.consumer.fetcher.PartitionRecords(
        where, records, [], 0, None, None, check_crcs=True, isolation_level=1
    )
    return [each.value for each in found]


READERS: dict[str, Callable[[bytes], list[Any]]] = {
    "kafka-python": partial(by_kafka_python, Fetcher.PartitionRecords),
    "aiokafka": by_aiokafka,
    "batches": partial(by_kafka_python, _Range),
}


@pytest.mark.parametrize("how", READERS)
def test_what_cannot_be_read_says_why(
    how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompression, "_num_told", 0)
    for what, raw in bombs.unreadable().items():
        (value,) = READERS[how](raw)
        if how != "batches":
            assert value.reason == "malformed", what
            assert value.why.startswith("expected a batch of records, got one at offsets 0 to 0 that cannot"), what
            (refused,) = decode_record(value, 0, ActionConfig())
            assert isinstance(refused, Rejection), what
            assert (refused.reason, refused.message, refused.raw) == ("malformed", value.why, b""), what
    assert "passed over a batch: expected a batch of records" in caplog.text


@pytest.mark.parametrize("how", READERS)
def test_a_wrong_checksum_is_an_error_as_before(how: str) -> None:
    damaged = bytearray(bombs.unreadable()["bytes behind a gzip"])
    damaged[-1] ^= 1
    with pytest.raises((kafka.errors.CorruptRecordError, aiokafka.errors.CorruptRecordException)):
        READERS[how](bytes(damaged))


@pytest.mark.parametrize("how", READERS)
def test_a_codec_that_is_not_installed_is_an_error_as_before(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka.codec, "has_snappy", lambda: False)
    monkeypatch.setattr(aiokafka.codec, "has_snappy", lambda: False)
    with pytest.raises((kafka.errors.UnsupportedCodecError, aiokafka.errors.UnsupportedCodecError)):
        READERS[how](bombs.unreadable()["half a header of snappy"])


def test_records_before_one_that_cannot_be_read_are_read() -> None:
    plain = b"".join(bombs._records(9, 3, b"k"))
    for how in ("kafka-python", "aiokafka"):
        found = READERS[how](bombs.batch("gzip", gzip_encode(plain[:-1] + b"\x80"), 3))
        assert found == [bytes(9), bytes(9), b""], how
        found = READERS[how](bombs.batch("gzip", gzip_encode(plain + b"more"), 3))
        assert found == [bytes(9)] * 3, how


@pytest.mark.parametrize("how", READERS)
def test_a_batch_may_be_several_frames(how: str) -> None:
    plain = b"".join(bombs._records(9, 2, b"k"))
    found = READERS[how](bombs.batch("zstd", zstd_encode(plain[:10]) + zstd_encode(plain[10:]), 2))
    assert [bytes(each.data) for each in found] == [plain] if how == "batches" else found == [bytes(9)] * 2


@pytest.mark.parametrize("told", [1, 200_001, 60 << 20, 1 << 62])
def test_a_frame_that_lies_about_its_size_is_an_error(told: int) -> None:
    frame = bytearray(lz4_encode(bytes(200_000)))
    frame[6:14] = told.to_bytes(8, "little")
    frame[14] = xxhash.xxh32_intdigest(bytes(frame[4:14])) >> 8 & 255
    with pytest.raises(RuntimeError, match="LZ4"):
        lz4_decode(bytes(frame))


def test_a_batch_that_is_too_large_is_one_dead_letter() -> None:
    (refused,) = decode_record(Unread("why"), 0, ActionConfig())
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.message, refused.raw) == ("oversized", "why", b"")


@pytest.mark.parametrize(
    "error", [zstandard.ZstdError("Allocation error : not enough memory"), zlib.error("Error -4 while decompressing")]
)
def test_a_lack_of_memory_says_nothing_about_a_batch(error: Exception) -> None:
    with pytest.raises(MemoryError, match="to decompress a batch"):
        decompression.unread(0, 5, error)
    assert decompression.unread(0, 5, zlib.error("Error -3 while decompressing: incorrect header check")) == b""


def of_old(magic: int, codec: int, value: bytes, num: int = 3) -> bytes:
    """Records as brokers keep them in a format from before Kafka 0.11: compressed, they have the offset of the last."""
    builder = LegacyRecordBatchBuilder(magic=magic, compression_type=codec, batch_size=1 << 30)
    for number in range(num):
        builder.append(number, timestamp=1_000 + number, key=b"k", value=value)
    raw = bytes(builder.build())
    return (num - 1).to_bytes(8, "big") + raw[8:] if codec else raw


OLD = [(magic, codec) for magic in (0, 1) for codec in range(4) if (magic, codec) != (0, 3)]
"""Formats and codecs; aiokafka knows no LZ4 of the first."""


def values_of(how: str, raw: bytes) -> list[Any]:
    """The values of the records; of batches, as their decoder finds them."""
    found = READERS[how](raw)
    if how != "batches":
        return found
    block = decode_block(found, row_type(0))
    return [block.value(place) for place in range(len(block.heads))]


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize(("magic", "codec"), OLD)
def test_batches_of_the_formats_before_kafka_0_11_are_read_up_to_the_bound(
    how: str, magic: int, codec: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert values_of(how, of_old(magic, codec, bytes(9))) == [bytes(9)] * 3
    monkeypatch.setattr(decompression, "MOST_BYTES", 100_000)
    monkeypatch.setattr(decompression, "_num_told", 0)
    after = (3).to_bytes(8, "big") + of_old(magic, 0, b"after", 1)[8:]
    found = values_of(how, of_old(magic, codec, bytes(50_000)) + after)
    assert found == ([b""] if codec else [bytes(50_000)] * 3) + [b"after"]
    assert ("got one up to 2 of which" in caplog.text) == (codec > 0)


@pytest.mark.parametrize("how", READERS)
def test_an_old_batch_that_cannot_be_read_is_passed_over(how: str) -> None:
    raw = bytearray(of_old(1, 1, bytes(9)))
    raw[-4:] = bytes(4)  # the size that a gzip states
    raw[12:16] = zlib.crc32(bytes(raw[16:])).to_bytes(4, "big")
    assert values_of(how, bytes(raw)) == [b""]


@pytest.mark.parametrize("how", READERS)
def test_bytes_behind_the_records_of_a_batch_do_not_stop_those(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a broker may take them that does not look into batches."""
    monkeypatch.setattr(decompression, "_num_told", 0)
    plain = b"".join(bombs._records(9, 3, b"k"))
    whole = bombs.batch("zstd", zstd_encode(plain), 3)
    for spoiled, num in ((plain + b"more", 3), (plain[:-1] + b"\x80", 2), (plain[: len(plain) // 2], 1), (b"", 0)):
        caplog.clear()
        raw = whole + (3).to_bytes(8, "big") + bombs.batch("zstd", zstd_encode(spoiled), 3)[8:]
        if how == "batches":
            parts = [readable_part(each) for each in READERS[how](raw)]
            assert parts[0] == READERS[how](whole)[0]
            heads = decode_block(parts, row_type(0)).heads
            assert heads["offset"].tolist() == list(range(3 + num)) + [5] * (num < 3)
        else:
            assert READERS[how](raw) == [bytes(9)] * (3 + num) + [b""] * (num < 3)
        assert "passed over a batch: expected a batch of records, got one at offsets 3 to 5 that" in caplog.text
