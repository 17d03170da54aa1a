"""Users who have not come for long are forgotten once, whichever worker has their partition meanwhile."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from state.store import PartitionStore
from stream.claim import store_path
from tests.brokers import wait_until
from tests.stream.audit import is_idle
from tests.stream.workers import Deployment, WorkerProcess
from wire.config import SequenceConfig
from wire.example_codec import decode_example
from wire.example_log import ExampleLog, Verdict
from wire.kafka.producer import make_producer
from wire.moment import MS_PER_DAY
from wire.partitioner import partition_of

VISITORS = [f"v{number}" for number in range(100)]
REGULARS = [f"r{number}" for number in range(20)]
Make = Callable[..., WorkerProcess]


class Actions:
    """Sends actions with the times of their records, and counts them."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment, self._ticks = deployment, itertools.count()
        self.num = Counter[str]()

    def send(self, users: Sequence[str], days_ago: int = 0) -> None:
        producer = make_producer(self._deployment.kafka)
        for user in users:
            record_ms = round(time.time() * 1000) - days_ago * MS_PER_DAY
            action = {"user": user, "item": next(self._ticks), "action": "click", "timestamp": record_ms}
            home = partition_of(user.encode(), self._deployment.partitions)
            producer.send(
                self._deployment.topics.actions, json.dumps(action).encode(), user.encode(), partition=home,
                timestamp_ms=record_ms,
            )  # fmt: skip
        self.num.update(users)
        producer.close()

    def today(self) -> None:
        """Enough for whoever has a partition to know the day."""
        self.send(REGULARS * 20)


@pytest.fixture
def actions(deployment: Deployment) -> Actions:
    """On a topic with producers' times."""
    deployment.sequence = SequenceConfig(join_window_s=0, max_context=20, segment_len=4, forget_after_days=30)
    deployment.environment["BROKEN"] = "forgets_one_at_a_time"
    admin = KafkaAdminClient(bootstrap_servers=deployment.kafka.bootstrap)
    clocks = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, deployment.topics.actions, clocks)])
    admin.close()
    return Actions(deployment)


def requests(deployment: Deployment) -> list[Any]:
    """Those of the workers."""
    values = [record.value for some in deployment.read(deployment.topics.actions).values() for record in some]
    return [json.loads(value) for value in values if b"before_offset" in value]


def read(deployment: Deployment) -> tuple[Counter[str], set[str], Counter[str]]:
    """Of the sequences topic: how many interactions of each user are new somewhere, who has a record that compaction
    would leave, and how often each was forgotten."""
    learned, forgotten, left = Counter[str](), Counter[str](), set[str]()
    for number, records in deployment.read(deployment.topics.sequences).items():
        log, last = ExampleLog(0), dict[bytes, bytes | None]()
        for record in records:
            last[record.key] = record.value
            if record.value is None:
                continue
            example = decode_example(record.value)
            verdict = log.feed(example)
            assert verdict is not Verdict.GAP, f"partition {number} offset {record.offset}: {log.gap}"
            if verdict is Verdict.ACCEPT:
                learned[example.user] += example.num_new
                forgotten.update(example.forgotten)
        left |= {
            key.rpartition(b"\0")[0].decode() for key, value in last.items() if value is not None and key[:1] != b"\0"
        }
    return learned, left, forgotten


def of_disk(deployment: Deployment, *processes: WorkerProcess) -> Counter[str]:
    """How many interactions each user has in the newest store of each partition of stopped workers."""
    found = Counter[str]()
    for number in range(deployment.partitions):
        stores = []
        for process in processes:
            deployment.store = type(deployment.store)(path=process.store_path)
            if store_path(deployment, number).exists():
                stores.append(
                    PartitionStore.open(
                        store_path(deployment, number),
                        number,
                        deployment.action,
                        deployment.sequence,
                        num_partitions=deployment.partitions,
                    )
                )
        newest = max(stores, key=lambda store: store.writer_epoch)
        found.update({each.name: each.tail.index * 4 + len(each.tail) for each in newest.users.everyone()})
        for store in stores:
            store.close()
    return found


def move(
    deployment: Deployment, actions: Actions, ours: WorkerProcess, theirs: WorkerProcess,
    is_over: Callable[[Deployment], bool],
) -> list[int]:  # fmt: skip
    """Partitions go to and fro between two workers, each of which forgets somebody every second. Returns how many were
    asked for at each of these times."""
    actions.send([*VISITORS * 2, *REGULARS], 40)
    for process in (ours, theirs):
        process.module = "tests.stream.broken"

    def more() -> None:
        """Further requests, while the group divides the partitions again."""
        actions.today()
        before = len(requests(deployment))
        wait_until(lambda: len(requests(deployment)) > before or is_over(deployment), 60, "a further request")
        asked.append(len(requests(deployment)))

    def is_over_at_last() -> bool:
        actions.today()  # of which a worker that has just claimed a partition knows nothing yet
        return is_over(deployment)

    asked = list[int]()
    ours.start()
    more()
    theirs.start().wait_for("partition claimed")
    more()
    ours.kill()
    theirs.wait_for("partition claimed", times=2)
    more()
    ours.wipe()
    ours.start().wait_for("partition claimed", times=3)  # two in its first life
    more()
    theirs.pause()
    ours.wait_for("partition claimed", times=4)
    more()
    theirs.resume()
    wait_until(is_over_at_last, 120, "tombstones of all visitors", every_s=3)
    return asked


def are_all_gone(deployment: Deployment) -> bool:
    """Whether the topic has nobody else than those who still come."""
    return read(deployment)[1] == set(REGULARS)


def is_one_gone_twice(deployment: Deployment) -> bool:
    """Whether somebody was forgotten again, who had not come back."""
    return max(read(deployment)[2].values(), default=0) > 1


def check(deployment: Deployment, actions: Actions) -> None:
    """Nothing was lost or learned twice, and everybody was forgotten once."""
    learned, _, forgotten = read(deployment)
    del learned[""]  # of marks
    assert learned == actions.num
    assert forgotten == Counter(VISITORS), f"forgotten again: {sorted(forgotten - Counter(VISITORS))}"


@pytest.mark.slow
def test_partitions_move_while_users_are_forgotten(deployment: Deployment, worker: Make, actions: Actions) -> None:
    processes = worker("a"), worker("b")
    asked = move(deployment, actions, *processes, are_all_gone)
    assert len(set(asked)) == len(asked), "each time users were left to forget"
    wait_until(lambda: is_idle(deployment), 60, "the workers to finish", 0.2)
    check(deployment, actions)
    for process in processes:
        assert process.stop() == 0, process.log()[-2000:]
    assert of_disk(deployment, *processes) == {user: actions.num[user] for user in REGULARS}


@pytest.mark.slow
def test_a_worker_that_restores_whom_it_forgot_is_caught(
    deployment: Deployment, worker: Make, actions: Actions
) -> None:
    deployment.environment["BROKEN"] += ",restores_whom_it_forgot"
    move(deployment, actions, worker("a"), worker("b"), is_one_gone_twice)
    with pytest.raises(AssertionError, match="forgotten again"):
        check(deployment, actions)
