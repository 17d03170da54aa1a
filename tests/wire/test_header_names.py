"""A header whose name is not UTF-8 stops neither client; all records are read as they were written."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from tests.brokers import REPOSITORY, Broker
from wire.config import COMPRESSIONS, KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.async_consumer import read_range
from wire.kafka.consumer import Span, make_consumer, read
from wire.kafka.producer import make_producer
from wire.topics import Topics

NUM = 30
ODD = (0, 7, 8, NUM - 1)


class NotUtf8(str):  # noqa: SLOT000
    """The name of a header as a C program may write it."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"\xffname\x80" if encoding == "utf-8" else super().encode(encoding, errors)


def write_all(config: KafkaConfig) -> str:
    """One batch; the names of some records' headers are not UTF-8."""
    topic = Topics.under(config.prefix).sequences
    producer = make_producer(config, linger_ms=200)
    for number in range(NUM):
        headers = [("first", b"\xfe"), (NotUtf8("odd"), b"1")] if number in ODD else [("plain", b"%d" % number)]
        producer.send(topic, b"value %d " % number * 9, b"k%d" % number, headers=headers, partition=0)
    producer.flush(10)
    producer.close()
    return topic


def checked(records: list[Any]) -> None:
    """All of them, as they were written."""
    assert [record.offset for record in records] == list(range(NUM))
    for number, record in enumerate(records):
        assert (record.key, record.value) == (b"k%d" % number, b"value %d " % number * 9)
        odd = [("first", b"\xfe"), ("\ufffdname\ufffd", b"1")]
        assert list(record.headers) == (odd if number in ODD else [("plain", b"%d" % number)])


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_both_clients_read_records_whose_headers_have_any_name(
    compression: str, kafka: Broker, topic_prefix: str
) -> None:
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix, partitions=1, compression=compression)
    ensure_topics(config)
    topic = write_all(config)
    consumer = make_consumer(config)
    try:
        checked(list(read(consumer, topic, {0: Span(0, NUM)})))
    finally:
        consumer.close()

    async def read_asynchronously() -> list[Any]:
        return [record async for records in read_range(config, topic, 0, 0, NUM) for record in records]

    checked(asyncio.run(read_asynchronously()))


STRICT = """
import sys
import wire.kafka.decompression
import wire.kafka.header_names
wire.kafka.decompression.bound_decompression = wire.kafka.header_names.read_any_header = lambda: None
from wire.config import KafkaConfig
from wire.kafka.consumer import Span, make_consumer, read
config = KafkaConfig(bootstrap=sys.argv[1], prefix=sys.argv[2], partitions=1)
list(read(make_consumer(config), sys.argv[3], {0: Span(0, 30)}))
"""


def test_the_client_as_it_is_would_stop_there(kafka: Broker, topic_prefix: str) -> None:
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix, partitions=1)
    ensure_topics(config)
    command = [sys.executable, "-c", STRICT, kafka.bootstrap, topic_prefix, write_all(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=60)
    assert done.returncode != 0
    assert "UnicodeDecodeError" in done.stderr
