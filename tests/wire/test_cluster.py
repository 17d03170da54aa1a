"""One rule says which report of a partition is the newest: the writer epoch, then the reporter's clock."""

from __future__ import annotations

import random

from wire.cluster import ClusterState
from wire.status import PartitionStatus, ServerStatus, WorkerStatus, encode_status


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
        for report in random.Random(seed).sample(reports, len(reports)):
            cluster.note(report)
        assert {number: each.applied_offset for number, each in cluster.workers.items()} == {0: 13, 1: 7}
        assert cluster.worker_ms == 5002


def test_a_servers_newest_report_counts_and_a_silent_server_is_gone() -> None:
    cluster = ClusterState()
    for component, time_ms, number in (("a", 20_000, 5), ("a", 19_000, 4), ("b", 1000, 9)):
        cluster.note(encode_status(ServerStatus(component=component, time_ms=time_ms, epoch=0, number=number)))
    assert [(each.component, each.number) for each in cluster.live_servers(21_000)] == [("a", 5)]


def test_what_cannot_be_read_is_ignored() -> None:
    cluster = ClusterState()
    for value in (None, b"", b"no json", b'{"role": "something else", "component": "x", "time_ms": 1}'):
        cluster.note(value)
    assert (cluster.workers, cluster.servers) == ({}, {})
