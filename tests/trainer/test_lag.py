"""Once a second the trainer reports how far behind each stage is; here each is behind by a known amount."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import jsonschema
import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from structlog.testing import capture_logs

from tests.brokers import REPOSITORY, Broker, crowding, wait_until
from tests.trainer.stage import Stage, admin_of
from tests.trainer.test_retention import Clock, trainer_of, turn_until
from tests.trainer.test_weights import manifest
from trainer.config import TrainerConfig
from trainer.lag.message import build_message, ingest_lag, train_lag
from trainer.lag.metrics import LagMetrics
from trainer.lag.progress import Progress
from trainer.lag.reporter import LagReporter
from trainer.lag.throughput import Throughput
from trainer.loop import Trainer
from trainer.sources.source import Position
from wire.cluster import ClusterState
from wire.config import KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.status import PartitionStatus, ServerStatus, WorkerStatus, encode_status, key_of
from wire.topics import LAG_KEY

Make = Callable[..., Stage]
SCHEMA = json.loads((REPOSITORY / "schema" / "lag.schema.json").read_text())


class Board:
    """The lag topic, and what the other processes would write."""

    def __init__(self, made: Stage) -> None:
        self.made = made
        self._producer = KafkaProducer(bootstrap_servers=made.broker.bootstrap, acks="all")
        self._consumer = KafkaConsumer(bootstrap_servers=made.broker.bootstrap, enable_auto_commit=False)
        where = TopicPartition(made.topics.lag, 0)
        self._consumer.assign([where])
        self._consumer.seek_to_beginning(where)
        self.messages: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All messages so far, validated."""
        for records in self._consumer.poll(50).values():
            for record in records:
                assert record.key == LAG_KEY
                message = json.loads(record.value)
                jsonschema.validate(message, SCHEMA)
                self.messages.append(message)
        return self.messages

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The next message for which the condition holds."""
        num_before = len(self.read())

        def told() -> bool:
            return any(condition(each) for each in self.read()[num_before:])

        try:
            wait_until(told, 60, what, every_s=0)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last message: {self.messages[-1:]}") from None
        return next(each for each in self.messages[num_before:] if condition(each))

    def act(self, partition: int, num: int) -> None:
        """Send actions that no worker applies."""
        for _ in range(num):
            self._producer.send(self.made.topics.actions, b"{}", partition=partition)
        self._producer.flush(20)

    def say(self, status: WorkerStatus | ServerStatus, key: bytes | None = None) -> None:
        """Write to the status topic; ``key``: as an earlier build would."""
        value = encode_status(status)
        self._producer.send(self.made.topics.status, value, key or key_of(status), partition=0).get(60)

    @contextmanager
    def statuses(self) -> Iterator[KafkaConsumer]:
        """A reader of the status topic, from its start."""
        consumer = KafkaConsumer(bootstrap_servers=self.made.broker.bootstrap, enable_auto_commit=False)
        where = TopicPartition(self.made.topics.status, 0)
        consumer.assign([where])
        consumer.seek_to_beginning(where)
        try:
            yield consumer
        finally:
            consumer.close()

    def close(self) -> None:
        self._producer.close(timeout=2)
        self._consumer.close()


@pytest.fixture
def board(stage: Make) -> Iterator[Callable[..., Board]]:
    made: list[Board] = []

    def make(**trainer: Any) -> Board:
        made.append(Board(stage(trainer={"lag_every_s": 0.2, **trainer})))
        return made[-1]

    yield make
    for each in made:
        each.close()


def now_ms() -> int:
    return int(time.time() * 1000)


def worker(**partitions: PartitionStatus) -> WorkerStatus:
    # A clock that is ahead: on a busy machine the test's only report would be stale before it is read.
    return WorkerStatus(
        component="w", time_ms=now_ms() + 60_000, partitions={int(name[1:]): told for name, told in partitions.items()}
    )


def server(name: str, told: dict[str, int] | None, *, behind: int, age_ms: int, silent_ms: int = 0) -> ServerStatus:
    assert told is not None
    now = now_ms()
    return ServerStatus(
        component=name, time_ms=now - silent_ms, epoch=told["epoch"], number=told["number"] - behind,
        newest_record_ms=now - age_ms, swapped_ms=now - age_ms + 1500,
    )  # fmt: skip


def test_every_stage_is_behind_by_what_is_known_to_wait_there(board: Callable[..., Board]) -> None:
    began_ms, told = now_ms(), board(base_every=1000)
    made = told.made
    made.feed(90)
    made.start()
    told.act(0, 10)
    told.act(1, 7)
    first = now_ms()
    covered = made.covered
    told.say(
        worker(
            p0=PartitionStatus(
                applied_offset=5, applied_record_ms=first - 5_000, outbox_len=3,
                oldest_outbox_record_ms=first - 8_000, relayed_number=covered[0] + 4,
            ),
            p1=PartitionStatus(applied_offset=6, applied_record_ms=first - 9_000, relayed_number=covered[1]),
            p2=PartitionStatus(relayed_number=covered[2]),
        )
    )  # fmt: skip
    num_new = sum(example.num_new for examples in made.sent.values() for example in examples)
    message = told.wait_for(
        lambda each: (
            each["num_interactions"] == num_new
            and each["stages"]["publish"]["lag_records"] == 0
            and each["stages"]["train"]["lag_records"] == 4
        ),
        "all trained and published, four examples still to come",
    )
    stages = message["stages"]
    assert stages["ingest"]["lag_records"] == 4
    assert stages["ingest"]["partitions"]["0"]["lag_records"] == 4
    assert stages["ingest"]["partitions"]["1"] == {"lag_records": 0, "lag_s": 0.0}, "old, but nothing waits"
    assert stages["ingest"]["lag_s"] == pytest.approx((message["time_ms"] - first + 5_000) / 1000, abs=0.01)
    assert stages["sequence"]["lag_records"] == 3
    assert stages["sequence"]["lag_s"] == pytest.approx((message["time_ms"] - first + 8_000) / 1000, abs=0.01)
    assert stages["train"]["partitions"]["0"]["lag_records"] == 4
    assert 0 < stages["train"]["lag_s"] <= (message["time_ms"] - began_ms) / 1000, "since the last one was trained"
    assert message["num_servers"] == 0
    assert message["freshness"] == {"now_s": None, "at_swap_s": None}
    assert message["loss"]["total"] == message["loss"]["retrieval"] + message["loss"]["ranking"]
    assert message["metrics"]["num_targets"] == num_new

    second = now_ms()
    told.say(server("near", message["version"], behind=0, age_ms=2_000))
    told.say(server("far", message["version"], behind=2, age_ms=7_000))
    told.say(server("with a clock that is behind", message["version"], behind=1, age_ms=3_000, silent_ms=30_000))
    message = told.wait_for(lambda each: each["num_servers"] == 3, "three servers")
    assert message["stages"]["serve"]["lag_records"] == 2
    assert message["stages"]["serve"]["lag_s"] > 0
    assert message["freshness"]["at_swap_s"] == 1.5
    assert message["freshness"]["now_s"] == pytest.approx((message["time_ms"] - second + 7_000) / 1000, abs=0.1)

    for name in ("with a clock that is behind", "far"):
        told.say(server(name, message["version"], behind=0, age_ms=1_000))
    told.wait_for(
        lambda each: each["stages"]["serve"] == {"lag_records": 0, "lag_s": 0.0, "partitions": {}}, "caught up"
    )


def test_what_waits_to_be_trained_and_published_is_counted_and_ages(board: Callable[..., Board]) -> None:
    told = board(publish_every_s=600.0, max_step_targets=1, max_step_tokens=1, lag_every_s=0.02)
    made = told.made
    made.feed(400)
    made.start()
    told.say(worker(**{f"p{number}": PartitionStatus(relayed_number=last) for number, last in made.covered.items()}))
    total = sum(last + 1 for last in made.covered.values())
    message = told.wait_for(
        lambda each: 0 < each["stages"]["train"]["lag_records"] < total and each["num_steps"] > 2, "half of it trained"
    )
    waiting = message["stages"]["train"]["lag_records"]
    assert waiting <= total - message["num_steps"], "one example a step, and those that teach nothing"
    assert waiting >= total - 2 * message["num_steps"]
    assert message["stages"]["train"]["lag_s"] > 1_000_000, "these actions are of 1970"
    message = told.wait_for(
        lambda each: not each["stages"]["train"]["lag_records"] and each["version"] is not None,
        "all of it trained, some published",
    )
    assert message["num_steps"] > total / 2
    assert message["version"]["number"] == 0
    assert message["stages"]["publish"]["lag_records"] >= total - 30, "only what the first version has is published"
    assert 0 < message["stages"]["publish"]["lag_s"] < 600


def test_a_copy_that_stopped_learning_and_the_last_checkpoint_are_reported(board: Callable[..., Board]) -> None:
    told = board(
        metric_window=20, frozen_share=1.0, checkpoint_every_steps=3, max_step_targets=4, max_step_tokens=64,
        lag_every_s=0.02,
    )  # fmt: skip
    told.made.feed(600)
    told.made.start()
    message = told.wait_for(lambda each: bool(each["metrics"].get("frozen")), "a frozen copy that was compared")
    copy = message["metrics"]["frozen"]
    assert 20 <= copy["num_interactions"] < message["num_interactions"]
    assert copy["num"] == 20
    assert 0 <= message["checkpoint_age_s"] < 60
    collected = LagMetrics(lambda: message, REPOSITORY).registry.collect()
    gauges = {(each.name, *each.labels.values()): each.value for family in collected for each in family.samples}
    for weights in ("fresh", "frozen"):
        assert gauges["headrace_trainer_frozen_hr10_ratio", weights] == copy[weights]["hr10"]
    assert gauges["headrace_trainer_frozen_age_seconds",] > 0
    assert gauges["headrace_trainer_checkpoint_age_seconds",] == message["checkpoint_age_s"]
    assert gauges["headrace_disk_bytes",] > gauges["headrace_disk_free_bytes",] > 0
    window = message["metrics"]["ranking_window"]
    for kind in told.made.settings.action.kinds:
        for name, key in (("normalized_entropy", "ne"), ("calibration", "calibration")):
            value = gauges[f"headrace_trainer_kind_{name}_ratio", kind]
            assert value == window[kind][key] or (np.isnan(value) and window[kind][key] is None)


def test_gauges_grow_while_the_broker_is_away(board: Callable[..., Board], durable_kafka: Broker) -> None:
    told = board()
    told.made.feed(20)
    reporter = LagReporter(told.made.settings.kafka, told.made.settings.trainer, lambda: progress)
    progress = Progress(epoch=0, time_ms=now_ms(), positions={0: Position(next_number=1)})
    told.say(worker(p0=PartitionStatus(applied_offset=5, relayed_number=0)))
    told.say(server("s", {"epoch": 0, "number": 0}, behind=0, age_ms=1_000))
    reporter.start()
    try:
        wait_until(lambda: 0 < gauge(reporter, "headrace_freshness_seconds") < 30, 60, "the server to be known")
        durable_kafka.kill()

        def grows() -> bool:
            names = ("headrace_broker_silence_seconds", *(f"headrace_stage_lag_seconds/{each}" for each in BEHIND))
            return (
                all(gauge(reporter, name) > 5 for name in names) and gauge(reporter, "headrace_freshness_seconds") > 5
            )

        wait_until(grows, 60, "every age to grow though nothing can be asked")
        durable_kafka.restart()
        wait_until(lambda: gauge(reporter, "headrace_broker_silence_seconds") < 2, 60, "the broker to be heard again")
    finally:
        durable_kafka.restart()
        reporter.stop()


def test_heartbeats_go_on_while_the_lag_topic_is_missing(board: Callable[..., Board]) -> None:
    """Otherwise a standby would take over from a trainer that leads, and that one again from it."""
    told = board()
    progress = Progress(epoch=0, time_ms=now_ms(), claimant="host//folder/a/1/b")
    reporter = LagReporter(told.made.settings.kafka, told.made.settings.trainer, lambda: progress)
    with capture_logs() as lines, told.statuses() as consumer:
        reporter.start()
        try:
            told.wait_for(lambda message: True, "a message")
            while consumer.poll(200):
                pass
            with admin_of(told.made.broker) as admin:
                admin.delete_topics([told.made.topics.lag])
            beats_ms = [now_ms()]

            def have_come(num: int) -> bool:
                beats_ms.extend(each.timestamp for some in consumer.poll(200).values() for each in some)
                return len(beats_ms) > num

            wait_until(lambda: have_come(20), 120, "twenty beats")
            gaps_s = [(later - one) / 1000 for one, later in pairwise(beats_ms)]
            assert max(gaps_s) < told.made.settings.trainer.takeover_after_s, (gaps_s, lines)
            assert any(line["event"] == "topic missing, trying again" for line in lines)
            ensure_topics(told.made.settings.kafka)
            wait_until(lambda: any(line["event"] == "broker is back" for line in lines), 60, "messages again")
        finally:
            reporter.stop()


BEHIND = ("ingest", "train", "serve")


def gauge(reporter: LagReporter, name: str) -> float:
    """A metric as Prometheus reads it; ``name/label`` for one of several."""
    wanted, _, label = name.partition("/")
    for family in reporter.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == wanted and (not label or label in sample.labels.values()):
                return sample.value
    raise AssertionError(f"no metric {name}")


def test_who_has_been_silent_for_an_hour_is_removed_from_the_status_topic(board: Callable[..., Board]) -> None:
    told = board()
    for name, told_ms, key in (("gone", 1_000, None), ("here", now_ms() + 60_000, None), ("before", 1_000, b"before")):
        told.say(ServerStatus(component=name, time_ms=told_ms), key)
    told.say(WorkerStatus(component="gone", time_ms=now_ms()))
    told.made.feed(30)
    told.made.start()
    told.wait_for(lambda message: message["version"] is not None, "a version")
    assert removed(told, 4) == {b"server/gone", b"gone", b"server/before", b"before"}


def removed(told: Board, num: int) -> set[bytes]:
    """The keys of the status topic whose last record is a tombstone, once there are so many."""
    last = dict[bytes, bytes | None]()
    with told.statuses() as consumer:
        wait_until(
            lambda: [
                last.update({record.key: record.value for record in records})
                for records in consumer.poll(50).values()
            ] and [*last.values()].count(None) >= num,
            60, f"{num} tombstones", every_s=0,
        )  # fmt: skip
    return {key for key, value in last.items() if value is None}


def test_a_worker_that_is_silent_leaves_its_stages_as_old_as_its_last_word() -> None:
    around, now = ClusterState(), now_ms()
    around.action_ends = {0: 6, 1: 6}
    quiet = PartitionStatus(applied_offset=5, relayed_number=3)
    around.note(encode_status(WorkerStatus(component="dead", time_ms=now - 31_000, partitions={0: quiet})))
    around.note(encode_status(WorkerStatus(component="alive", time_ms=now - 900, partitions={1: quiet})))
    message = build_message(Progress(), around, {}, now)
    for name in ("ingest", "sequence"):
        assert message["stages"][name]["partitions"]["0"] == {"lag_records": 0, "lag_s": 31.0}
        assert message["stages"][name]["partitions"]["1"] == {"lag_records": 0, "lag_s": 0.0}
        assert message["stages"][name]["lag_s"] == 31.0
    silences = {each["component"]: each["silent_s"] for each in message["processes"]}
    assert silences == {"dead": 31.0, "alive": 0.9}


def test_metrics_may_be_scraped_while_processes_report_for_the_first_time() -> None:
    reporter, interval_s = LagReporter(KafkaConfig(), TrainerConfig(), Progress), sys.getswitchinterval()
    reports = [encode_status(ServerStatus(component=f"server {number}", time_ms=1)) for number in range(20_000)]

    def hear() -> None:
        for each in reports:
            reporter._hear(each)

    listening, num_metrics = threading.Thread(target=hear), 0
    sys.setswitchinterval(1e-6)
    try:
        listening.start()
        while listening.is_alive():
            num_metrics += len(list(reporter.metrics.collect()))
    finally:
        sys.setswitchinterval(interval_s)
        listening.join()
    assert num_metrics > 0


def test_an_action_that_arrives_after_a_quiet_hour_has_not_waited_for_an_hour() -> None:
    around, now = ClusterState(), now_ms()
    an_hour_ago = PartitionStatus(applied_offset=5, applied_record_ms=now - 3_600_000)
    around.note(encode_status(worker(p0=an_hour_ago)))
    around.see_ends({0: 6}, now - 700)
    assert ingest_lag(around, now) == {0: (0, 0.0)}
    around.see_ends({0: 7}, now)
    assert ingest_lag(around, now) == {0: (1, 0.7)}
    assert ingest_lag(around, now + 60_000) == {0: (1, 60.7)}, "it goes on waiting"


def test_examples_of_which_none_arrives_are_as_old_as_the_last_that_was_trained() -> None:
    around, now = ClusterState(), now_ms()
    around.note(encode_status(worker(p0=PartitionStatus(relayed_number=500_000))))
    behind = Progress(time_ms=now, positions={0: Position(100_000, 100_000, record_ms=now - 60_000)})
    assert train_lag(around, behind, now) == {0: (400_001, 60.0)}
    polled = replace(behind, oldest_waiting_ms={0: now - 59_000})
    assert train_lag(around, polled, now) == {0: (400_001, 59.0)}
    around.see_trained({0: 500_001}, now - 700)
    assert train_lag(around, behind, now) == {0: (400_001, 0.7)}, "an example after a quiet hour has not waited for it"


def test_a_trainer_says_where_it_is_before_it_reads_the_histories(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told, resume = stage(), list[Progress](), Trainer._resume
    made.feed(40)
    with trainer_of(made, Clock()) as trainer:
        turn_until(trainer, made, lambda recount: recount.last.covered == made.covered)
    monkeypatch.setattr(Trainer, "_resume", lambda self, of: (told.append(self.progress), resume(self, of)))
    with trainer_of(made, Clock()) as trainer:
        (before,) = told
        assert {each: at.next_number - 1 for each, at in before.positions.items()} == made.covered
        assert before.is_recovering
        assert 0 < before.time_ms <= trainer.progress.time_ms


@pytest.mark.parametrize(("silent_ms", "num_servers", "lag_s"), [(900, 2, 0.0), (4_000, 2, 4.0), (31_000, 0, 31.0)])
def test_servers_that_are_silent_leave_their_stage_as_old_as_the_last_word(
    silent_ms: int, num_servers: int, lag_s: float
) -> None:
    around, now = ClusterState(), now_ms()
    for name, more_ms in (("first", 5_000), ("last", 0)):
        told = ServerStatus(component=name, time_ms=now - silent_ms - more_ms, epoch=0, number=3)
        around.note(encode_status(told))
    published = Progress(published=manifest(b"", 1, 3, "base", epoch=0), published_ms=now - 60_000)
    message = build_message(published, around, {}, now)
    assert message["stages"]["serve"] == {"lag_records": 0, "lag_s": lag_s, "partitions": {}}
    assert message["num_servers"] == num_servers


@pytest.mark.parametrize(
    ("learning", "arriving", "expected"), [(30, 10, 20.0), (10, 10, None), (5, 10, None), (0, 0, None)]
)
def test_the_trainers_rate_stands_beside_the_arrivals(learning: int, arriving: int, expected: float | None) -> None:
    around, rates = ClusterState(), Throughput()
    said: dict[str, Any] = {}
    for second in range(10):
        told = PartitionStatus(relayed_number=1000 + arriving * second - 1)
        around.note(encode_status(worker(p0=told)))
        position = Position(next_number=600 + learning * second - (learning - arriving) * 9)
        said = rates.sample(Progress(positions={0: position}), around, now_s=float(second))
    assert said["examples_per_s"] == learning
    assert said["arriving_examples_per_s"] == arriving
    assert said["catch_up_s"] == expected


@pytest.mark.parametrize("is_reported", [True, False], ids=["its first example is learned", "its worker reports"])
def test_a_backlog_does_not_seem_to_arrive_when_its_partition_is_first_counted(is_reported: bool) -> None:
    around, rates = ClusterState(), Throughput()
    around.note(encode_status(worker(p0=PartitionStatus(relayed_number=999))))
    if is_reported:
        around.note(encode_status(worker(p1=PartitionStatus(relayed_number=999))))
    positions = {} if is_reported else {1: Position(next_number=10)}
    for second in range(3):
        said = rates.sample(
            Progress(positions={0: Position(next_number=100 * second + 1), **positions}), around, now_s=float(second)
        )
    assert said["arriving_examples_per_s"] == 0.0
    around.note(encode_status(worker(p1=PartitionStatus(relayed_number=999))))
    for second in range(3, 6):
        positions = {1: Position(next_number=10 * second)}
        said = rates.sample(
            Progress(positions={0: Position(next_number=100 * second + 1), **positions}), around, now_s=float(second)
        )
    assert said["arriving_examples_per_s"] == 0.0
    assert said["examples_per_s"] >= 100.0
    assert said["catch_up_s"] is not None


def test_a_worker_that_first_reports_late_does_not_make_the_backlog_seem_to_vanish() -> None:
    """Examples arrive as fast as they are learned; only the reports of that begin after nine seconds."""
    around, rates, said = ClusterState(), Throughput(), list[dict[str, Any]]()
    for second in range(12):
        if second >= 9:
            around.note(encode_status(worker(p0=PartitionStatus(relayed_number=1000 + 100 * second - 1))))
        said.append(rates.sample(Progress(positions={0: Position(next_number=100 * second)}), around, float(second)))
    assert [each["catch_up_s"] for each in said[9:]] == [None, None, None]
    assert [each["arriving_examples_per_s"] for each in said[9:]] == [0.0, 100.0, 100.0]


def test_with_nothing_waiting_the_trainer_has_caught_up() -> None:
    around, rates = ClusterState(), Throughput()
    around.note(encode_status(worker(p0=PartitionStatus(relayed_number=4))))
    assert rates.sample(Progress(positions={0: Position(next_number=5)}), around)["catch_up_s"] == 0.0


def test_a_trainer_started_by_its_command_speaks_every_second_and_ends_in_order(board: Callable[..., Board]) -> None:
    told = board(lag_every_s=1.0)
    told.made.feed(60)
    command = [sys.executable, "-m", "trainer", "--config", str(told.made.config_path)]
    folder = told.made.checkpoints()
    with (told.made.folder / "trainer.log").open("wb") as log:
        process = subprocess.Popen([*command, "--checkpoint-dir", str(folder)], cwd=REPOSITORY, stdout=log, stderr=log)
    try:
        wait_until(lambda: len(told.read()) >= 4, 60, "four messages", every_s=0)
        told.made.feed(20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (told.made.folder / "trainer.log").read_text()
    finally:
        process.kill()
        process.wait()
    times = [each["time_ms"] for each in told.read()[:4]]
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    assert 900 <= gaps[len(gaps) // 2] <= 1600 * crowding(), gaps
    last = told.made.recount().last
    wait_until(lambda: told.read()[-1]["num_interactions"] == last.num_interactions, 60, "the last state", every_s=0)
    assert told.messages[-1]["version"] == {"epoch": last.epoch, "number": last.number}
    assert told.messages[-1]["stages"]["publish"]["lag_records"] == 0
