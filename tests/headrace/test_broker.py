"""The embedded broker starts on a free port, says so when it cannot, and leaves nothing behind."""

import os
import socket
import tempfile
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

import headrace.broker
from headrace.broker import BrokerError, EmbeddedBroker, find_binary, is_listening
from wire.config import KafkaConfig
from wire.kafka.admin import ensure_topics


@pytest.fixture(autouse=True)
def _needs_the_binary() -> None:
    try:
        find_binary()
    except BrokerError as error:
        pytest.skip(str(error))


def test_it_answers_when_start_returns_and_is_gone_when_stop_does() -> None:
    with EmbeddedBroker() as broker:
        assert broker.is_running()
        pid, log = broker.pid, broker.log_path
        with KafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
            ensure_topics(KafkaConfig(bootstrap=broker.bootstrap, partitions=1))
            producer.send("headrace.status.v1", b"hello").get(60)
        with KafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest") as consumer:
            consumer.assign([TopicPartition("headrace.status.v1", 0)])
            assert next(consumer).value == b"hello"
    assert not is_listening(broker.host, broker.port)
    assert not log.exists()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_port_in_use_is_reported_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=rf"port {port} is in use; .* --bootstrap"):
            EmbeddedBroker(port).start()


def test_a_broker_that_ends_at_start_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "tansu"
    broken.write_text("#!/bin/sh\necho cannot do it\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("HEADRACE_TANSU", str(broken))
    with pytest.raises(BrokerError, match="ended at start; its last words: cannot do it"):
        EmbeddedBroker(log_path=tmp_path / "log").start()


def test_a_broker_that_cannot_be_started_leaves_no_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where the system starts no more processes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(headrace.broker, "ends_with_parent", lambda: [str(tmp_path / "not there")])
    with pytest.raises(FileNotFoundError):
        EmbeddedBroker().start()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_binary_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TANSU", "/nowhere/tansu")
    with pytest.raises(BrokerError, match="HEADRACE_TANSU: expected the path of an executable, got '/nowhere/tansu'"):
        find_binary()
