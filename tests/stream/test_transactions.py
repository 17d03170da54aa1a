"""Producers that use transactions (Kafka's own client): what was committed is learned once, what was aborted never; the
markers cost nothing, and are not mistaken for actions that were lost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice

import pytest
from kafka import KafkaAdminClient, TopicPartition

from tests.brokers import wait_until
from tests.java_producer import JavaProducer, java_producer
from tests.stream.audit import check, is_idle, last_statuses, world
from tests.stream.workers import Deployment, WorkerProcess

Make = Callable[..., WorkerProcess]
SIZES = (1, 2, 49, 50, 51, 1, 100, 1, 1, 50)
"""Actions of one transaction; the worker polls 50 records at a time."""


@pytest.fixture
def deployment(deployment: Deployment) -> Deployment:
    if deployment.broker.kind != "apache":
        pytest.skip("transactions are tried on real Apache Kafka (java 17+ and mvn)")
    return deployment


def wait_for_idle(deployment: Deployment) -> None:
    wait_until(lambda: is_idle(deployment), 60, "the worker to have applied everything", 0.3)


def num_taken(deployment: Deployment) -> int:
    """How many actions the worker says it has taken."""
    statuses = last_statuses(deployment).values()
    return sum(part.num_accepted + part.num_duplicate for each in statuses for part in each.partitions.values())


def wait_for_taken(deployment: Deployment, process: WorkerProcess, num: int) -> None:
    def is_done() -> bool:
        assert process.process.poll() is None, process.log()[-2000:]
        return num_taken(deployment) >= num

    wait_until(is_done, 60, "the worker to have taken all actions", 0.3)


def producer_of(deployment: Deployment) -> AbstractContextManager[JavaProducer]:
    return java_producer(deployment.kafka, deployment.folder, transactional_id=deployment.prefix, linger_ms=0)


def write(producer: JavaProducer, num_aborted: int) -> int:
    """Transactions of all `SIZES`, each after an aborted one of so many actions; returns how many were committed."""
    actions = world()
    for size in SIZES:
        if num_aborted:
            producer.transaction(islice(world(seed=9), num_aborted), "abort")
        producer.transaction(islice(actions, size))
    return sum(SIZES)


def start(deployment: Deployment, worker: Make, *broken: str) -> WorkerProcess:
    if broken:
        deployment.environment["BROKEN"] = ",".join(broken)
    process = worker()
    process.module = "tests.stream.broken" if broken else process.module
    process.start().wait_for("partition claimed", times=deployment.partitions)
    return process


def come_and_go(deployment: Deployment, worker: Make, *broken: str) -> None:
    """Transactions while a worker runs that reads nothing but what Faust delivers; check what it has learned."""
    process = start(deployment, worker, "reads_only_through_faust", *broken)
    with java_producer(
        deployment.kafka, deployment.folder, transactional_id=deployment.prefix, linger_ms=0
    ) as producer:
        num = write(producer, 0) + write(producer, 3)
        wait_for_taken(deployment, process, num)
    check(deployment, num)
    assert not [part.num_gone for part in last_statuses(deployment)["w"].partitions.values() if part.num_gone]
    assert process.stop() == 0


def test_what_is_committed_is_learned_once_and_markers_cause_no_further_reads(
    deployment: Deployment, worker: Make
) -> None:
    come_and_go(deployment, worker)


def test_a_worker_that_reads_again_at_each_marker_is_caught(deployment: Deployment, worker: Make) -> None:
    with pytest.raises(AssertionError, match="a plain read"):
        come_and_go(deployment, worker, "knows_only_the_offsets_of_records")


def retention_takes_all(deployment: Deployment, worker: Make, *broken: str) -> int:
    """A worker has applied everything; the topic is emptied, and the worker killed and started again. Returns how many
    records it then counts as lost."""
    process = start(deployment, worker, *broken)
    with producer_of(deployment) as producer:
        num = write(producer, 2)
        producer.transaction(islice(world(seed=9), 5), "abort")
        wait_for_idle(deployment)
        num_dead = len(check(deployment, num).dead)
        admin = KafkaAdminClient(bootstrap_servers=deployment.broker.bootstrap)
        ends = {
            TopicPartition(deployment.topics.actions, n): at
            for n, at in deployment.ends(deployment.topics.actions).items()
        }
        admin.delete_records(ends)
        admin.close()
        process.kill()
        process.start().wait_for("partition claimed", times=2 * deployment.partitions)
        producer.transaction(islice(world(seed=1), 40))
        wait_for_idle(deployment)
    assert num_dead == 0
    assert num_taken(deployment) == num + 40
    return sum(part.num_gone for part in last_statuses(deployment)["w"].partitions.values())


def test_markers_that_retention_removes_are_no_lost_actions(deployment: Deployment, worker: Make) -> None:
    assert retention_takes_all(deployment, worker) == 0


def test_a_worker_that_takes_markers_for_lost_actions_is_caught(deployment: Deployment, worker: Make) -> None:
    assert retention_takes_all(deployment, worker, "keeps_in_memory_what_it_passed_over") > 0
