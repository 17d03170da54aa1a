"""Whoever sends learns from the newest report of a worker with how many partitions the deployment works."""

from __future__ import annotations

import socket
import time

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewPartitions
from kafka.errors import KafkaError, KafkaTimeoutError

from tests.brokers import Broker
from wire.config import KafkaConfig
from wire.errors import TopicsMismatch
from wire.kafka import reports
from wire.kafka.admin import ensure_topics
from wire.kafka.producer import make_producer
from wire.kafka.reports import check_partitions
from wire.status import WorkerStatus, encode_status, key_of
from wire.topics import Topics


@pytest.fixture
def config(kafka: Broker, topic_prefix: str) -> KafkaConfig:
    """A deployment of two partitions of which a worker says that it has three."""
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix, partitions=2)
    ensure_topics(config)
    status = WorkerStatus(component="w", time_ms=0, partitions={}, num_partitions=3)
    producer = make_producer(config)
    producer.send(Topics.under(topic_prefix).status, encode_status(status), key_of(status), partition=0).get(10)
    producer.close()
    return config


def test_a_topic_of_reports_with_more_partitions_is_read_where_they_are(config: KafkaConfig, kafka: Broker) -> None:
    if kafka.kind != "apache":
        pytest.skip("expected Apache Kafka: the embedded broker adds no partitions")
    admin = KafkaAdminClient(bootstrap_servers=config.bootstrap)
    admin.create_partitions({Topics.under(config.prefix).status: NewPartitions(3)})
    admin.close()
    with pytest.raises(TopicsMismatch, match="expected 3, as worker w has it, got 2"):
        check_partitions(config)


def test_a_report_of_long_ago_says_nothing(config: KafkaConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TopicsMismatch):
        check_partitions(config)
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + reports.LATELY_S + 60)
    check_partitions(config)


def test_a_broker_that_does_not_answer_is_not_waited_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began_s = time.monotonic()
        with pytest.raises(KafkaError):
            check_partitions(KafkaConfig(bootstrap=f"127.0.0.1:{silent.getsockname()[1]}"))
    assert time.monotonic() - began_s < 2 * reports.CHECK_S


def test_what_a_broker_that_has_gone_had_reported_is_not_waited_for(config: KafkaConfig, durable_kafka: Broker) -> None:
    """A worker that starts could not be stopped before the broker was back."""
    with reports.newest_reports(config) as (consumer, where, span):
        assert span.end > span.first
        durable_kafka.kill()
        with pytest.raises(KafkaTimeoutError, match="the broker did not send within 1 s what it has"):
            list(reports.told(consumer, where, span, 1.0))
