"""Topics that change under a worker, or while none runs: one line and a status, nothing ignored silently."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import InvalidTimestampError, KafkaError

from headrace.doctor import beginnings
from state.errors import StoreMismatch
from state.store import Record
from stream.claim import ACTIONS_ID, Claim, Headers, TopicIds, WriteFence, claim, open_store
from stream.kafka_producer import Producer
from stream.metrics import WorkerMetrics
from stream.relay import OutboxRelay
from tests.brokers import wait_until
from tests.stream.audit import is_idle, last_statuses, written
from tests.stream.workers import Deployment, WorkerProcess
from wire.errors import TopicReplaced, TopicsMismatch
from wire.example import fence
from wire.example_codec import LAYOUT, MAGIC, MAX_NUMBER, encode_example
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect
from wire.kafka.identity import identities
from wire.partitioner import partition_of
from wire.topics import FORGOTTEN_KEY, ITEM_KEY, fence_key

START_MS = 1_700_000_000_000
Make = Callable[..., WorkerProcess]
START_OVER = "Start over under another kafka.prefix"


@pytest.fixture
def admin(deployment: Deployment) -> KafkaAdminClient:
    if deployment.broker.kind != "apache":
        pytest.skip("topics are changed on real Apache Kafka (java 17+ and mvn)")
    client = KafkaAdminClient(bootstrap_servers=deployment.broker.bootstrap)
    yield client
    client.close()


def produce(deployment: Deployment, num: int, first: int = 0) -> int:
    """Send this many clicks of one user; returns their partition."""
    home = partition_of(b"u1", deployment.partitions)
    clicks = [
        {"user": "u1", "item": item, "action": "click", "timestamp": START_MS + item}
        for item in range(first, first + num)
    ]
    deployment.produce([(home, b"u1", msgspec.json.encode(click)) for click in clicks])
    return home


def work_off(deployment: Deployment, process: WorkerProcess) -> None:
    """Let the worker finish, and stop it."""
    process.start()
    wait_until(lambda: is_idle(deployment), 60, "the worker to finish", 0.3)
    process.stop()


def make_again(deployment: Deployment, admin: KafkaAdminClient, topic: str) -> None:
    """Delete the topic and create it with its settings."""
    admin.delete_topics([topic])
    wait_until(lambda: topic not in admin.list_topics(), 60, "the topic to be gone")
    ensure_topics(deployment.kafka)


def last_line(process: WorkerProcess) -> str:
    """The last line of a worker that ends by itself."""
    assert process.process.wait(60) == 1, process.log()[-2000:]
    assert "Traceback" not in process.log()
    return process.log().splitlines()[-1]


def test_partitions_that_are_added_while_it_runs_end_the_worker(
    deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    process = worker().start()
    process.wait_for("partition claimed", times=2)
    admin.create_partitions({deployment.topics.actions: 4})
    assert (
        f"topic {deployment.topics.actions}: expected 2 partitions, the broker has 4: some were added; Kafka cannot"
        in last_line(process)
    )
    again = last_line(process.start())
    assert "some were added" in again
    assert "set kafka.partitions" not in again


@pytest.mark.parametrize("loses_disk", [False, True])
def test_a_number_of_partitions_that_is_changed_everywhere_splits_no_user(
    loses_disk: bool, deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    """Half of the users would begin anew in another partition, beside their sequences in the old one."""
    process = worker()
    produce(deployment, 20)
    work_off(deployment, process)
    admin.create_partitions({deployment.topics.actions: 4, deployment.topics.sequences: 4})
    assert "set kafka.partitions = 4 if the deployment was created with that many" in last_line(process.start())
    config = process.folder / "headrace.toml"
    config.write_text(config.read_text().replace("partitions = 2", "partitions = 4"))
    if loses_disk:
        process.wipe()
    wanted = "kafka.partitions (which only headrace repartition changes): expected 4, got examples of a worker with 2"
    assert (wanted if loses_disk else "expected num_partitions 2") in last_line(process.start())


def test_a_worker_works_off_the_partitions_of_a_topic_that_was_given_more_if_it_is_told_to(
    deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    process = worker()
    home = produce(deployment, 20)
    work_off(deployment, process)
    admin.create_partitions({deployment.topics.actions: 4})
    produce(deployment, 5, first=20)
    deployment.produce([(3, b"u9", b'{"user": "u9", "item": 1, "action": "click", "timestamp": 1700000000000}')])
    process.start("--despite-added-partitions")
    wait_until(lambda: is_idle(deployment), 60, "the worker to finish", 0.3)
    assert process.stop() == 0
    assert len(written(deployment).rows["u1"]) == 25
    assert set(written(deployment).rows) == {"u1"}
    assert set(next(iter(last_statuses(deployment).values())).partitions) == {home, 1 - home}


def test_an_actions_topic_that_is_recreated_while_it_runs_ends_the_worker(
    deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    process = worker().start()
    home = produce(deployment, 20)
    wait_until(lambda: is_idle(deployment), 60, "the worker to finish", 0.3)
    make_again(deployment, admin, deployment.topics.actions)
    line = last_line(process)
    assert line.startswith(f"headrace worker: topic {deployment.topics.actions}: expected the one with id "), line
    assert f"{home} to 19" in line
    assert "it was deleted and created again" in line
    assert START_OVER in line


@pytest.mark.parametrize("loses_disk", [False, True])
def test_an_actions_topic_that_was_recreated_while_none_ran_is_not_taken_for_the_old_one(
    loses_disk: bool, deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    process = worker()
    produce(deployment, 20)
    work_off(deployment, process)
    make_again(deployment, admin, deployment.topics.actions)
    produce(deployment, 30, first=100)  # beyond what was applied: only the topic's id shows it
    if loses_disk:
        process.wipe()
    line = last_line(process.start())
    assert f"topic {deployment.topics.actions}: expected the one with id " in line
    assert START_OVER in line


def test_an_actions_topic_that_ends_before_what_was_applied_is_refused(
    deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    deployment.environment["BROKEN"] = "knows_no_topic_ids"
    process = worker()
    process.module = "tests.stream.broken"
    home = produce(deployment, 20)
    work_off(deployment, process)
    make_again(deployment, admin, deployment.topics.actions)
    line = last_line(process.start())
    assert f"expected it to reach beyond partition {home}, applied up to offset 19, but it ends at 0:" in line
    assert START_OVER in line


def test_a_recreated_sequences_topic_is_reported_and_rebuilt_from_the_actions_once_the_disk_is_removed(
    deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    process = worker()
    produce(deployment, 20)
    work_off(deployment, process)
    before = written(deployment).rows
    make_again(deployment, admin, deployment.topics.sequences)
    line = last_line(process.start())
    assert f"topic {deployment.topics.sequences}: expected the one with id " in line
    assert f"remove {process.store_path}: sequences are then rebuilt from the actions" in line
    process.wipe()
    process.start()
    wait_until(lambda: written(deployment).rows == before, 60, "the same sequences", 0.3)


@pytest.mark.parametrize("which", ["actions", "dead_letters"])
def test_a_topic_that_is_deleted_ends_the_worker(
    which: str, deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    topic = getattr(deployment.topics, which)
    process = worker().start()
    process.wait_for("partition claimed", times=2)
    admin.delete_topics([topic])
    assert f"topic {topic}: expected it to exist still, with " in last_line(process)


@pytest.mark.parametrize(
    ("which", "policy", "words"),
    [
        ("actions", "compact", "compaction keeps only the last action of each user"),
        ("actions", "compact,delete", "compaction keeps only the last action of each user"),
        ("dead_letters", "compact", "compaction keeps only one refused action"),
        ("sequences", "delete", "retention removes the segments from which a worker's disk is restored"),
        ("weights", "compact", "compaction keeps only the last chunk"),
        ("control", "delete", "retention removes the version that is pinned"),
    ],
)
def test_a_topic_that_removes_what_is_needed_is_refused(
    which: str, policy: str, words: str, deployment: Deployment, admin: KafkaAdminClient
) -> None:
    topic = getattr(deployment.topics, which)
    change(admin, topic, "cleanup.policy", policy)
    with pytest.raises(TopicsMismatch) as refused:
        ensure_topics(deployment.kafka)
    assert f"topic {topic}: expected cleanup.policy = " in str(refused.value)
    assert f"the broker has {policy}: {words}" in str(refused.value)
    assert "--add-config cleanup.policy=" in str(refused.value)


def test_a_policy_that_changes_under_a_worker_ends_it(
    deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    process = worker().start()
    process.wait_for("partition claimed", times=2)
    change(admin, deployment.topics.actions, "cleanup.policy", "compact")
    assert f"topic {deployment.topics.actions}: expected cleanup.policy = delete, the broker has" in last_line(process)


def test_other_settings_and_other_policies_of_reports_are_only_warned_of(
    deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    change(admin, deployment.topics.status, "cleanup.policy", "delete")
    process = worker().start()
    process.wait_for("a topic's settings differ from the configuration")
    process.wait_for("partition claimed", times=2)


def test_records_with_their_producers_times_are_told_once(
    deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    change(admin, deployment.topics.actions, "message.timestamp.type", "CreateTime")
    process = worker().start()
    for first in (0, 10):
        produce(deployment, 10, first=first)
        wait_until(lambda: is_idle(deployment), 60, "the worker to finish", 0.3)
    process.stop()
    assert process.log().count("records have their producers' times, not the broker's") == 1


def test_a_producers_time_a_year_ahead_is_refused_by_the_broker(
    deployment: Deployment, admin: KafkaAdminClient
) -> None:
    """Nothing else guards a topic with producers' times: the worker only warns."""
    change(admin, deployment.topics.actions, "message.timestamp.type", "CreateTime")
    producer = KafkaProducer(bootstrap_servers=deployment.broker.bootstrap)
    now_ms = time.time_ns() // 1_000_000
    producer.send(deployment.topics.actions, b"{}", partition=0, timestamp_ms=now_ms).get(20)
    with pytest.raises(InvalidTimestampError):
        producer.send(deployment.topics.actions, b"{}", partition=0, timestamp_ms=now_ms + 365 * 86_400_000).get(20)
    producer.close()


def change(admin: KafkaAdminClient, topic: str, setting: str, value: str) -> None:
    """Change a setting of a topic."""
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {setting: value})])


def test_actions_that_retention_removes_before_they_are_read_are_counted_and_reported(
    deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    process = worker()
    produce(deployment, 20)
    work_off(deployment, process)
    home = produce(deployment, 20, first=20)
    admin.delete_records({TopicPartition(deployment.topics.actions, home): 33})
    process.start()
    wait_until(lambda: is_idle(deployment), 60, "the worker to finish", 0.3)
    assert len(written(deployment).rows["u1"]) == 27
    [line] = [line for line in process.log().splitlines() if "actions were lost" in line]
    for words in (deployment.topics.actions, "[20, 32]", '"num_records": 13', "kafka.actions_retention_s"):
        assert words in line, line
    [status] = last_statuses(deployment).values()
    assert status.partitions[home].num_gone == 13


def test_a_disk_is_not_restored_from_a_topic_that_has_lost_its_start(
    deployment: Deployment, admin: KafkaAdminClient, worker: Make
) -> None:
    """Users would begin anew at their first segment, beside what readers know of them."""
    process = worker()
    home = produce(deployment, 20)
    work_off(deployment, process)
    change(admin, deployment.topics.sequences, "cleanup.policy", "delete")
    admin.delete_records({TopicPartition(deployment.topics.sequences, home): 3})
    change(admin, deployment.topics.sequences, "cleanup.policy", "compact")
    process.start()  # its own disk has everything
    process.wait_for("partition claimed", times=4)
    process.stop()
    process.wipe()
    line = last_line(process.start())
    assert f"but partition {home} begins at 3, not 0: a cleanup.policy with delete, or kafka-delete-records" in line
    consumer = connect(deployment.kafka)
    [told] = beginnings(deployment, consumer)  # type: ignore[arg-type]
    consumer.close()
    assert told.state == "problem"
    assert "begins at 3" in told.words


def test_foreign_records_among_the_sequences_are_skipped_and_logged(deployment: Deployment, worker: Make) -> None:
    process = worker()
    home = produce(deployment, 5)
    work_off(deployment, process)
    foreign = [b"7 bytes", b"", None, b"HRE", MAGIC + bytes([LAYOUT]) + bytes(47), b"\xff" * 100]
    places = (b"", b"0", b"-1", b"-2", b"-3", b"9" * 30, b".0", b".-5", b"." + b"9" * 30, b"x")
    keys = [user + b"\0" + place for user in (b"u1", b"nobody", b"\xff", b"") for place in places]
    with KafkaProducer(bootstrap_servers=deployment.broker.bootstrap) as producer:
        for value in foreign:
            producer.send(deployment.topics.sequences, value, key=b"x", partition=home)
        for key in (*keys, FORGOTTEN_KEY, ITEM_KEY, ITEM_KEY + b"9" * 30, ITEM_KEY + b"-1"):
            producer.send(deployment.topics.sequences, None, key=key, partition=home)
    produce(deployment, 5, first=5)
    process.start()
    wait_until(lambda: is_idle(deployment), 60, "the worker to finish", 0.3)
    process.stop()
    told = [line for line in process.log().splitlines() if "skipped a foreign record" in line]
    assert len(told) == 5, "each but the tombstone, once"
    assert all(deployment.topics.sequences in line for line in told)
    process.wipe()
    process.start().wait_for("partition claimed", times=6)
    assert process.log().count("skipped a foreign record") == 10


# A broker whose data was restored from an older copy has the same topics, by their ids too. Claims in this process:


@contextmanager
def fences(deployment: Deployment) -> Iterator[WriteFence]:
    """Writes fences as a worker does."""
    with KafkaProducer(bootstrap_servers=deployment.broker.bootstrap) as producer:

        def write(partition: int, key: bytes, value: bytes, headers: Headers) -> int:
            where = (deployment.topics.sequences, value, key, list(headers), partition)
            return int(producer.send(*where).get(60).offset)

        yield write


def take(deployment: Deployment, number: int, write_fence: WriteFence) -> Claim:
    """Claim a partition, as one who starts."""
    names = deployment.topics.actions, deployment.topics.sequences
    known = identities(deployment.kafka, names)
    ids = TopicIds(*(known[name].id for name in names))
    return claim(deployment, number, None, ids, write_fence, threading.Event())


def records_of(deployment: Deployment, number: int) -> list[Record]:
    """All that is in a partition of the actions topic."""
    held = deployment.read(deployment.topics.actions)[number]
    return [(each.offset, each.timestamp, each.key, each.value) for each in held]


@pytest.mark.usefixtures("admin")
def test_another_record_at_the_offset_that_was_applied_last_is_refused(deployment: Deployment) -> None:
    home = produce(deployment, 3)
    with fences(deployment) as write:
        claimed = take(deployment, home, write)
        claimed.store.apply(records_of(deployment, home))
        claimed.store.close()
        take(deployment, home, write).store.close()
        store = open_store(deployment, home)
        store.apply([(3, START_MS, b"u1", b"{}")])
        store.close()
        with pytest.raises(TopicReplaced, match="applied up to offset 3, but it ends at 3: records were lost"):
            take(deployment, home, write)
        deployment.produce([(home, b"u1", b"{}")])
        with pytest.raises(
            TopicReplaced, match="applied up to offset 3, but another record is there: records were lost"
        ):
            take(deployment, home, write)


def test_a_fence_of_which_the_broker_does_not_say_where_it_is_counts_and_the_next_claim_is_above_it(
    deployment: Deployment,
) -> None:
    with fences(deployment) as write:

        def untold(*fence: int | bytes | Headers) -> int:
            write(*fence)  # type: ignore[arg-type]
            return -1

        with pytest.raises(KafkaError, match="did not say where"):
            take(deployment, 0, untold)
        claimed = take(deployment, 0, write)
    assert claimed.log.writer_epoch == 2
    claimed.store.close()


def test_a_fence_above_which_there_is_none_and_one_of_no_topic_are_refused(deployment: Deployment) -> None:
    with fences(deployment) as write:
        write(0, fence_key(MAX_NUMBER), encode_example(fence(0, MAX_NUMBER)), [])
        with pytest.raises(StoreMismatch, match=f"expected writer epochs below {MAX_NUMBER}"):
            take(deployment, 0, write)
        write(1, fence_key(1), encode_example(fence(1, 1)), [(ACTIONS_ID, b"\xff")])
        with pytest.raises(TopicReplaced):
            take(deployment, 1, write)


@pytest.mark.usefixtures("admin")
def test_sequences_that_the_broker_puts_where_others_were_end_the_worker(deployment: Deployment) -> None:
    home = produce(deployment, 30)

    async def relay(claimed: Claim) -> None:
        producer, metrics = Producer(deployment.kafka), WorkerMetrics(deployment.folder)
        beyond = claimed.position + 100
        relayed = OutboxRelay(claimed.store, producer, deployment.kafka, metrics, beyond, claimed.log, "What to do.")
        try:
            await producer.start()
            await asyncio.wait_for(relayed.run(), 60)
        finally:
            await producer.stop()

    with fences(deployment) as write:
        claimed = take(deployment, home, write)
        claimed.store.apply(records_of(deployment, home))
        with pytest.raises(TopicReplaced, match=r"but the broker put them at 1: records were lost\. What to do\."):
            asyncio.run(relay(claimed))
        claimed.store.close()
