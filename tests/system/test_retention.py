"""Users who have not come for long are forgotten by a whole deployment, and begin anew when they come back."""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from headrace.audit import audit
from state.store import PartitionStore
from stream.claim import store_path
from tests.brokers import Broker
from tests.system.loop import Loop, explain, is_learned
from tests.system.test_forget import ask, last_records
from trainer.checkpoint.reading import read_checkpoint
from wire.kafka.consumer import connect, read, spans
from wire.kafka.producer import make_producer
from wire.moment import MS_PER_DAY
from wire.partitioner import partition_of
from wire.topics import Topics

VISITORS = [f"v{number}" for number in range(60)]
REGULARS = [f"r{number}" for number in range(12)]
RETURNING, LOST = "v0", "v1"


class Stream:
    """Sends actions with the times of their records: on the broker of the test, producers' clocks count."""

    def __init__(self, loop: Loop) -> None:
        self._loop, self._ticks = loop, itertools.count()

    def send(self, users: Sequence[str], days_ago: int) -> None:
        """An action of each of these."""
        topic = Topics.under(self._loop.settings.kafka.prefix).actions
        producer = make_producer(self._loop.settings.kafka)
        for user in users:
            record_ms = round(time.time() * 1000) - days_ago * MS_PER_DAY
            action = {"user": user, "item": next(self._ticks) % 31, "action": "click", "timestamp": record_ms}
            home = partition_of(user.encode(), 2)
            producer.send(topic, msgspec.json.encode(action), user.encode(), partition=home, timestamp_ms=record_ms)
        producer.close()

    def today(self) -> None:
        """Enough actions of regular users for a worker to know the day."""
        self.send(REGULARS * 30, 0)


@pytest.fixture
def loop(durable_kafka: Broker, topic_prefix: str, tmp_path: Path) -> Iterator[Loop]:
    with Loop(durable_kafka.bootstrap, topic_prefix, tmp_path, sequence={"forget_after_days": 30}) as made:
        admin = KafkaAdminClient(bootstrap_servers=durable_kafka.bootstrap)
        clocks = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
        topic = Topics.under(topic_prefix).actions
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, clocks)])
        admin.close()
        yield made


def users_left(loop: Loop) -> set[str]:
    """The users of whom compaction would leave anything in the sequences topic."""
    keys = [key for key, value in last_records(loop).items() if value is not None]
    return {key.rpartition(b"\0")[0].decode() for key in keys if not key.startswith(b"\0")}


def num_requests(loop: Loop) -> int:
    topic = Topics.under(loop.settings.kafka.prefix).actions
    consumer = connect(loop.settings.kafka)
    try:
        return sum(b"before_offset" in record.value for record in read(consumer, topic, spans(consumer, topic)))
    finally:
        consumer.close()


def users_of_trainer(loop: Loop) -> set[str]:
    """Those whom the last checkpoint of the stopped trainer names."""
    newest = max(Path(loop.settings.trainer.checkpoint_dir).glob("checkpoint-*[0-9]"))
    arrays: dict[str, Any] = read_checkpoint(newest).arrays
    return set(msgspec.json.decode(arrays["histories.users"].tobytes()))


def users_of_stores(loop: Loop) -> set[str]:
    """Those whom the stopped worker's databases have."""
    found, settings = set[str](), loop.settings
    for number in range(2):
        store = PartitionStore.open(
            store_path(settings, number), number, settings.action, settings.sequence, num_partitions=2
        )
        found |= {user.name for user in store.users.everyone()}
        store.close()
    return found


def begin(loop: Loop, **broken: str) -> tuple[Stream, dict[str, Any]]:
    """A deployment that has learned what came forty days ago, and begins to forget."""
    stream, children = Stream(loop), loop.start("worker", "trainer", "server", broken=broken)
    stream.send([*VISITORS * 2, *REGULARS * 20], 40)
    loop.wait_until(lambda: ask(loop, "/recommend", {"user": LOST}).get("num_history") == 2, 120, "a served history")
    stream.send([RETURNING], 0)
    return stream, children


@pytest.mark.slow
def test_who_has_not_come_for_long_is_forgotten_everywhere_whatever_is_killed_meanwhile(loop: Loop) -> None:
    stream, children = begin(loop, worker="forgets_few_at_a_time")
    chance = random.Random(1)
    for number in range(4):
        stream.today()
        before = num_requests(loop)
        loop.wait_until(lambda before=before: num_requests(loop) > before, 60, "requests")  # type: ignore[misc]
        time.sleep(chance.random() / 2)
        children["worker"].kill()
        if number == 1:
            shutil.rmtree(loop.settings.store.path)
            children["trainer"].kill()
            children["trainer"].start()
        if number == 2:
            children["server"].kill()
            children["server"].start()
        children["worker"].start()
    stream.today()
    loop.wait_until(lambda: users_left(loop) == {RETURNING, *REGULARS}, 120, "tombstones")
    report = loop.audit_when(is_learned, 120)
    assert report.passed, explain(report)
    assert is_learned(report), explain(report)
    loop.wait_until(lambda: ask(loop, "/recommend", {"user": LOST}).get("cold") is True, 60, "a server without them")
    assert ask(loop, "/recommend", {"user": RETURNING})["num_history"] == 3
    # Back, as a new user, though the kind belongs to what was done before.
    stream.send([LOST], 0)
    loop.wait_until(lambda: ask(loop, "/recommend", {"user": LOST}).get("num_history") == 1, 60, "a new history")
    assert audit(loop.settings).passed
    for name in ("worker", "trainer"):
        children[name].stop()
    assert users_of_stores(loop) == users_of_trainer(loop) == {RETURNING, LOST, *REGULARS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "build"), [("worker", "forgets_on_its_disk_alone"), ("trainer", "keeps_users_of_long_ago")]
)
def test_a_build_that_keeps_somebody_somewhere_is_caught(process: str, build: str, loop: Loop) -> None:
    stream, children = begin(loop, **{process: build})
    stream.today()
    left = {RETURNING, *REGULARS}
    if process == "worker":
        with pytest.raises(AssertionError, match="tombstones"):
            loop.wait_until(lambda: users_left(loop) == left, 8, "tombstones")
    else:
        loop.wait_until(lambda: users_left(loop) == left, 60, "tombstones")
        loop.audit_when(is_learned, 60)
    for name in ("worker", "trainer"):
        children[name].stop()
    assert users_of_stores(loop) == left
    assert users_of_trainer(loop) == {*VISITORS, *REGULARS}
