"""The audit passes a sound build and fails each build that breaks a promise."""

from __future__ import annotations

import itertools
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kafka import KafkaProducer

from headrace.audit import audit
from headrace.dead_letters import resend
from headrace.report import Report
from stream.sender import send_actions
from stream.simulate import World, WorldConfig
from tests.brokers import Broker
from tests.system.broken import BUILDS
from tests.system.loop import KINDS, Loop, explain
from tests.system.test_kill import send_rubbish
from wire.status import PartitionStatus, WorkerStatus, decode_status
from wire.topics import Topics

NUM_ACTIONS = 3_000
NOTICED_BY = {
    "loses_actions": {"nothing is lost", "order and content"},
    "keeps_feedback_to_itself": {"each piece is delivered once"},
    "forgets_examples": {"no example is missing"},
    "swallows_dead_letters": {"dead letters are complete"},
    "mixes_up_users": {"order and content"},
}


def test_every_broken_build_is_named() -> None:
    assert NOTICED_BY.keys() == BUILDS.keys()


def has_applied_everything(loop: Loop, num_produced: int) -> bool:
    """According to the worker itself."""
    from wire.kafka.consumer import connect, read, spans

    topic = Topics.under(loop.settings.kafka.prefix).status
    consumer = connect(loop.settings.kafka)
    try:
        newest: dict[int, PartitionStatus] = {}
        for record in read(consumer, topic, spans(consumer, topic)):
            status = decode_status(record.value)
            if isinstance(status, WorkerStatus):
                newest.update(status.partitions)
    finally:
        consumer.close()
    judged = sum(each.num_accepted + each.num_duplicate + each.num_dead for each in newest.values())
    return judged >= num_produced and not any(each.outbox_len for each in newest.values())


def run_build(name: str, kafka: Broker, prefix: str, folder: Path) -> Report:
    """Run a worker of this build on three thousand actions and some garbage; then the audit."""
    with Loop(kafka.bootstrap, prefix, folder) as loop:
        loop.group.start("worker", "-m", "tests.system.broken", name, "worker", "--config", str(loop.path))
        config = WorldConfig(seed=3, num_users=60, num_items=100, kinds=tuple(KINDS))
        actions = itertools.islice(World(config).actions(), NUM_ACTIONS)
        send_rubbish(loop, 8)
        sent = send_actions(actions, loop.settings.kafka)
        expected = sent.num_actions + 8 - (NUM_ACTIONS // 100 if name == "loses_actions" else 0)
        loop.wait_until(lambda: has_applied_everything(loop, expected), 60, "the worker to be done")
        return audit(loop.settings)


@pytest.fixture(scope="module")
def reports(kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """All builds at once: most of the time is spent waiting for groups to form."""
    folder = tmp_path_factory.mktemp("builds")
    with ThreadPoolExecutor(len(BUILDS) + 1) as pool:
        running = {
            name: pool.submit(run_build, name, kafka, f"t{uuid.uuid4().hex[:10]}", folder / name)
            for name in ("sound", *BUILDS)
        }
        return {name: future.result() for name, future in running.items()}


@pytest.mark.parametrize("name", ["sound", *BUILDS])
def test_a_build_is_judged_by_what_it_does(name: str, reports: dict[str, Report]) -> None:
    report = reports[name]
    noticed = {check.name for check in report.checks if check.violations.num}
    assert NOTICED_BY.get(name, set()) <= noticed, explain(report)
    assert report.passed == (name == "sound"), explain(report)


NOW_MS = 1_700_000_000_000
SECTIONS = {"action": {"kinds": KINDS, "max_future_s": 60.0}}


def an_action(number: int, **changed: object) -> dict[str, object]:
    return {"user": f"u{number % 5}", "item": number, "action": "click", "timestamp": NOW_MS + number, **changed}


@pytest.mark.slow
def test_what_an_earlier_configuration_refused_is_no_violation_and_can_be_sent_again(
    kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    with Loop(kafka.bootstrap, topic_prefix, tmp_path, **SECTIONS) as loop:
        worker = loop.start("worker")["worker"]
        soon_ms = time.time_ns() // 1_000_000 + 600_000
        odd = [an_action(90, action="buy"), an_action(91, action="buy"), an_action(92, timestamp=soon_ms)]
        send_actions([*map(an_action, range(60)), *odd, an_action(93, action="nod")], loop.settings.kafka)
        loop.wait_until(lambda: has_applied_everything(loop, 64), 60, "the worker to be done")
        worker.stop()
        more = {"kinds": [*KINDS, "buy"], "max_future_s": 6000.0}
        after = Loop(kafka.bootstrap, topic_prefix, tmp_path, action=more)
        started_before = audit(after.settings)
        assert started_before.passed, explain(started_before)
        worker.start()
        assert resend(after.settings) == 1
        loop.wait_until(lambda: has_applied_everything(after, 67), 60, "what was sent again to be applied")
        report = audit(after.settings)
        assert report.passed, explain(report)
        assert report.sums["num_accepted"] == 63
        assert "4 dead letters, 3 of them by an earlier configuration" in report.checks[1].found


def test_a_good_action_among_the_dead_letters_is_a_violation_where_the_configuration_never_changed(
    kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    with Loop(kafka.bootstrap, topic_prefix, tmp_path, **SECTIONS) as loop:
        loop.start("worker")
        send_actions(map(an_action, range(20)), loop.settings.kafka)
        loop.wait_until(lambda: has_applied_everything(loop, 20), 60, "the worker to be done")
        told = {"reason": "unknown_action", "topic": Topics.under(topic_prefix).actions, "partition": "0",
                "offset": "0", "index": "-1"}  # fmt: skip
        with KafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
            headers = [(name, text.encode()) for name, text in told.items()]
            producer.send(Topics.under(topic_prefix).dead_letters, b"{}", headers=headers, partition=0)
        report = audit(loop.settings)
        assert {check.name for check in report.checks if check.violations.num} == {"dead letters are complete"}
