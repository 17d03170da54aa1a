"""Every client reads every codec and only committed records, and none creates topics. On real Kafka."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiokafka.errors
import kafka.errors
import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from tests.brokers import REPOSITORY, ApacheKafka, Broker, missing_for_kafka
from wire.client_options import OPTIONS
from wire.config import COMPRESSIONS, KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.async_consumer import end_offsets, plain_consumer, read_range
from wire.kafka.consumer import Span, connect, ends, read, read_from
from wire.kafka.options import async_options, sync_options
from wire.kafka.producer import make_producer
from wire.kafka.refusal import refusal
from wire.topics import Topics

VALUES = [b'{"number":%d,"text":"%s"}' % (number, b"repeated " * 40) for number in range(3_000)]
"""More than a megabyte, so that a codec's frame does not fit its reader's first guess."""


@pytest.fixture
def config(kafka: Broker, topic_prefix: str) -> KafkaConfig:
    if kafka.kind != "apache":
        pytest.skip("transactions and codecs are tried on real Apache Kafka (java 17+ and mvn)")
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix, partitions=1)
    ensure_topics(config)
    return config


@pytest.fixture
def where(config: KafkaConfig) -> TopicPartition:
    return TopicPartition(Topics.under(config.prefix).actions, 0)


def read_synchronously(config: KafkaConfig, where: TopicPartition) -> list[bytes]:
    consumer = connect(config)
    try:
        return [record.value for record in read_from(consumer, where, 0)]
    finally:
        consumer.close()


def read_asynchronously(config: KafkaConfig, where: TopicPartition) -> list[bytes]:
    async def values() -> list[bytes]:
        batches = read_range(config, where.topic, where.partition, 0)
        return [record.value async for batch in batches for record in batch]

    return asyncio.run(values())


@pytest.mark.parametrize("codec", COMPRESSIONS)
def test_what_a_producer_compresses_is_read_by_every_client(
    codec: str, config: KafkaConfig, where: TopicPartition
) -> None:
    producer = make_producer(
        KafkaConfig(bootstrap=config.bootstrap, compression=codec), batch_size=1 << 20, linger_ms=500
    )
    for value in VALUES:
        producer.send(where.topic, value, partition=0)
    producer.close()
    assert read_synchronously(config, where) == VALUES
    assert read_asynchronously(config, where) == VALUES


@pytest.mark.parametrize("codec", [codec for codec in COMPRESSIONS if codec != "none"])
def test_what_the_topic_has_compressed_by_the_broker_is_read_by_every_client(
    codec: str, config: KafkaConfig, where: TopicPartition
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=config.bootstrap)
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, where.topic, {"compression.type": codec})])
    admin.close()
    # The broker compresses as a stream whose length its header does not say.
    with KafkaProducer(bootstrap_servers=config.bootstrap, batch_size=900_000, linger_ms=500) as producer:
        for value in VALUES:
            producer.send(where.topic, value, partition=0)
    assert read_synchronously(config, where) == VALUES
    assert read_asynchronously(config, where) == VALUES


@pytest.mark.parametrize("codec", [codec for codec in COMPRESSIONS if codec != "none"])
def test_what_we_write_is_compressed(codec: str, config: KafkaConfig, where: TopicPartition) -> None:
    async def write_asynchronously() -> None:
        producer = AIOKafkaProducer(compression_type=codec, linger_ms=200, **async_options(config))
        await producer.start()
        for value in VALUES[:500]:
            await producer.send(where.topic, value, partition=0)
        await producer.stop()

    asyncio.run(write_asynchronously())
    assert read_synchronously(config, where) == VALUES[:500]
    default = KafkaConfig(bootstrap=config.bootstrap)
    assert default.compression == "zstd"
    producer = make_producer(default)
    assert producer.config["compression_type"] == "zstd"
    producer.close()


class Transactions:
    """A transactional producer, driven step by step from a test that has no event loop."""

    def __init__(self, config: KafkaConfig, where: TopicPartition) -> None:
        self._where, self._runner = where, asyncio.Runner()
        self._producer = self._runner.run(self._start(config))

    async def _start(self, config: KafkaConfig) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=config.bootstrap, transactional_id=config.prefix, metadata_max_age_ms=60_000
        )
        await producer.start()
        return producer

    def write(self, *values: bytes) -> None:
        async def write() -> None:
            await self._producer.begin_transaction()
            for value in values:
                await self._producer.send_and_wait(self._where.topic, value, partition=0)

        self._runner.run(write())

    def commit(self) -> None:
        self._runner.run(self._producer.commit_transaction())

    def abort(self) -> None:
        self._runner.run(self._producer.abort_transaction())

    def close(self) -> None:
        self._runner.run(self._producer.stop())
        self._runner.close()


@pytest.fixture
def transactions(config: KafkaConfig, where: TopicPartition) -> Iterator[Transactions]:
    made = Transactions(config, where)
    yield made
    made.close()


def test_committed_records_are_read_and_aborted_ones_are_not(
    config: KafkaConfig, where: TopicPartition, transactions: Transactions
) -> None:
    for first in range(0, 30, 10):
        transactions.write(*VALUES[first : first + 5])
        transactions.commit()
        transactions.write(*VALUES[first + 5 : first + 10])
        transactions.abort()
    committed = [value for number, value in enumerate(VALUES[:30]) if number % 10 < 5]
    assert read_synchronously(config, where) == committed
    assert read_asynchronously(config, where) == committed


def test_a_log_that_ends_with_markers_or_aborted_records_is_read_to_its_end(
    config: KafkaConfig, where: TopicPartition, transactions: Transactions
) -> None:
    transactions.write(VALUES[0])
    transactions.commit()
    transactions.write(*VALUES[1:4])
    transactions.abort()
    consumer = connect(config)
    assert ends(consumer, [where]) == {where: 6}  # a record, its marker, three aborted ones, theirs
    assert [record.offset for record in read(consumer, where.topic, {0: Span(0, 6)})] == [0]
    assert list(read(consumer, where.topic, {0: Span(1, 6)})) == []
    consumer.close()
    assert read_asynchronously(config, where) == VALUES[:1]


def test_an_open_transaction_is_no_backlog_and_is_not_waited_for(
    config: KafkaConfig, where: TopicPartition, transactions: Transactions
) -> None:
    transactions.write(VALUES[0])
    transactions.commit()
    transactions.write(*VALUES[1:4])

    async def end() -> int:
        async with plain_consumer(config) as consumer:
            return (await end_offsets(consumer, where.topic, [0]))[0]

    consumer = connect(config)
    assert ends(consumer, [where]) == {where: 2}
    consumer.close()
    assert asyncio.run(end()) == 2
    assert read_synchronously(config, where) == VALUES[:1]
    assert read_asynchronously(config, where) == VALUES[:1]
    transactions.commit()
    assert read_synchronously(config, where) == read_asynchronously(config, where) == VALUES[:4]


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A broker that creates every topic that a client asks about, as brokers do by default."""
    if missing_for_kafka() is not None:
        pytest.skip("needs real Apache Kafka (java 17+ and mvn)")
    broker = ApacheKafka(tmp_path_factory.mktemp("eager"), **{"auto.create.topics.enable": "true"})
    yield broker
    broker.stop()


def topics_of(broker: ApacheKafka) -> set[str]:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        return {topic["name"] for topic in admin.describe_topics() if not topic["name"].startswith("__")}
    finally:
        admin.close()


def test_no_client_creates_a_topic(eager: ApacheKafka) -> None:
    config = KafkaConfig(bootstrap=eager.bootstrap, prefix="nobody")

    async def ask() -> None:
        async with plain_consumer(config) as consumer:
            consumer.assign([TopicPartition("nobody.a", 0)])
            with pytest.raises((aiokafka.errors.KafkaError, asyncio.TimeoutError)):
                await asyncio.wait_for(consumer.end_offsets([TopicPartition("nobody.a", 0)]), 2)
        producer = AIOKafkaProducer(**{**async_options(config), "request_timeout_ms": 2_000})
        await producer.start()
        with pytest.raises((aiokafka.errors.KafkaError, asyncio.TimeoutError)):
            await asyncio.wait_for(producer.send("nobody.b", b"x"), 2)
        await producer.stop()

    asyncio.run(ask())
    consumer = connect(config)
    assert not consumer.partitions_for_topic("nobody.c")
    consumer.close()
    producer = make_producer(config, max_block_ms=1_000)
    with pytest.raises(kafka.errors.KafkaError):
        producer.send("nobody.d", b"x").get(3)
    producer.close()
    assert topics_of(eager) == set()
    # The canary: a client with default options would create one.
    careless = KafkaProducer(bootstrap_servers=eager.bootstrap)
    careless.send("careless", b"x").get(60)
    careless.close()
    assert topics_of(eager) == {"careless"}


@pytest.mark.parametrize("errors", [kafka.errors, aiokafka.errors], ids=["kafka-python", "aiokafka"])
def test_an_error_that_no_retry_fixes_is_distinguished_from_a_broker_that_is_away(errors: Any) -> None:
    for name in ("UnsupportedCodecError", "TopicAuthorizationFailedError", "GroupAuthorizationFailedError"):
        refused = refusal(getattr(errors, name)("as it\nsays"), "here:1")
        assert refused is not None, name
        assert str(refused).startswith(f"Kafka at here:1: {name}: ")
        assert "\n" not in str(refused)
    wrapped = RuntimeError("outside")
    wrapped.__cause__ = errors.UnsupportedCodecError("inside")
    assert refusal(wrapped, "here:1") is not None
    for name in ("KafkaConnectionError", "NotLeaderForPartitionError", "RequestTimedOutError", "KafkaTimeoutError"):
        assert refusal(getattr(errors, name)("soon"), "here:1") is None, name


def test_every_option_reaches_every_client(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate),
         "-subj", "/CN=here", "-days", "2"],
        check=True, capture_output=True,
    )  # fmt: skip
    client = {
        "client_id": "me", "request_timeout_ms": 7_000, "retry_backoff_ms": 70, "metadata_max_age_ms": 7_001,
        "connections_max_idle_ms": 7_002, "security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "user", "sasl_plain_password": "secret", "ssl_check_hostname": False,
        "ssl_cafile": str(certificate), "ssl_certfile": str(certificate), "ssl_keyfile": str(key),
        "ssl_password": "unused", "sasl_kerberos_service_name": "kafka", "sasl_kerberos_domain_name": "here",
        "ssl_crlfile": str(certificate),
    }  # fmt: skip
    assert client.keys() == OPTIONS.keys()
    config = KafkaConfig(client=client)
    assert sync_options(config).items() >= {"bootstrap_servers": "localhost:9092", **client}.items()
    given = async_options(config)
    assert {name: given[name] for name in client if not name.startswith("ssl_")} == {
        name: value for name, value in client.items() if not name.startswith("ssl_")
    }
    context = given["ssl_context"]
    assert not context.check_hostname
    assert context.get_ca_certs()
    assert set(given) - set(client) == {"bootstrap_servers", "ssl_context"}


def test_faust_reads_with_the_same_options(tmp_path: Path) -> None:
    """In a separate process: a Faust app binds to the running loop."""
    program = """
import asyncio, sys
from pathlib import Path
from stream.app import build_app, consumer_options
from stream.config import StreamConfig
from wire.config import KafkaConfig

kafka = KafkaConfig(client={"client_id": "me", "metadata_max_age_ms": 7001, "request_timeout_ms": 50000})
async def main():
    app = build_app(kafka, StreamConfig(component="c"), None, Path(sys.argv[1]))
    thread = app.consumer._new_consumer_thread()
    consumer = thread._create_worker_consumer(app.transport)
    client = consumer._client
    print(client._client_id, client._metadata_max_age_ms, client._request_timeout_ms, consumer._isolation_level,
          consumer._group_id, consumer._group_instance_id)
    print(app.boot_strategy._should_enable_kafka_producer())
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["me 7001 50000 read_committed headrace-stream c", "False"], done.stderr
