"""The audit passes a sound build and fails each build that breaks a promise."""

from __future__ import annotations

import itertools
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.audit import audit
from headrace.report import Report
from stream.replay import send_actions
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
    """By the worker's own word."""
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
    """A worker of this build, three thousand actions and some rubbish; then the audit."""
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
    """Every build at once: what takes time is waiting for groups to form."""
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
