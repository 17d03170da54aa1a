"""Whatever producers write, through the whole loop: each action has one outcome, and each record that is none is a dead
letter; users and items that are markup, paths or almost the same as others are answered and shown as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest

from tests.brokers import REPOSITORY, Broker
from tests.system.hostile import BUSY, ITEMS, USERS, HostileProducers
from tests.system.loop import KINDS, Loop, explain, is_learned
from tests.system.process_factory import headrace
from wire.action import decode_record
from wire.config import ActionConfig
from wire.kafka.consumer import connect, read, spans
from wire.topics import Topics

ACTION = {"kinds": KINDS, "features": ["genre"], "user_features": ["country"]}


def lag_is_valid(loop: Loop) -> int:
    """Check every message of the lag topic against its schema; returns how many there are."""
    schema = jsonschema.Draft202012Validator(json.loads((REPOSITORY / "schema/lag.schema.json").read_text()))
    topic = Topics.under(loop.settings.kafka.prefix).lag
    consumer = connect(loop.settings.kafka)
    try:
        messages = [json.loads(record.value) for record in read(consumer, topic, spans(consumer, topic))]
    finally:
        consumer.close()
    for message in messages:
        schema.validate(message)
    return len(messages)


def answers_of(loop: Loop, user: str) -> dict[str, httpx.Response]:
    """What the server answers about a user or an item of this name."""
    bodies: dict[str, Any] = {
        "/recommend": {"user": user, "k": 10},
        "/explain": {"user": user, "k": 2},
        "/rank": {"user": user, "items": list(ITEMS)},
        "/similar": {"item": user},
        "/items": {"items": [user]},
    }
    kind = {"content-type": "application/json"}
    client = httpx.Client(base_url=f"http://127.0.0.1:{loop.settings.serving.port}", timeout=30.0)
    with client:
        found = {
            path: client.post(path, content=msgspec.json.encode(body), headers=kind) for path, body in bodies.items()
        }
        return {**found, "/history": client.get("/history", params={"user": user})}


@pytest.mark.slow
def test_whatever_producers_write_each_action_has_one_outcome(
    durable_kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    with Loop(durable_kafka.bootstrap, topic_prefix, tmp_path, action=ACTION) as loop:
        topic, partitions = Topics.under(topic_prefix).actions, loop.settings.kafka.partitions
        producers = HostileProducers(durable_kafka.bootstrap, topic, partitions, seed=5)
        records = [
            (place, key or (b"" if value is None else None), value) for place, key, value in producers.records(2000)
        ]
        loop.start("worker", "trainer", "server")
        producers.write_in_transactions(records[:150])
        producers.write(records[150:])
        report = loop.audit_when(is_learned, 120)
        assert report.passed, explain(report)
        assert is_learned(report), explain(report)
        sums, num_read = report.sums, 0
        for _, _, value in records:
            num_read += len(decode_record(value, 0, ActionConfig()))
        assert sums["num_produced"] == num_read
        assert sums["num_accepted"] + sums["num_duplicate"] + sums["num_dead_letters"] == num_read
        assert sums["num_duplicate"] > 0
        assert sums["num_feedback_trained"] > 0
        loop.wait_until(lambda: loop.server.version().get("num_interactions") == sums["num_trained"], 60, "it served")
        for user in (*USERS, BUSY, "nobody"):
            for path, answer in answers_of(loop, user).items():
                assert answer.status_code == 200, f"{path} of {user!r}: {answer.text[:300]}"
        shown = headrace("dead-letters", "--config", str(loop.path))
        assert shown.returncode == 0
        assert not set("\0\x1b\x85") & set(shown.stdout)
        again = headrace("dead-letters", "--resend", "--config", str(loop.path))
        assert "still refused" in again.stdout
        report = loop.audit_when(is_learned, 60)
        assert report.passed, explain(report)
        assert report.sums["num_accepted"] > sums["num_accepted"], "what was in another's partition is taken now"
        assert lag_is_valid(loop) > 3
        for name in ("worker", "trainer", "server"):
            assert "Traceback" not in (loop.folder / f"{name}.log").read_text(errors="replace")
