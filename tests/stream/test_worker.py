"""The worker on a broker, undisturbed: everything that goes in comes out."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient
from kafka.errors import MessageSizeTooLargeError

from headrace.config import Settings
from state.config import StoreConfig
from stream.app import group_of
from stream.config import StreamConfig
from stream.producer import BatchConfig
from stream.sender import send_actions
from stream.worker import Worker
from tests.brokers import free_port, wait_until
from tests.stream.audit import check, is_idle, last_statuses, world, written
from tests.stream.workers import Deployment, WorkerProcess
from wire.config import COMPRESSIONS, KafkaConfig
from wire.errors import HeadraceError
from wire.partitioner import partition_of

START_MS = 1_700_000_000_000
LONG = "a record that does not become smaller is not compressed " * 40
Make = Callable[..., WorkerProcess]


def test_every_action_becomes_part_of_the_right_sequence(deployment: Deployment, worker: Make) -> None:
    actions = list(islice(world(), 3_000))
    process = worker().start()
    send_actions(actions, deployment.kafka, batch=BatchConfig(max_actions=40))
    wait_until(lambda: is_idle(deployment), 60, "the worker to finish", 0.3)
    recount = check(deployment, len(actions))
    assert sum(len(rows) for rows in recount.rows.values()) > 1_000
    [status] = last_statuses(deployment).values()
    parts = status.partitions.values()
    assert sum(part.num_accepted + part.num_duplicate + part.num_dead for part in parts) == len(actions)
    ends = deployment.ends(deployment.topics.actions)
    wait_until(lambda: committed(deployment) == ends, 60, "the group to have committed all of it")
    assert process.stop() == 0
    assert "Traceback" not in process.log()


def committed(deployment: Deployment) -> dict[int, int]:
    """Partition → the offset that the workers' group has committed."""
    group = group_of(deployment.kafka, deployment.stream)
    admin = KafkaAdminClient(bootstrap_servers=deployment.broker.bootstrap)
    try:
        found = admin.list_group_offsets({group: None})[group]
    finally:
        admin.close()
    return {where.partition: each.offset for where, each in found.items()}


def _bad_records() -> list[tuple[bytes | None, str]]:
    good = {"user": "u1", "item": 1, "action": "click", "timestamp": START_MS}

    def like(**changes: object) -> bytes:
        return msgspec.json.encode({**good, **changes})

    return [
        (None, "empty"),
        (b"", "empty"),
        (b"[" + b'"x",' * 252_000 + b'"x"]', "oversized"),
        (b'{"user": "u1", "item"', "malformed"),
        (b"\xff\xfe\x00", "malformed"),
        (b"7", "wrong_type"),
        (like(timestamp="yesterday"), "wrong_type"),
        (b'{"user": "u1", "item": 1, "action": "click"}', "missing_field"),
        (like(action="buy"), "unknown_action"),
        (like(user=""), "bad_value"),
        (like(timestamp=4_000_000_000_000), "future"),
        (like(user="somebody else"), "wrong_partition"),
    ]


def test_bad_records_of_every_kind_are_dead_letters_and_the_stream_goes_on(
    deployment: Deployment, worker: Make
) -> None:
    home = partition_of(b"u1", deployment.partitions)
    assert partition_of(b"somebody else", deployment.partitions) != home
    records: list[tuple[int, bytes | None, bytes | None]] = []
    for number, (value, _reason) in enumerate(_bad_records()):
        good = {"user": "u1", "item": number, "action": "click", "timestamp": START_MS + number * 60_000}
        records += [(home, b"u1", value), (home, b"u1", msgspec.json.encode(good))]
    deployment.produce(records)
    worker().start()
    wait_until(lambda: len(written(deployment).dead) == len(_bad_records()), 60, "the dead letters", 0.3)
    wait_until(lambda: is_idle(deployment), 60, "the worker to finish", 0.3)
    check(deployment, len(records))
    [letters] = deployment.read(deployment.topics.dead_letters).values()
    by_offset = {int(dict(letter.headers)["offset"]): letter for letter in letters}
    for number, (value, reason) in enumerate(_bad_records()):
        letter = by_offset[2 * number]
        headers = {name: text.decode() for name, text in letter.headers}
        assert headers["reason"] == reason, headers
        assert letter.value == (value or b"")
        assert (headers["topic"], headers["index"]) == (deployment.topics.actions, "-1")
        assert letter.key == f"{deployment.topics.actions}/{home}/{2 * number}".encode()
        assert len(headers["message"]) > 10


def letter_of(value: bytes, deployment: Deployment, worker: Make, compression: str | None = None) -> Any:
    """The dead letter of a bad record, once the record after it has gone through."""
    home = partition_of(b"u1", deployment.partitions)
    good = {"user": "u1", "item": 1, "action": "click", "timestamp": START_MS}
    deployment.produce([(home, None, value)], compression)
    deployment.produce([(home, b"u1", msgspec.json.encode(good))])
    worker().start()
    wait_until(lambda: len(written(deployment).rows.get("u1", [])) == 1, 60, "the record behind it", 0.3)
    [[letter]] = deployment.read(deployment.topics.dead_letters).values()
    return letter


@pytest.mark.parametrize("num_spare_bytes", [0, 1])
def test_a_bad_record_as_large_as_the_topic_takes_is_a_dead_letter_in_full(
    deployment: Deployment, worker: Make, num_spare_bytes: int
) -> None:
    # The broker counts the batch: 61 bytes, and 11 around a value of this size.
    value = b"x" * (deployment.kafka.max_message_bytes - 72 - num_spare_bytes)
    deployment.create_topics()
    if deployment.broker.kind == "apache":
        with pytest.raises(MessageSizeTooLargeError):
            deployment.produce([(0, None, value + b"x" * (1 + num_spare_bytes))])
    letter = letter_of(value, deployment, worker)
    assert letter.value == value
    assert "cut" not in dict(letter.headers)


@pytest.mark.parametrize(("num_bytes", "compression"), [(2_000_000, "none"), (9_000_000, "none"), (9_000_000, "zstd")])
def test_a_bad_record_too_large_for_the_dead_letters_is_cut(
    deployment: Deployment, worker: Make, num_bytes: int, compression: str
) -> None:
    deployment.environment["HEADRACE_KAFKA__COMPRESSION"] = compression
    value = b"x" * num_bytes  # more than the dead letters' topic takes; more than the client sends
    letter = letter_of(value, deployment, worker, compression="gzip")
    assert value.startswith(letter.value)
    assert len(letter.value) == 500_000
    assert dict(letter.headers)["cut"] == str(num_bytes).encode()


def test_a_bad_record_that_is_small_compressed_is_a_dead_letter_in_full(deployment: Deployment, worker: Make) -> None:
    value = b"x" * 2_000_000
    assert letter_of(value, deployment, worker, compression="gzip").value == value


def test_a_bad_element_of_a_list_does_not_take_the_others_along(deployment: Deployment, worker: Make) -> None:
    home = partition_of(b"u1", deployment.partitions)
    good = [{"user": "u1", "item": number, "action": "click", "timestamp": START_MS + number} for number in range(3)]
    value = msgspec.json.encode([good[0], {"user": "u1"}, good[1], 5, good[2]])
    deployment.produce([(home, b"u1", value)])
    worker().start()
    wait_until(lambda: len(written(deployment).rows.get("u1", [])) == 3, 60, "the good elements", 0.3)
    assert sorted(written(deployment).dead) == [(home, 0, 1), (home, 0, 3)]
    check(deployment, 5)


def test_an_action_is_emitted_before_its_join_window_is_over_and_its_feedback_later(
    deployment: Deployment, worker: Make
) -> None:
    deployment.environment["HEADRACE_SEQUENCE__JOIN_WINDOW_S"] = "100000"
    home = partition_of(b"u1", deployment.partitions)
    action = {"user": "u1", "item": 1, "action": "impression", "timestamp": START_MS}
    worker().start()
    for kind, told in (("impression", 0b001), ("click", 0b011), ("like", 0b111)):
        deployment.produce([(home, b"u1", msgspec.json.encode({**action, "action": kind}))])
        wait_until(lambda told=told: written(deployment).told.get("u1") == [told], 60, f"a {kind} to be told", 0.1)


def test_sequences_of_another_context_are_one_line_and_a_status(deployment: Deployment, worker: Make) -> None:
    action = {"user": "u1", "item": 1, "action": "click", "timestamp": START_MS}
    home = partition_of(b"u1", deployment.partitions)
    values = [msgspec.json.encode({**action, "item": item}) for item in range(40)]
    deployment.produce([(home, b"u1", value) for value in values])
    first = worker("first").start()
    wait_until(lambda: is_idle(deployment), 60, "the worker to finish", 0.3)
    first.stop()
    deployment.environment["HEADRACE_SEQUENCE__MAX_CONTEXT"] = "12"
    second = worker("second").start()
    assert second.process.wait(60) == 1
    line = second.log().splitlines()[-1]
    # By the fence in one partition, by the first example's key in the other: whichever is read first.
    assert re.search(r"sequence\.max_context.*restore that.*, or use a new kafka\.prefix", line), line


def test_sequences_of_other_kinds_are_one_line_on_a_new_disk_too(deployment: Deployment, worker: Make) -> None:
    first = worker("first").start()
    first.wait_for("partition claimed", times=2)
    first.stop()
    deployment.environment["HEADRACE_ACTION__KINDS"] = "click,impression,like,share,hide"
    second = worker("second").start()
    assert second.process.wait(60) == 1
    line = second.log().splitlines()[-1]
    assert "action.kinds: expected ('click', 'impression'" in line, line
    assert "restore that (kinds may only be appended), or use a new kafka.prefix" in line


def test_a_worker_waits_for_a_broker_that_is_not_there_and_says_so(deployment: Deployment, worker: Make) -> None:
    import httpx

    deployment.environment["HEADRACE_KAFKA__BOOTSTRAP"] = f"127.0.0.1:{free_port()}"
    deployment.environment["HEADRACE_STREAM__METRICS_PORT"] = str(port := free_port())
    process = worker().start()
    process.wait_for("broker away, trying again")
    [line] = process.log().splitlines()
    assert "nothing accepts connections there" in line
    assert "kafka.bootstrap" in line
    assert "headrace_worker_broker_silence_seconds" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    process.process.send_signal(signal.SIGINT)
    assert process.process.wait(10) == 0, "it ends without the broker"
    assert not process.store_path.exists()


def test_an_error_that_is_found_while_the_broker_is_away_ends_the_worker(tmp_path: Path) -> None:
    kafka = KafkaConfig(bootstrap=f"127.0.0.1:{free_port()}")
    worker = Worker(Settings(kafka=kafka, stream=StreamConfig(metrics_port=0), store=StoreConfig(path=tmp_path)))

    async def run() -> None:
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.5)
        worker.fail(HeadraceError("the topic has been replaced"))
        await running

    with pytest.raises(HeadraceError, match="the topic has been replaced"):
        asyncio.run(run())


def test_topics_of_another_shape_are_one_line_and_a_status(deployment: Deployment, worker: Make) -> None:
    deployment.environment["HEADRACE_KAFKA__PARTITIONS"] = "3"
    process = worker().start()
    assert process.process.wait(60) == 1
    assert process.log().splitlines()[-1].startswith("headrace worker: topic ")


def test_a_taken_metrics_port_is_one_line_and_a_status(deployment: Deployment, worker: Make) -> None:
    port = int(deployment.broker.bootstrap.rsplit(":", 1)[1])
    deployment.environment["HEADRACE_STREAM__METRICS_PORT"] = str(port)
    deployment.environment["HEADRACE_STREAM__METRICS_HOST"] = "127.0.0.1"
    process = worker().start()
    assert process.process.wait(60) == 1
    assert (
        process.log()
        .splitlines()[-1]
        .startswith(f"headrace worker: stream.metrics_port: expected to listen on 127.0.0.1:{port}, got: ")
    )


def test_refusals_are_counted_by_reason_and_warned_about_once(deployment: Deployment, worker: Make) -> None:
    import httpx

    port = free_port()
    deployment.environment["HEADRACE_STREAM__METRICS_PORT"] = str(port)
    home = partition_of(b"u1", deployment.partitions)
    seconds = {"user": "u1", "item": 1, "action": "click", "timestamp": START_MS // 1000}
    deployment.produce([(home, b"u1", msgspec.json.encode(seconds))] * 30 + [(home, b"u1", b"{")])
    process = worker().start()

    def counted() -> bool:
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("headrace_worker_dead_letters_total")]
        return sorted(found) == [
            'headrace_worker_dead_letters_total{reason="bad_time"} 30.0',
            'headrace_worker_dead_letters_total{reason="malformed"} 1.0',
        ]

    process.wait_for("actions are refused")
    wait_until(counted, 60, "both reasons in the metrics")
    warnings = [line for line in process.log().splitlines() if "actions are refused" in line]
    assert len(warnings) == 2, "one for each reason"
    assert any("looks like seconds; multiply by 1000" in line for line in warnings)


def test_metrics_are_served(deployment: Deployment, worker: Make) -> None:
    import httpx

    port = free_port()
    deployment.environment["HEADRACE_STREAM__METRICS_PORT"] = str(port)
    worker().start().wait_for("partition claimed", times=2)

    def scraped(line: str) -> bool:
        return line in httpx.get(f"http://127.0.0.1:{port}/metrics").text

    wait_until(lambda: scraped('headrace_worker_applied_offset{partition="0"} -1.0'), 60, "the partition's metrics")
    assert scraped("headrace_worker_records_total 0.0")


def test_a_full_disk_is_one_line_and_a_status_and_nothing_is_half_written(deployment: Deployment, worker: Make) -> None:
    actions = list(islice(world(), 6_000))
    send_actions(actions, deployment.kafka, batch=BatchConfig(max_actions=40))
    process = worker()
    process.prefix = ["prlimit", "--fsize=150000", "--"]
    process.start()
    assert process.process.wait(60) == 1
    last = process.log().splitlines()[-1]
    assert last.startswith("headrace worker: ")
    assert str(process.store_path) in last
    process.prefix = []
    process.start()
    wait_until(lambda: is_idle(deployment), 60, "the worker to finish, with room again", 0.3)
    check(deployment, len(actions))


def test_a_second_worker_on_the_same_disk_is_refused(deployment: Deployment, worker: Make) -> None:
    worker("a").start().wait_for("partition claimed", times=2)
    second = worker("b")
    second.folder.joinpath("headrace.toml").write_text(deployment.toml(deployment.folder / "a" / "state"))
    second.start()
    assert second.process.wait(60) == 1
    assert second.log().splitlines()[-1].endswith("another worker holds it; stop that one")


def test_a_worker_on_a_copy_of_anothers_disk_says_so_and_the_first_continues(
    deployment: Deployment, worker: Make
) -> None:
    """As a cloned machine has it: the same name, and a disk that says it is the same one."""
    first = worker("w").start()
    first.wait_for("partition claimed", times=2)
    wait_until(lambda: bool(last_statuses(deployment)), 60, "the first to report", 0.2)
    second = WorkerProcess(deployment, "w", deployment.factory, folder="elsewhere")
    shutil.copytree(first.store_path, second.store_path)
    second.start()
    try:
        assert second.process.wait(60) == 1
    finally:
        second.end()
    line = second.log().splitlines()[-1]
    assert line.startswith("headrace worker: stream.component 'w': expected a unique name, but another worker"), line
    assert "from a copy of this disk" in line
    home = partition_of(b"u1", deployment.partitions)
    action = {"user": "u1", "item": 1, "action": "click", "timestamp": START_MS}
    deployment.produce([(home, b"u1", msgspec.json.encode(action))])
    wait_until(lambda: len(written(deployment).rows.get("u1", [])) == 1, 60, "the first to go on", 0.3)
    num_assigned = first.log().count("partitions assigned")
    time.sleep(2.0)
    assert first.log().count("partitions assigned") == num_assigned, "it keeps them"
    first.kill()
    first.start()  # the process before it on this disk is none to wait for, or to give way to
    time.sleep(5.0)
    assert first.process.poll() is None, first.log()[-2000:]
    first.stop()
    both = first, second
    for each in both:
        each.start()
    try:
        wait_until(lambda: any(each.process.poll() is not None for each in both), 60, "one of two to end", 0.2)
        time.sleep(5.0)
        assert sorted(each.process.poll() is None for each in both) == [False, True], "the other one stays"
    finally:
        second.end()


def test_a_second_worker_of_the_same_name_says_so_and_the_first_continues(deployment: Deployment, worker: Make) -> None:
    deployment.stream = replace(deployment.stream, session_timeout_s=30.0)  # so that it loses none by being slow
    first = worker("w").start()
    first.wait_for("partition claimed", times=2)
    wait_until(lambda: bool(last_statuses(deployment)), 60, "the first to report", 0.2)
    second = WorkerProcess(deployment, "w", deployment.factory, folder="elsewhere")
    second.start()
    try:
        assert second.process.wait(60) == 1
    finally:
        second.end()
    line = second.log().splitlines()[-1]
    assert line.startswith(
        "headrace worker: stream.component 'w': expected a unique name, but a worker on another disk reports"
    ), line
    assert "or stop that one" in line
    home = partition_of(b"u1", deployment.partitions)
    action = {"user": "u1", "item": 1, "action": "click", "timestamp": START_MS}
    deployment.produce([(home, b"u1", msgspec.json.encode(action))])
    wait_until(lambda: len(written(deployment).rows.get("u1", [])) == 1, 60, "the first to go on", 0.3)
    assert first.log().count("partitions assigned") == 1, "it never lost them"
    first.kill()
    second.start().wait_for("partition claimed", times=2)  # the first is gone: the name is free, on another disk too
    second.stop()


def test_the_worker_takes_committed_actions_of_transactions_and_has_no_backlog_then(
    deployment: Deployment, worker: Make
) -> None:
    if deployment.broker.kind != "apache":
        pytest.skip("transactions are tried on real Apache Kafka")
    actions = list(islice(world(), 400))
    write_in_transactions(deployment, actions)
    process = worker().start()
    wait_until(lambda: applied(deployment) == deployment.ends(deployment.topics.actions), 60, "no backlog", 0.3)
    [status] = last_statuses(deployment).values()
    assert sum(part.num_accepted + part.num_duplicate for part in status.partitions.values()) == len(actions)
    assert not written(deployment).dead, "an aborted record was taken"
    write_in_transactions(deployment, [{**action, "timestamp": action["timestamp"] + 1} for action in actions[:50]])
    wait_until(lambda: applied(deployment) == deployment.ends(deployment.topics.actions), 60, "the new ones", 0.3)
    assert process.stop() == 0
    assert "Traceback" not in process.log()


def write_in_transactions(deployment: Deployment, actions: list[dict[str, Any]]) -> None:
    """Twenty per transaction; after each committed one, an aborted one with garbage."""

    async def write() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=deployment.broker.bootstrap, transactional_id=deployment.prefix)
        await producer.start()
        for first in range(0, len(actions), 20):
            async with producer.transaction():
                for action in actions[first : first + 20]:
                    key = str(action["user"]).encode()
                    number = partition_of(key, deployment.partitions)
                    await producer.send(deployment.topics.actions, msgspec.json.encode(action), key, number)
            await producer.begin_transaction()
            for number in range(deployment.partitions):
                await producer.send(deployment.topics.actions, b"garbage", partition=number)
            await producer.abort_transaction()
        await producer.stop()

    asyncio.run(write())


def applied(deployment: Deployment) -> dict[int, int]:
    """Partition → the offset after the last that the worker reports as applied."""
    statuses = last_statuses(deployment).values()
    return {number: part.applied_offset + 1 for status in statuses for number, part in status.partitions.items()}


def test_the_worker_takes_actions_however_they_are_compressed(deployment: Deployment, worker: Make) -> None:
    worker().start()
    codecs = [codec for codec in COMPRESSIONS if codec != "none"]
    for index, codec in enumerate(codecs):
        action = {"user": "u1", "item": codec, "action": "click", "timestamp": START_MS + index * 60_000, "more": LONG}
        record = (partition_of(b"u1", deployment.partitions), b"u1", msgspec.json.encode(action))
        deployment.produce([record], codec)
    wait_until(lambda: len(written(deployment).rows.get("u1", [])) == len(codecs), 60, "one action of each", 0.3)


def test_a_codec_that_is_not_installed_is_one_line_and_a_status(deployment: Deployment, worker: Make) -> None:
    deployment.environment["BROKEN"] = "without_snappy"
    process = worker()
    process.module = "tests.stream.broken"
    action = {"user": "u1", "item": 1, "action": "click", "timestamp": START_MS, "more": LONG}
    record = (partition_of(b"u1", deployment.partitions), b"u1", msgspec.json.encode(action))
    deployment.produce([record], "snappy")
    process.start()
    assert process.process.wait(60) == 1
    last = process.log().splitlines()[-1]
    said = f"headrace worker: Kafka at {deployment.broker.bootstrap}: UnsupportedCodecError when reading: "
    assert last.startswith(said), last
    assert "install the packages cramjam" in last


def test_a_worker_that_nobody_would_hear_of_ends(deployment: Deployment, worker: Make) -> None:
    deployment.environment["BROKEN"] = "loses_its_beat"
    process = worker()
    process.module = "tests.stream.broken"
    process.start()
    assert process.process.wait(60) not in (None, 0)
    assert "a task of the worker failed" in process.log()


@pytest.mark.parametrize("broken", ["is_refused_by_its_group_once", "hears_nothing_of_its_group_once"])
def test_a_worker_that_does_not_get_into_its_group_tries_again(
    deployment: Deployment, worker: Make, broken: str
) -> None:
    deployment.stream = replace(deployment.stream, stop_timeout_s=1.0)
    deployment.environment["BROKEN"] = broken
    process = worker()
    process.module = "tests.stream.broken"
    process.start().wait_for("partition claimed", times=deployment.partitions)
    assert process.log().count("faust stopped by itself and will be restarted") == 1
    assert process.stop() == 0


def test_a_worker_whose_broker_did_not_know_the_partitions_yet_gets_them(deployment: Deployment, worker: Make) -> None:
    deployment.environment["BROKEN"] = "is_told_of_no_partitions_once"
    process = worker()
    process.module = "tests.stream.broken"
    process.start().wait_for("partition claimed", times=deployment.partitions)
    assert process.stop() == 0


def test_records_that_an_open_transaction_holds_back_are_no_backlog_and_are_told(
    deployment: Deployment, worker: Make
) -> None:
    if deployment.broker.kind != "apache":
        pytest.skip("transactions are tried on real Apache Kafka")
    deployment.environment["BROKEN"] = "tells_soon_of_transactions"
    process = worker()
    process.module = "tests.stream.broken"
    process.start().wait_for("partition claimed", times=deployment.partitions)
    home = partition_of(b"u1", deployment.partitions)
    action = {"user": "u1", "item": 1, "action": "click", "timestamp": START_MS}

    async def hang() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=deployment.broker.bootstrap, transactional_id=deployment.prefix)
        await producer.start()
        await producer.begin_transaction()
        await producer.send_and_wait(deployment.topics.actions, msgspec.json.encode(action), b"u1", home)
        deployment.produce([(home, b"u1", msgspec.json.encode({**action, "item": 2}))])
        await asyncio.to_thread(process.wait_for, "an open transaction holds back all records after it")
        await producer.commit_transaction()
        await producer.stop()

    asyncio.run(hang())
    wait_until(lambda: len(written(deployment).rows.get("u1", [])) == 2, 60, "both to be applied", 0.3)
