"""Kill things at random while actions are sent, then recount from the topics. Each test catches a broken worker."""

from __future__ import annotations

import itertools
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from stream.producer import BatchConfig
from stream.sender import send_actions
from tests.brokers import Broker, wait_until
from tests.stream.audit import Recount, check, is_idle, last_statuses, world
from tests.stream.workers import Deployment, WorkerProcess

Make = Callable[..., WorkerProcess]


class Sending:
    """Actions being sent until `stop`; then `num_actions` says how much it sent."""

    def __init__(self, deployment: Deployment, rate: float = 500.0) -> None:
        self.num_actions = -1
        self._deployment = deployment
        self._rate = rate
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        actions = itertools.takewhile(lambda _: not self._stopped.is_set(), world(seed=3))
        batch = BatchConfig(max_actions=4, linger_s=0.01)
        self.num_actions = send_actions(actions, self._deployment.kafka, rate=self._rate, batch=batch).num_actions

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        self._thread.join(60)


@contextmanager
def being_sent(deployment: Deployment) -> Iterator[Sending]:
    """Actions are sent during the block."""
    sending = Sending(deployment)
    try:
        yield sending
    finally:
        sending.stop()


def num_examples(deployment: Deployment) -> int:
    """The number of records in the sequences topic."""
    return sum(deployment.ends(deployment.topics.sequences).values())


def wait_for_more(deployment: Deployment, num_more: int) -> None:
    """Wait for some progress, so that a kill meets a worker at work."""
    target = num_examples(deployment) + num_more
    wait_until(lambda: num_examples(deployment) >= target, 60, f"{num_more} more examples", 0.02)


def kill_again_and_again(deployment: Deployment, process: WorkerProcess, num_kills: int, seed: int) -> None:
    """SIGKILL at random moments; every other time, the disk is lost too."""
    chance = random.Random(seed)
    process.start()
    for number in range(num_kills):
        wait_for_more(deployment, chance.randrange(1, 200))
        process.kill()
        if number % 2:
            process.wipe()
        process.start()


def settle(deployment: Deployment, sending: Sending) -> Recount:
    """Let the workers finish, then recount."""
    wait_until(lambda: is_idle(deployment), 60, "the workers to finish", 0.2)
    return check(deployment, sending.num_actions)


def is_caught(deployment: Deployment, sending: Sending, *processes: WorkerProcess) -> None:
    """Check that the recount finds a broken worker. It may never finish, so it gets only some seconds; and it must be
    broken as intended, not by an error in the breaking."""
    with suppress(AssertionError):
        wait_until(lambda: is_idle(deployment), 4, "the workers to finish", 0.2)
    with pytest.raises(AssertionError) as caught:
        check(deployment, sending.num_actions)
    print("CAUGHT", str(caught.value)[:300])
    for process in processes:
        assert not re.search(r"(Type|Attribute|Name|Key|Index|Assertion)Error", process.log()), process.log()[-3000:]


def test_a_worker_killed_at_random_points_loses_and_doubles_nothing(deployment: Deployment, worker: Make) -> None:
    process = worker()
    with being_sent(deployment) as sending:
        kill_again_and_again(deployment, process, num_kills=5, seed=1)
    recount = settle(deployment, sending)
    assert process.num_kills == 5
    # How much is sent by the last kill depends on the machine; each kill waits for progress, so it is not little.
    assert sum(len(rows) for rows in recount.rows.values()) > 500


@pytest.mark.parametrize(
    "broken", ["acks_before_it_writes", "deletes_before_the_broker_has_it", "forgets_the_disk_is_gone"]
)
def test_the_kill_test_catches(broken: str, deployment: Deployment, worker: Make) -> None:
    deployment.environment["BROKEN"] = broken
    process = worker()
    process.module = "tests.stream.broken"
    with being_sent(deployment) as sending:
        kill_again_and_again(deployment, process, num_kills=2, seed=2)
    is_caught(deployment, sending, process)


def haunt(deployment: Deployment, worker: Make, broken: str = "") -> tuple[WorkerProcess, WorkerProcess, Sending]:
    """Stop one worker while its outbox is full, until another has taken its partitions; it wakes without knowing."""
    deployment.environment["BROKEN"] = ",".join(name for name in ("relays_slowly", broken) if name)
    ghost = worker("ghost")
    deployment.environment["BROKEN"] = broken
    other = worker("other")
    ghost.module = "tests.stream.broken"
    other.module = "tests.stream.broken" if broken else "stream"
    ghost.start().wait_for("partition claimed", times=2)
    with being_sent(deployment) as sending:
        wait_until(lambda: waiting(deployment) > 50, 60, "a full outbox", 0.1)
        ghost.pause()
        other.start().wait_for("partition claimed", times=2)
        ghost.resume()
        wait_for_more(deployment, 100)
    return ghost, other, sending


def waiting(deployment: Deployment) -> int:
    """Entries in the outboxes, according to the workers."""
    parts = [part for status in last_statuses(deployment).values() for part in status.partitions.values()]
    return min((part.outbox_len for part in parts), default=0)


def test_a_worker_that_slept_through_the_loss_of_its_partitions_is_fenced_off(
    deployment: Deployment, worker: Make
) -> None:
    ghost, _, sending = haunt(deployment, worker)
    recount = settle(deployment, sending)
    # The ghost did write: fences are for that.
    assert recount.verdicts["stale"] > 0
    assert "fenced off" in ghost.log()


def test_the_ghost_test_catches_a_worker_that_takes_without_a_fence(deployment: Deployment, worker: Make) -> None:
    ghost, other, sending = haunt(deployment, worker, "takes_without_a_fence")
    is_caught(deployment, sending, ghost, other)


def test_partitions_move_between_workers_that_come_and_go(deployment: Deployment, worker: Make) -> None:
    first, second = worker("first"), worker("second")
    first.start().wait_for("partition claimed", times=2)
    with being_sent(deployment) as sending:
        second.start().wait_for("partition claimed")
        wait_for_more(deployment, 30)
        assert first.stop() == 0
        second.wait_for("partition claimed", times=2)
        wait_for_more(deployment, 30)
        first.start()
    settle(deployment, sending)


def test_a_broker_killed_in_flight_is_waited_for(durable_kafka: Broker, deployment: Deployment, worker: Make) -> None:
    process = worker().start()
    process.wait_for("partition claimed", times=2)
    with being_sent(deployment) as sending:
        for _ in range(2):
            wait_for_more(deployment, 40)
            durable_kafka.kill()
            durable_kafka.restart()
    settle(deployment, sending)
    assert process.process.poll() is None
    assert process.stop() == 0
