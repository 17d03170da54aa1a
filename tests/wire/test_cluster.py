"""One rule says which report of a partition is the newest: the writer epoch, then the topic's order."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.foreign import FOREIGN
from wire.cluster import ClusterState
from wire.status import PartitionStatus, ServerStatus, TrainerStatus, WorkerStatus, encode_status, key_of, keys_of


def worker(component: str, time_ms: int, partition: int, epoch: int, applied: int) -> bytes:
    partitions = {partition: PartitionStatus(writer_epoch=epoch, applied_offset=applied)}
    return encode_status(WorkerStatus(component=component, time_ms=time_ms, partitions=partitions))


def test_a_partitions_old_owner_is_not_believed_however_late_its_report_arrives() -> None:
    reports = [
        worker("old", 1000, 0, epoch=3, applied=10),
        worker("old", 9000, 0, epoch=3, applied=11),
        worker("new", 5000, 0, epoch=4, applied=12),
        worker("new", 5001, 0, epoch=4, applied=13),
        worker("new", 5002, 1, epoch=1, applied=7),
    ]
    for seed in range(10):
        cluster = ClusterState()
        for report in interleaved(random.Random(seed), reports[:2], reports[2:4], reports[4:]):
            cluster.note(report)
        assert {number: each.applied_offset for number, each in cluster.workers.items()} == {0: 13, 1: 7}
        assert cluster.worker_ms == 5002


def interleaved(chance: random.Random, *logs: list[bytes]) -> Iterator[bytes]:
    """The reports of several processes in one topic: each in order, interleaved in any way."""
    waiting = [list(log) for log in logs]
    while any(waiting):
        yield chance.choice([log for log in waiting if log]).pop(0)


def test_a_silent_worker_gives_way_to_a_live_one_whose_epochs_began_anew() -> None:
    """As after the sequences topic was lost and made anew."""
    cluster = ClusterState()
    cluster.note(worker("dead", 1_000, 0, epoch=7, applied=100))
    cluster.hear(worker("live", 0, 0, epoch=1, applied=5), 10_000)
    assert cluster.worker_of[0].component == "dead", "it may still be there"
    cluster.hear(worker("live", 0, 0, epoch=1, applied=6), 11_000)
    assert (cluster.worker_of[0].component, cluster.workers[0].applied_offset) == ("live", 6)
    assert cluster.worker_silent_s(0, 12_000) == 1.0
    cluster.hear(worker("live", 0, 0, epoch=2, applied=7), 13_000)
    cluster.hear(worker("old", 0, 0, epoch=1, applied=9), 14_000)
    assert cluster.worker_of[0].component == "live", "the old owner of a partition that has moved"
    assert cluster.forget_silent(1_000 + HOUR_MS) == [("worker", "dead")]


def server(component: str, time_ms: int, number: int) -> bytes:
    return encode_status(ServerStatus(component=component, time_ms=time_ms, epoch=0, number=number))


def test_a_servers_newest_report_counts_and_a_silent_server_is_gone() -> None:
    cluster = ClusterState()
    for report in (server("a", 19_000, 4), server("a", 20_000, 5), server("b", 1000, 9)):
        cluster.note(report)
    assert [(each.component, each.number) for each in cluster.live_servers(21_000)] == [("a", 5)]


def test_what_has_been_silent_for_an_hour_is_forgotten_but_for_the_last_word_on_a_partition() -> None:
    cluster = ClusterState(line="")
    for report in (
        worker("moved-away", 1000, 0, epoch=3, applied=10), worker("present", 2000, 0, epoch=4, applied=12),
        worker("alone", 1000, 1, epoch=1, applied=7), server("gone", 1000, 5), server("here", 3000, 6),
        encode_status(ServerStatus(component="elsewhere", time_ms=1000, line="beside")),
    ):  # fmt: skip
        cluster.note(report)
    assert cluster.forget_silent(1000 + HOUR_MS - 1) == []
    assert sorted(cluster.forget_silent(1000 + HOUR_MS)) == [
        ("server", "elsewhere"), ("server", "gone"), ("worker", "moved-away"),
    ]  # fmt: skip
    assert cluster.forget_silent(1000 + HOUR_MS) == []
    assert [*cluster.servers] == ["here"]
    assert {number: each.component for number, each in cluster.worker_of.items()} == {0: "present", 1: "alone"}


HOUR_MS = 3_600_000


def test_processes_of_one_name_in_several_roles_do_not_replace_each_other() -> None:
    statuses = (
        WorkerStatus(component="one", time_ms=1000, partitions={0: PartitionStatus(applied_offset=7)}),
        ServerStatus(component="one", time_ms=2000, epoch=1, number=2),
        TrainerStatus(component="one", time_ms=HOUR_MS, claimant="c"),
    )
    compacted = {key_of(status): encode_status(status) for status in statuses}
    cluster = ClusterState()
    for report in compacted.values():
        cluster.note(report)
    assert cluster.workers[0].applied_offset == 7
    assert cluster.servers["one"].number == 2
    assert cluster.trainers["one"].claimant == "c"
    assert cluster.forget_silent(2000 + HOUR_MS) == [("server", "one")]
    assert [*cluster.trainers] == ["one"]
    assert set(keys_of("server", "one")) == {b"server/one", b"one"}


NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize("off_ms", [-2 * HOUR_MS, -1, 0, 2 * HOUR_MS])
def test_a_process_is_as_live_as_it_is_heard_whatever_its_clock_says(off_ms: int) -> None:
    cluster = ClusterState()
    cluster.note(server("a", NOW_MS + HOUR_MS, 1))
    for second in range(3):
        now_ms = NOW_MS + 1000 * second
        cluster.hear(server("a", now_ms + off_ms, 2 + second), now_ms)
        cluster.hear(worker("w", now_ms + off_ms, 0, epoch=1, applied=second), now_ms)
    assert [each.number for each in cluster.live_servers(NOW_MS + 2000)] == [4]
    assert cluster.workers[0].applied_offset == 2
    assert cluster.worker_silent_s(0, NOW_MS + 7000) == 5.0
    assert cluster.live_servers(NOW_MS + 13_000) == []


def test_a_report_of_the_past_is_never_younger_than_now() -> None:
    cluster = ClusterState()
    now_ms = time.time_ns() // 1_000_000
    cluster.note(server("a", now_ms + 5 * HOUR_MS, 1))
    assert cluster.live_servers(now_ms)
    assert not cluster.live_servers(now_ms + 60_000)


def test_what_cannot_be_read_is_ignored() -> None:
    cluster = ClusterState()
    deeper = b'{"role": "server", "component": "x", "time_ms": 1, "more": %b}' % (b"[" * 300_000 + b"]" * 300_000)
    for value in (*FOREIGN, deeper):
        cluster.note(value)
        cluster.hear(value, NOW_MS)
    assert (cluster.workers, cluster.servers) == ({}, {})
