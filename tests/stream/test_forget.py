"""`headrace forget` says that somebody is forgotten only when a worker has done it, whatever becomes of the topic."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaTimeoutError

import headrace.forget
import serving.sender
import wire.kafka.producer
from headrace.config import Settings
from headrace.dead_letters import resend
from headrace.forget import forget
from serving.errors import NotReadyError
from serving.request_bodies import ActionRequest, ForgetRequest
from serving.sender import ActionSender
from tests.brokers import wait_until
from tests.stream.audit import is_idle
from tests.stream.workers import Deployment, WorkerProcess
from wire.errors import BrokerUnavailable, HeadraceError, TopicsMismatch
from wire.kafka.producer import make_producer
from wire.partitioner import partition_of
from wire.status import PartitionStatus, WorkerStatus, encode_status

START_MS = 1_700_000_000_000
NAMES = [str(number).encode() for number in range(99)]
USER = next(name for name in NAMES if partition_of(name, 3) == 1 - partition_of(name, 2)).decode()
"""Whose partition of two is another one than that of three, and there is a worker for both."""


@pytest.fixture
def admin(deployment: Deployment) -> Iterator[KafkaAdminClient]:
    if deployment.broker.kind != "apache":
        pytest.skip("topics are changed on real Apache Kafka (java 17+ and mvn)")
    client = KafkaAdminClient(bootstrap_servers=deployment.broker.bootstrap)
    yield client
    client.close()


def settings_of(deployment: Deployment, **changed: Any) -> Settings:
    return Settings(kafka=dataclasses.replace(deployment.kafka, **changed))


def running(deployment: Deployment, worker: Callable[..., WorkerProcess]) -> WorkerProcess:
    """A worker that has applied an action of the user."""
    click = {"user": USER, "item": 1, "action": "click", "timestamp": START_MS}
    home = partition_of(USER.encode(), deployment.partitions)
    deployment.produce([(home, USER.encode(), msgspec.json.encode(click))])
    process = worker().start()
    wait_until(lambda: is_idle(deployment), 60, "the worker to finish", 0.3)
    return process


def num_sent(deployment: Deployment) -> int:
    return sum(deployment.ends(deployment.topics.actions).values()) - 1


def test_a_request_is_not_sent_to_a_topic_that_was_given_partitions(
    deployment: Deployment, admin: KafkaAdminClient, worker: Callable[..., WorkerProcess]
) -> None:
    running(deployment, worker).stop()
    admin.create_partitions({deployment.topics.actions: 3})
    sender = ActionSender(deployment.kafka, deployment.action)
    with pytest.raises(TopicsMismatch, match="expected 2 partitions, the broker has 3"):
        forget(settings_of(deployment), "user", USER)
    with pytest.raises(NotReadyError, match=r"nothing was sent: .* expected 2 partitions, the broker has 3"):
        sender.forget(ForgetRequest(user=USER))
    sender.close()
    assert num_sent(deployment) == 0


def test_a_request_is_not_sent_where_no_worker_would_take_it(
    deployment: Deployment, admin: KafkaAdminClient, worker: Callable[..., WorkerProcess]
) -> None:
    """The topic was given partitions, and whoever sends is configured for all of them: the workers are not."""
    running(deployment, worker).stop()
    admin.create_partitions({deployment.topics.actions: 3})
    astray = settings_of(deployment, partitions=3)
    sender = ActionSender(astray.kafka, deployment.action)
    expected = "kafka.partitions: expected 2, as worker .* has it, got 3; set it to"
    with pytest.raises(TopicsMismatch, match=expected):
        forget(astray, "user", USER)
    with pytest.raises(TopicsMismatch, match=expected):
        resend(astray)
    for _ in range(2):
        with pytest.raises(NotReadyError, match=f"nothing was sent: {expected}"):
            sender.forget(ForgetRequest(user=USER))
        with pytest.raises(NotReadyError, match=f"nothing was sent: {expected}"):
            sender.send(ActionRequest(user=USER, item=1, action="click"), START_MS)
    sender.close()
    assert num_sent(deployment) == 0


def test_a_server_looks_at_times_whether_the_topic_has_the_partitions_that_it_lacks(
    deployment: Deployment, admin: KafkaAdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of many requests would have to wait for those before it, if each connected anew."""
    sender = ActionSender(dataclasses.replace(deployment.kafka, partitions=3), deployment.action)
    made: list[Any] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        made.append(make_producer(*arguments, **options))
        return made[-1]

    def is_sent() -> bool:
        try:
            return sender.forget(ForgetRequest(user=USER)).offset == 0
        except NotReadyError:
            return False

    monkeypatch.setattr(serving.sender, "make_producer", noted)
    began_s = time.monotonic()
    assert [is_sent() for _ in range(30)] == [False] * 30
    assert len(made) <= 2 + (time.monotonic() - began_s) / serving.sender.LOOK_AGAIN_S
    admin.create_partitions({deployment.topics.actions: 3})
    wait_until(is_sent, 20, "the request to be sent")
    sender.close()


def test_partitions_that_are_added_while_a_request_is_sent_do_not_lead_it_astray(
    deployment: Deployment,
    admin: KafkaAdminClient,
    worker: Callable[..., WorkerProcess],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running(deployment, worker).stop()
    look = wire.kafka.producer.home_of

    def slowly(*arguments: Any) -> int:
        home = look(*arguments)
        admin.create_partitions({deployment.topics.actions: 3})
        worker("again").start("--despite-added-partitions")
        return home

    monkeypatch.setattr(wire.kafka.producer, "home_of", slowly)
    assert forget(settings_of(deployment), "user", USER) == 0
    assert "removed from the worker's store" in " ".join(capsys.readouterr().out.split())


def test_a_request_that_the_worker_refuses_is_not_told_as_carried_out(
    deployment: Deployment,
    worker: Callable[..., WorkerProcess],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As when the configuration is that of no worker: the topic has three partitions, the deployment two of them."""
    running(deployment, worker)
    monkeypatch.setattr(wire.kafka.producer, "home_of", lambda *_: partition_of(USER.encode(), 3))
    with pytest.raises(HeadraceError, match=r"nothing is forgotten: .* \(wrong_partition: user '"):
        forget(settings_of(deployment), "user", USER)
    assert "removed" not in capsys.readouterr().out


def test_a_report_on_a_topic_that_was_there_before_is_no_evidence(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker is gone, and what it last said concerns offsets of a topic that was deleted."""
    home = partition_of(USER.encode(), deployment.partitions)
    status = WorkerStatus(component="w", time_ms=START_MS, partitions={home: PartitionStatus(applied_offset=999)})
    producer = make_producer(deployment.kafka)
    producer.send(deployment.topics.status, key=b"w", value=encode_status(status)).get(20)
    producer.close()
    assert forget(settings_of(deployment), "user", USER, wait_s=1.0) == 1
    assert "but not carried out within 1 s" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("error", [KafkaTimeoutError("no answer"), BrokerUnavailable("no answer")], ids=repr)
def test_a_request_that_was_sent_is_told_as_sent_if_the_broker_goes_away(
    error: Exception, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(headrace.forget, "read", away)
    assert forget(settings_of(deployment), "user", USER) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert f"sent (partition {partition_of(USER.encode(), 2)}, offset 0), but not carried out while it could " in told
    assert "no answer" in told


@pytest.mark.parametrize("what", ["user", "item"])
def test_somebody_whom_nobody_knows_is_forgotten_too(
    what: str, deployment: Deployment, worker: Callable[..., WorkerProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    running(deployment, worker)
    assert forget(settings_of(deployment), what, "nobody") == 0
    assert f"{what} nobody:" in capsys.readouterr().out


def test_actions_are_not_sent_again_to_partitions_that_the_topic_does_not_have(deployment: Deployment) -> None:
    with pytest.raises(TopicsMismatch, match="expected 4 partitions, the broker has 2"):
        resend(settings_of(deployment, partitions=4))


def test_each_look_for_what_became_of_a_request_is_needed(
    deployment: Deployment, worker: Callable[..., WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that trusts the worker's report alone is caught by the tests above."""
    running(deployment, worker)
    monkeypatch.setattr(wire.kafka.producer, "home_of", lambda *_: partition_of(USER.encode(), 3))
    monkeypatch.setattr(headrace.forget, "_is_marked", lambda *_: True)
    assert forget(settings_of(deployment), "user", USER) == 0
