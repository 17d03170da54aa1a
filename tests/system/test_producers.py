"""Producers of several kinds through the whole loop, by Kafka's own client: codecs, batches of a megabyte, idempotence,
headers, records without key or value, times of their own and clocks that are hours off. Each action is learned once."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from stream.simulate import World, WorldConfig
from tests.brokers import Broker
from tests.java_producer import JavaProducer, java_producer
from tests.system.loop import KINDS, Loop, explain, is_learned
from tests.trainer.stage import admin_of
from wire.topics import Topics

HOUR_MS = 3_600_000
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
LARGE = 80
"""Actions of a record of nearly a megabyte."""


def actions(seed: int, num: int, ahead_ms: int = 0) -> list[dict[str, Any]]:
    """Actions of a world that ends now, by a clock that is ``ahead_ms`` ahead."""
    made = [dict(each) for each in islice(World(WorldConfig(seed=seed, kinds=tuple(KINDS))).actions(), num)]
    shift_ms = int(time.time() * 1000) + ahead_ms - max(each["timestamp"] for each in made)
    return [{**each, "timestamp": each["timestamp"] + shift_ms} for each in made]


def large(seed: int) -> list[dict[str, Any]]:
    """A list of one user's actions, with much that no model reads."""
    return [{**each, "user": "large", "more": "x" * 12_000} for each in actions(seed, LARGE)]


def send_in_every_way(loop: Loop) -> tuple[int, int]:
    """How many actions were sent, and how many records that are none."""
    kafka, num = loop.settings.kafka, 0
    for index, codec in enumerate(CODECS):
        options = {"compression_type": codec, "batch_size": 1_000_000, "linger_ms": 100, "enable_idempotence": "true"}
        with java_producer(kafka, loop.folder, **options) as producer:
            producer.send(*actions(index, 200), large(index))
            producer.put(0, None, None)  # neither user nor action
            producer.put(index % 2, "u1", None)  # a tombstone, which removes nothing
            producer.do("flush")
            num += 200 + LARGE
    return num, 2 * len(CODECS)


def send_by_wrong_clocks(producer: JavaProducer, most_ahead_ms: int) -> int:
    """Days out of order, by a producer whose clock is ahead and then hours behind. Returns how many were sent."""
    num = 0
    for index, ahead_ms in enumerate((most_ahead_ms, 0, -5 * HOUR_MS, -72 * HOUR_MS, 0)):
        producer.do(f"clock {ahead_ms}")
        producer.send(*actions(20 + index, 100, min(0, ahead_ms)))
        producer.do("flush")
        num += 100
    return num


@pytest.mark.slow
def test_every_kind_of_producer_is_learned_from_once(durable_kafka: Broker, topic_prefix: str, tmp_path: Path) -> None:
    with Loop(durable_kafka.bootstrap, topic_prefix, tmp_path) as loop:
        loop.start("worker", "trainer", "server")
        num, num_none = send_in_every_way(loop)
        with java_producer(loop.settings.kafka, loop.folder) as producer:
            num += send_by_wrong_clocks(producer, 5 * HOUR_MS)
            topic = ConfigResource(
                ConfigResourceType.TOPIC, Topics.under(topic_prefix).actions, {"message.timestamp.type": "CreateTime"}
            )
            with admin_of(durable_kafka) as admin:
                admin.alter_configs([topic])
            num += send_by_wrong_clocks(producer, HOUR_MS // 2)  # beyond an hour the broker refuses them
        report = loop.audit_when(lambda found: is_learned(found) and found.sums["num_produced"] == num + num_none, 120)
        assert report.passed, explain(report)
        assert is_learned(report), explain(report)
        sums = report.sums
        assert (sums["num_dead_letters"], sums["num_accepted"] + sums["num_duplicate"]) == (num_none, num)
        loop.wait_until(lambda: loop.server.version().get("num_interactions") == sums["num_trained"], 60, "it served")
        for name in ("worker", "trainer", "server"):
            log = (loop.folder / f"{name}.log").read_text(errors="replace")
            assert "Traceback" not in log
            assert (name == "worker") == ("producers' times" in log or "CreateTime" in log), log[-2000:]
