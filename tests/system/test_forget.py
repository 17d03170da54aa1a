"""A user and an item are forgotten by a whole deployment, whatever is killed, wiped and started again around it."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.audit import audit
from stream.sender import send_actions
from stream.simulate import World, WorldConfig
from tests.brokers import Broker
from tests.system.loop import KINDS, Loop, explain, is_learned
from tests.system.process_factory import headrace
from trainer.versions.weights import newest_weights
from wire.hashing import item_hash
from wire.kafka.consumer import connect, read, spans
from wire.topics import Topics

NUM_ACTIONS = 600


def actions(start: int, stop: int) -> list[dict[str, Any]]:
    config = WorldConfig(seed=5, num_users=12, num_items=40, kinds=tuple(KINDS), actions_per_s=50.0)
    return list(itertools.islice(World(config).actions(), start, stop))


def ask(loop: Loop, path: str, body: dict[str, Any]) -> dict[str, Any]:
    url = f"http://127.0.0.1:{loop.settings.serving.port}{path}"
    answer = httpx.post(url, json=body, timeout=60)
    return answer.json() if answer.status_code == 200 else {}


def forget(loop: Loop, *words: str) -> None:
    done = headrace("forget", *words, "--config", str(loop.path))
    assert done.returncode == 0, done.stdout + done.stderr


def last_records(loop: Loop) -> dict[bytes, bytes | None]:
    """What compaction would leave of the sequences topic: each key's last record."""
    topic = Topics.under(loop.settings.kafka.prefix).sequences
    consumer = connect(loop.settings.kafka)
    try:
        return {record.key: record.value for record in read(consumer, topic, spans(consumer, topic))}
    finally:
        consumer.close()


def published_items(loop: Loop) -> set[int]:
    """The items of the newest weights that a reader of the topic reaches."""
    topic = Topics.under(loop.settings.kafka.prefix).weights
    consumer = connect(loop.settings.kafka)
    try:
        weights, _ = newest_weights(read(consumer, topic, spans(consumer, topic)))
    finally:
        consumer.close()
    assert weights is not None
    table = weights.tables["items"]
    return set(table.ids[table.live].tolist())


@pytest.mark.slow
def test_a_user_and_an_item_stay_forgotten_through_kills_and_a_wiped_disk(
    durable_kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    with Loop(durable_kafka.bootstrap, topic_prefix, tmp_path) as loop:
        children = loop.start("worker", "trainer", "server")
        first = actions(0, NUM_ACTIONS)
        send_actions(iter(first), loop.settings.kafka)
        loop.wait_until(lambda: loop.server.version().get("num_interactions", 0) > NUM_ACTIONS // 3, 120, "a version")
        user = str(Counter(each["user"] for each in first).most_common(1)[0][0])
        item = Counter(each["item"] for each in first).most_common(1)[0][0]
        assert ask(loop, "/recommend", {"user": user})["num_history"] > 0
        assert ask(loop, "/items", {"items": [item]})["items"][0]["known"]
        # Killed before they can forget: the request waits for them in the topic.
        for name in ("worker", "trainer"):
            children[name].kill()
            children[name].start()
        forget(loop, "user", user)
        forget(loop, "item", str(item))
        for name in ("worker", "trainer", "server"):
            children[name].kill()
        shutil.rmtree(loop.settings.store.path)
        for name in ("worker", "trainer", "server"):
            children[name].start()
        others = [each for each in actions(NUM_ACTIONS, 2 * NUM_ACTIONS) if str(each["user"]) != user]
        send_actions(iter(others), loop.settings.kafka)
        report = loop.audit_when(is_learned, 120)
        assert report.passed, explain(report)
        assert is_learned(report), explain(report)
        loop.wait_until(
            lambda: loop.server.version().get("num_interactions") == report.sums["num_trained"], 60, "all to be served"
        )
        assert ask(loop, "/recommend", {"user": user})["cold"] is True
        assert ask(loop, "/items", {"items": [item]})["items"][0]["known"] is False
        recommended = ask(loop, "/recommend", {"user": str(others[0]["user"]), "k": 40, "exclude_seen": False})["items"]
        assert recommended
        assert item not in {each["item"] for each in recommended}
        left = {key for key, value in last_records(loop).items() if value is not None}
        assert not {key for key in left if key.startswith(user.encode() + b"\0")}
        loop.wait_until(lambda: item_hash(item) not in published_items(loop), 60, "weights without the item")
        # And back: the user acts again, as a new user; the item is learned again.
        forget(loop, "item", str(item), "--undo")
        again = [{**each, "user": user, "item": item} for each in others[-3:]]
        send_actions(iter(again), loop.settings.kafka)
        loop.wait_until(lambda: ask(loop, "/items", {"items": [item]})["items"][0]["known"], 60, "the item to be known")
        assert 0 < ask(loop, "/recommend", {"user": user})["num_history"] <= 3
        assert audit(loop.settings).passed
