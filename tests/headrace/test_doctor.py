"""`headrace doctor`: each fault is found, with its remedy, and a sound deployment has none."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from headrace import dead_letters, doctor, lag, machine, versions
from headrace.audit import audit
from headrace.config import Settings
from headrace.findings import Finding
from tests.brokers import Broker
from tests.foreign import FOREIGN
from wire.cluster import ClusterState
from wire.config import KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.producer import make_producer
from wire.status import PartitionStatus, ServerStatus, Status, TrainerStatus, WorkerStatus, encode_status
from wire.topics import Topics


def settings_of(broker: Broker, prefix: str) -> Settings:
    return Settings(kafka=KafkaConfig(broker.bootstrap, prefix=prefix, partitions=2))


def by_subject(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {each.subject: each for each in findings}


def reports(time_ms: int, name: str = "") -> list[Status]:
    partitions = {number: PartitionStatus(writer_epoch=1) for number in range(2)}
    return [
        WorkerStatus(component=name or "w", time_ms=time_ms, partitions=partitions, process="p"),
        TrainerStatus(component=name or "t", time_ms=time_ms, claimant="t", epoch=1),
        ServerStatus(component=name or "s", time_ms=time_ms, address="http://s:80"),
    ]


@contextmanager
def reporting(settings: Settings, ahead_ms: int = 0, name: str = "") -> Iterator[None]:
    """Repeated reports of a worker, a trainer and a server (all of this ``name``) whose clocks are ``ahead_ms``
    ahead."""
    topic, stopped = Topics.under(settings.kafka.prefix).status, threading.Event()
    producer = make_producer(settings.kafka)

    def report() -> None:
        while not stopped.is_set():
            for status in reports(time.time_ns() // 1_000_000 + ahead_ms, name):
                producer.send(topic, key=status.component.encode(), value=encode_status(status))
            producer.flush()
            stopped.wait(0.1)

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        producer.close()


def test_a_broker_that_does_not_answer_is_a_problem_and_the_machine_is_still_checked() -> None:
    found = by_subject(doctor.findings(Settings(kafka=KafkaConfig("127.0.0.1:1"))))
    assert found["broker"].state == "problem"
    assert "127.0.0.1:1" in found["broker"].words
    assert {"software", "processor", "gpu", "memory", "open files", "disk: state"} <= found.keys()


def test_missing_topics_are_a_problem(kafka: Broker, topic_prefix: str) -> None:
    found = by_subject(doctor.findings(settings_of(kafka, topic_prefix)))
    assert (found["topics"].state, found["topics"].remedy) == ("problem", "headrace topics --create")


def test_other_partitions_and_settings_are_seen(kafka: Broker, topic_prefix: str) -> None:
    settings = settings_of(kafka, topic_prefix)
    ensure_topics(settings.kafka)
    more = settings.model_copy(update={"kafka": replace(settings.kafka, partitions=3)})
    assert "kafka.partitions = 2" in doctor.topics(more).remedy
    longer = settings.model_copy(update={"kafka": replace(settings.kafka, actions_retention_s=60.0)})
    assert doctor.topics(longer).state == "note"
    copies = settings.model_copy(update={"kafka": replace(settings.kafka, replication_factor=3)})
    assert doctor.broker(copies).state == "problem"


def test_a_deployment_without_processes_lists_what_to_start(kafka: Broker, topic_prefix: str) -> None:
    settings = settings_of(kafka, topic_prefix)
    ensure_topics(settings.kafka)
    found = by_subject(doctor.findings(settings))
    assert found["processes"].state == "problem"
    for command in ("headrace worker", "headrace train", "headrace serve"):
        assert command in found["processes"].remedy
    assert found["clocks"].state == "note"
    assert found["dead letters"].state == "ok"


def test_a_server_at_its_limit_of_connections_is_named() -> None:
    some = [
        ServerStatus(component=name, time_ms=1, open_files=num, most_files=most)
        for name, num, most in (("full", 1000, 1024), ("fine", 100, 1024), ("does not say", 0, 0))
    ]
    (found,) = doctor.short_of_files(some)
    assert (found.subject, found.state) == ("open files", "problem")
    assert "server full: 1000 " in found.words
    assert "LimitNOFILE" in found.remedy


def test_processes_of_one_name_are_named() -> None:
    turns = {"server one": ["http://a", "http://b", "http://a"], "worker two": ["x", "x"], "worker again": ["x", "y"]}
    (found,) = doctor.namesakes(turns)
    assert found.state == "problem"
    assert found.words.startswith("2 processes report as server one:")
    sent = [ServerStatus(component="s", time_ms=1, address="a"), WorkerStatus(component="w", time_ms=1, process="p")]
    assert [doctor.sender_of(each) for each in sent] == ["a", "p"]


def test_what_was_removed_unread_is_a_problem() -> None:
    found = list(doctor.lost({"num_gone": 1300, "num_lost": 7}))
    assert [each.state for each in found] == ["problem", "problem"]
    assert "1,300 records of actions were removed" in found[0].words
    assert "7 examples were removed" in found[1].words
    assert not list(doctor.lost({"num_gone": 0, "num_lost": 0}))


def test_partitions_without_a_server_are_a_problem() -> None:
    def findings_of(*held: str) -> list[Finding]:
        state, now_ms = ClusterState(), int(time.time() * 1000)
        for index, each in enumerate(held):
            state.hear(
                encode_status(
                    ServerStatus(component=f"s{index}", time_ms=0, partitions=each, num_partitions=4, epoch=1)
                ),
                now_ms,
            )
        return [each for each in doctor.processes(Settings(), "", state, {}, {}) if each.subject == "servers"]

    (found,) = findings_of("0-1", "3")
    assert found.state == "problem"
    assert "none holds the users of partitions 2:" in found.words
    assert "serving.partitions" in found.remedy
    assert not findings_of("1/2", "2/2")
    assert not findings_of()


def test_a_server_without_a_version_is_not_said_to_hold_nobody() -> None:
    state, now_ms = ClusterState(), int(time.time() * 1000)
    state.hear(encode_status(ServerStatus(component="s", time_ms=0, partitions="none", num_partitions=4)), now_ms)
    (found,) = [each for each in doctor.processes(Settings(), "", state, {}, {}) if each.subject == "servers"]
    assert found.state == "note"
    assert found.words == "none has a version of the weights yet: requests are answered 503"
    assert not state.unheld(now_ms, "")


def test_a_search_that_finds_too_little_is_a_problem() -> None:
    some = [
        ServerStatus(component="misses", time_ms=1, recall=0.9123, is_recall_low=True),
        ServerStatus(component="has compared too few", time_ms=1, recall=0.5),
        ServerStatus(component="exact", time_ms=1),
    ]
    (found,) = doctor.short_of_recall(some)
    assert (found.subject, found.state) == ("search", "problem")
    assert found.words.startswith("server misses finds 0.912 of the exact answers' items")
    assert "serving.search_probes" in found.remedy


def test_what_runs_and_keeps_time_is_fine(kafka: Broker, topic_prefix: str) -> None:
    settings = settings_of(kafka, topic_prefix)
    ensure_topics(settings.kafka)
    with reporting(settings):
        found = by_subject(doctor.findings(settings))
    assert found["processes"] == Finding("processes", "ok", "live: 1 worker, 1 trainer, 1 server")
    assert found["clocks"].state == "ok"


def test_processes_of_one_name_and_other_roles_are_fine(kafka: Broker, topic_prefix: str) -> None:
    settings = settings_of(kafka, topic_prefix)
    ensure_topics(settings.kafka)
    with reporting(settings, name="node1"):
        found = by_subject(doctor.findings(settings))
    assert "names" not in found
    assert found["processes"] == Finding("processes", "ok", "live: 1 worker, 1 trainer, 1 server")
    assert found["clocks"].words.startswith("3 processes within")


def test_who_reported_last_a_minute_ago_is_not_taken_for_live(kafka: Broker, topic_prefix: str) -> None:
    settings = settings_of(kafka, topic_prefix)
    ensure_topics(settings.kafka)
    producer, then_ms = make_producer(settings.kafka), int(time.time() * 1000) - 60_000
    for status in reports(then_ms):
        producer.send(Topics.under(topic_prefix).status, key=status.component.encode(), value=encode_status(status))
    producer.flush()
    producer.close()
    words = [each.words for each in doctor.findings(settings) if each.subject == "processes"]
    assert words[0] == "live: none"
    assert ["silent" in each for each in words[1:]] == [True] * 3


def test_a_clock_that_is_ahead_is_a_problem(kafka: Broker, topic_prefix: str) -> None:
    settings = settings_of(kafka, topic_prefix)
    ensure_topics(settings.kafka)
    with reporting(settings, ahead_ms=60_000):
        found = by_subject(doctor.findings(settings))
    assert found["clocks"].state == "problem"
    assert "ahead" in found["clocks"].words


def test_dead_letters_are_explained(kafka: Broker, topic_prefix: str) -> None:
    settings = settings_of(kafka, topic_prefix)
    ensure_topics(settings.kafka)
    producer = make_producer(settings.kafka)
    for reason in ("wrong_partition", "wrong_partition", "malformed"):
        producer.send(
            Topics.under(topic_prefix).dead_letters, value=b"{}", headers=[("reason", reason.encode())], partition=0
        )
    producer.flush()
    producer.close()
    found = by_subject(doctor.findings(settings))["dead letters"]
    assert "2 wrong_partition" in found.words
    assert "murmur2" in found.remedy


def test_what_others_write_to_the_topics_ends_no_command(
    kafka: Broker, topic_prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, topics = settings_of(kafka, topic_prefix), Topics.under(topic_prefix)
    ensure_topics(settings.kafka)
    producer = make_producer(settings.kafka)
    for value in FOREIGN:
        for topic in (topics.lag, topics.status, topics.control, topics.sequences, topics.weights):
            producer.send(topic, value=value, key=b"theirs", partition=0)
        for headers in ([("reason", b"\xff")], []):
            producer.send(topics.dead_letters, value=value, key=b"x", headers=headers, partition=0)
        for kind in (b"manifest", b"claim", b"chunk"):
            producer.send(topics.weights, value=value, key=b"1/1", headers=[("record", kind)], partition=0)
    producer.flush()
    producer.close()
    with reporting(settings):
        found = by_subject(doctor.findings(settings))
    assert found["processes"].state == found["clocks"].state == "ok"
    assert f"{2 * len(FOREIGN)}; of the newest" in found["dead letters"].words
    assert versions.show(settings) == 0
    assert dead_letters.show(settings) == 0
    assert dead_letters.resend(settings) == 1
    assert lag.watch(settings, once=True, max_s=1.0) == 1
    report = audit(settings)
    assert report.passed, report.as_dict()
    assert "no version has been published yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: folder / "file",
        lambda folder: folder / "file" / "below",
    ],
)
def test_a_folder_that_cannot_be_one_is_a_problem(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "file").write_text("")
    assert machine.disk("disk", make(tmp_path)).state == "problem"
    assert machine.disk("disk", tmp_path / "not" / "yet").state == "ok"


def test_a_folder_below_one_that_is_closed_to_this_user_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    child = os.fork()
    if not child:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            status = int(machine.disk("disk", tmp_path / "closed" / "store").state != "problem")
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_kernels_that_are_not_there_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CPU_LEVEL", "abacus")
    assert machine.processor().state == "problem"
    monkeypatch.setenv("HEADRACE_CPU_LEVEL", "avx2")
    assert machine.processor().state in {"note", "problem"}, "a processor without avx2 cannot be made to use it"


def test_its_exit_status_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(kafka=KafkaConfig("127.0.0.1:1"))
    assert doctor.show(settings, as_json=True) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["subject"] for row in rows if row["state"] == "problem"] == ["broker"]
