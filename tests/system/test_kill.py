"""Worker, trainer, server and broker are killed (-9) at random during traffic; nothing is lost, doubled or torn."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from headrace.processes import Child
from stream.sender import send_actions
from stream.simulate import World, WorldConfig
from tests.brokers import Broker
from tests.system.loop import KINDS, Loop, Watcher, explain, is_learned
from wire.topics import Topics

RATE = 300.0
KILLS = ("worker", "trainer", "broker", "server", "worker", "trainer", "broker", "trainer", "worker", "server")
AT_WORK = {"worker": "partition claimed", "trainer": '"event": "training"', "server": "answering from version"}


def world(over: threading.Event) -> Iterator[dict[str, Any]]:
    """A world's actions until its end; every fiftieth is sent twice, as by a client that retries."""
    config = WorldConfig(seed=7, num_users=150, num_items=300, kinds=tuple(KINDS), actions_per_s=50.0)
    for index, action in enumerate(World(config).actions()):
        if over.is_set():
            return
        yield action
        if index % 50 == 0:
            yield action


class Victim:
    """A process that is killed only once it is at work again after the last time."""

    def __init__(self, loop: Loop, child: Child) -> None:
        self.loop, self.child, self._seen = loop, child, 0

    def kill(self, chance: random.Random) -> None:
        """kill -9 at some moment of its work, and restart it."""
        self.loop.wait_until(self._is_at_work, 60, f"{self.child.name} to be at work")
        time.sleep(chance.uniform(0.0, 2.0))
        self.child.kill()
        self._seen = self.child.log_path.stat().st_size
        time.sleep(chance.uniform(0.0, 0.5))
        self.child.start()

    def _is_at_work(self) -> bool:
        return AT_WORK[self.child.name].encode() in self.child.log_path.read_bytes()[self._seen :]


def send_rubbish(loop: Loop, num: int) -> None:
    """Records that belong to the dead letters."""
    topic = Topics.under(loop.settings.kafka.prefix).actions
    with KafkaProducer(bootstrap_servers=loop.settings.kafka.bootstrap) as producer:
        for index in range(num):
            value = [b"", b"{", b'{"user":1}', b'[{"user":"u1","item":1,"action":"nod","timestamp":1}]'][index % 4]
            producer.send(topic, value, partition=index % loop.settings.kafka.partitions)
        producer.flush(30)


@pytest.mark.slow
def test_killed_at_random_every_interaction_is_still_trained_exactly_once(
    durable_kafka: Broker, topic_prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(11)
    kills: Counter[str] = Counter()
    with Loop(durable_kafka.bootstrap, topic_prefix, tmp_path) as loop, ExitStack() as stack:
        victims = {name: Victim(loop, child) for name, child in loop.start("worker", "trainer", "server").items()}
        sent: list[Any] = []
        over = threading.Event()
        stack.callback(over.set)
        kafka = loop.settings.kafka
        sending = threading.Thread(target=lambda: sent.append(send_actions(world(over), kafka, rate=RATE)), daemon=True)
        sending.start()
        loop.wait_until(lambda: bool(loop.server.version()), 60, "a first version to be served")
        watcher = stack.enter_context(Watcher(loop.server))
        order = list(KILLS)
        chance.shuffle(order)
        for victim in order:
            # Only the moment is left to chance; sending goes on meanwhile.
            kills[victim] += 1
            if victim == "broker":
                time.sleep(chance.uniform(0.0, 2.0))
                durable_kafka.kill()
                time.sleep(chance.uniform(0.0, 1.0))
                durable_kafka.restart()
            else:
                victims[victim].kill(chance)
        over.set()
        sending.join(120)
        assert sent, "sending did not end"
        send_rubbish(loop, 40)
        report = loop.audit_when(is_learned, 120)
        assert report.passed, explain(report)
        assert is_learned(report), explain(report)
        assert report.sums["num_produced"] >= sent[0].num_actions + 40
        assert report.sums["num_duplicate"] >= sent[0].num_actions // 52
        assert report.sums["num_dead"] == 40
        loop.wait_until(
            lambda: loop.server.version().get("num_interactions") == report.sums["num_trained"], 60, "it served"
        )
        watcher.stop()
        assert watcher.seen == sorted(watcher.seen), "a served version went back"
        epoch = loop.server.version()["version"]["epoch"]
        assert epoch >= kills["trainer"], (
            f"each trainer process takes an epoch; {kills['trainer']} were killed, {epoch} is served"
        )
    with capsys.disabled():
        done = ", ".join(f"{name} {num}" for name, num in sorted(kills.items()))
        print(f"\n  killed: {done}; {report.sums}")
