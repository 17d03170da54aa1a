"""Batches of 30 kB that decompress to hundreds of MB, in every topic: no process takes their memory or ends, and what
comes after them is learned and served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.processes import Child
from stream.producer import ActionProducer
from tests import bombs
from tests.brokers import Broker
from tests.system.loop import Loop, explain, is_learned
from tests.system.process_factory import headrace
from wire.topics import Topics

NUM_BYTES = 700 << 20
MOST_MORE_MB = 500
"""How much more memory a process may have taken than before; one such batch, read whole, takes three times its size."""


def most_mb(child: Child) -> int:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) >> 10


def test_no_process_reads_a_batch_that_is_too_large(durable_kafka: Broker, topic_prefix: str, tmp_path: Path) -> None:
    if durable_kafka.kind != "apache":
        pytest.skip("expected Apache Kafka: the embedded broker decompresses by itself")
    with Loop(durable_kafka.bootstrap, topic_prefix, tmp_path) as loop:
        topics, kafka = Topics.under(topic_prefix), loop.settings.kafka
        children = loop.start("worker", "trainer", "server")
        with ActionProducer(kafka, topics.actions, num_partitions=kafka.partitions) as producer:
            for number in range(40):
                producer.send({"user": f"u{number % 7}", "item": f"i{number}", "action": "click",
                               "timestamp": 1_760_000_000_000 + number})  # fmt: skip
        loop.wait_until(lambda: loop.server.version().get("num_interactions") == 40, 60, "40 interactions served")
        before = {name: most_mb(child) for name, child in children.items()}
        bomb = bombs.bomb("zstd", NUM_BYTES)
        for topic in (topics.actions, topics.sequences):
            for partition in range(kafka.partitions):
                bombs.write(kafka.bootstrap, topic, partition, bomb)
        for topic in (topics.weights, topics.lag, topics.status, topics.control, topics.dead_letters):
            bombs.write(kafka.bootstrap, topic, 0, bomb)
        with ActionProducer(kafka, topics.actions, num_partitions=kafka.partitions) as producer:
            for number in range(40):
                producer.send({"user": f"u{number % 7}", "item": f"j{number}", "action": "click",
                               "timestamp": 1_760_000_100_000 + number})  # fmt: skip
        loop.wait_until(lambda: loop.server.version().get("num_interactions") == 80, 90, "80 interactions served")
        for name, child in children.items():
            assert most_mb(child) - before[name] < MOST_MORE_MB, name
        report = loop.audit_when(is_learned, 60)
        assert report.passed, explain(report)
        assert report.sums["num_dead_letters"] == kafka.partitions
        shown = headrace("dead-letters", "--json", "--config", str(loop.path))
        assert shown.returncode == 0, shown.stderr
        found = json.loads(shown.stdout)
        assert found["by_reason"]["oversized"] == kafka.partitions
        assert "decompress" in found["last"][0]["message"]
        for name in children:
            assert "Traceback" not in (loop.folder / f"{name}.log").read_text(errors="replace"), name
