"""How far behind each stage is, as one message, described by ``schema/lag.schema.json``.

Ages are computed when the message is made, from recorded times: what is no longer reported keeps growing older instead
of standing still. A stage is at least as far behind as the newest report on it is old.
"""

from __future__ import annotations

from typing import Any

from trainer.lag.progress import Progress
from wire.cluster import ClusterState, age_s
from wire.lag import STALE_S
from wire.status import PartitionStatus, ServerStatus

STAGES = ("ingest", "sequence", "train", "publish", "serve")
Lag = tuple[int, float]
"""(records, seconds)."""


def ingest_lag(around: ClusterState, now_ms: int) -> dict[int, Lag]:
    """Actions in the topic that no worker has applied. If there are any, the time since the newest one was applied, or
    since none were left, if that was later: what has just arrived after a quiet hour has not waited for an hour."""
    lags: dict[int, Lag] = {}
    for partition, end in around.action_ends.items():
        worker = around.workers.get(partition, PartitionStatus())
        num = max(0, end - worker.applied_offset - 1)
        since_ms = max(worker.applied_record_ms, around.caught_up_ms.get(partition, 0))
        lags[partition] = (num, age_s(now_ms, since_ms) if num else 0.0)
    return lags


def sequence_lag(around: ClusterState, now_ms: int) -> dict[int, Lag]:
    """Examples waiting in workers' outboxes; the age of the oldest."""
    return {
        partition: (worker.outbox_len, age_s(now_ms, worker.oldest_outbox_record_ms) if worker.outbox_len else 0.0)
        for partition, worker in around.workers.items()
    }


def train_lag(around: ClusterState, progress: Progress, now_ms: int) -> dict[int, Lag]:
    """Examples in the topic that are not trained; the age of the oldest that has arrived. If none has, the time since
    the last one that was trained was written, or since all were trained, if that was later."""
    lags: dict[int, Lag] = {}
    for partition, position in progress.positions.items():
        relayed = around.workers.get(partition, PartitionStatus()).relayed_number
        num = max(0, relayed + 1 - position.next_number)
        since_ms = progress.oldest_waiting_ms.get(partition) or max(
            position.record_ms, around.trained_ms.get(partition, 0)
        )
        lags[partition] = (num, age_s(now_ms, since_ms) if num else 0.0)
    return lags


def publish_lag(progress: Progress, now_ms: int) -> dict[int, Lag]:
    """Trained examples that no acknowledged version contains; how long there have been any."""
    covered = progress.published.covered if progress.published is not None else {}
    seconds = age_s(now_ms, progress.unpublished_since_ms)
    lags: dict[int, Lag] = {}
    for partition, position in progress.positions.items():
        num = max(0, position.next_number - 1 - covered.get(partition, -1))
        lags[partition] = (num, seconds if num else 0.0)
    return lags


def _answering(around: ClusterState, now_ms: int) -> list[ServerStatus]:
    """The live servers; if none is, the one last heard from, which may still be answering."""
    known = sorted(around.servers.values(), key=lambda server: server.time_ms)
    return around.live_servers(now_ms) or known[-1:]


def serve_lag(around: ClusterState, progress: Progress, now_ms: int) -> Lag:
    """How many versions the slowest server is behind; if any, how long ago the newest was acknowledged. At least as old
    as the newest report of a server, if that is stale."""
    published, servers = progress.published, _answering(around, now_ms)
    if published is None or not servers:
        return 0, 0.0
    behind = 0
    for server in servers:
        if server.epoch == published.epoch:
            behind = max(behind, published.number - server.number)
        elif server.epoch < published.epoch:
            behind = max(behind, published.number + 1)
    silent_s = age_s(now_ms, max(server.time_ms for server in servers))
    behind_s = age_s(now_ms, progress.published_ms) if behind else 0.0
    return behind, max(behind_s, silent_s) if silent_s > STALE_S else behind_s


def freshness(around: ClusterState, now_ms: int) -> dict[str, float | None]:
    """Age of the newest action in the weights of the server that is furthest behind: now, and when it swapped."""
    servers = [server for server in _answering(around, now_ms) if server.newest_record_ms > 0]
    if not servers:
        return {"now_s": None, "at_swap_s": None}
    worst = min(servers, key=lambda server: server.newest_record_ms)
    return {
        "now_s": age_s(now_ms, worst.newest_record_ms),
        "at_swap_s": age_s(worst.swapped_ms, worst.newest_record_ms),
    }


def stage(lags: dict[int, Lag]) -> dict[str, Any]:
    """A stage of the message: records in total, seconds of the slowest partition, and both for each partition."""
    return {
        "lag_records": sum(records for records, _ in lags.values()),
        "lag_s": max((seconds for _, seconds in lags.values()), default=0.0),
        "partitions": {
            str(partition): {"lag_records": records, "lag_s": seconds}
            for partition, (records, seconds) in sorted(lags.items())
        },
    }


def as_old_as(lags: dict[int, Lag], silent_s: dict[int, float]) -> dict[int, Lag]:
    """The lags, at least as old as the reports that they come from, if those are stale."""
    return {
        partition: (records, max(seconds, silent_s.get(partition, 0.0)))
        if silent_s.get(partition, 0.0) > STALE_S
        else (records, seconds)
        for partition, (records, seconds) in lags.items()
    }


def build_message(progress: Progress, around: ClusterState, throughput: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """One message, as described by ``schema/lag.schema.json``."""
    retrieval, ranking, published = progress.retrieval_loss, progress.ranking_loss, progress.published
    total = None if retrieval is None or ranking is None else retrieval + ranking
    return {
        "time_ms": now_ms,
        "stages": _stages(progress, around, now_ms),
        "throughput": throughput,
        "loss": {"retrieval": retrieval, "ranking": ranking, "total": total},
        "metrics": progress.metrics,
        "num_interactions": progress.num_interactions,
        "num_steps": progress.num_steps,
        "num_set_aside": progress.num_set_aside,
        "num_lost": progress.num_lost,
        "num_dead_letters": sum(each.num_dead for each in around.workers.values()),
        "num_gone": sum(each.num_gone for each in around.workers.values()),
        "num_items": progress.num_items,
        "num_evicted": progress.num_evicted,
        "checkpoint_age_s": age_s(now_ms, progress.checkpointed_ms) if progress.checkpointed_ms else None,
        "num_servers": len(around.live_servers(now_ms)),
        "processes": around.processes(now_ms),
        "dead_letters": around.dead_letters(),
        "broker_silent_s": around.broker_silent_s(),
        "is_recovering": progress.is_recovering,
        "epoch": progress.epoch,
        "version": {"epoch": published.epoch, "number": published.number} if published is not None else None,
        "newest_event_ms": progress.newest_event_ms,
        "newest_record_ms": progress.newest_record_ms,
        "freshness": freshness(around, now_ms),
    }


def _stages(progress: Progress, around: ClusterState, now_ms: int) -> dict[str, Any]:
    broker_s, trainer_s = around.broker_silent_s(), age_s(now_ms, progress.time_ms)
    partitions = {*around.action_ends, *around.workers, *progress.positions}
    workers = {each: max(broker_s, around.worker_silent_s(each, now_ms)) for each in partitions}
    training = {each: max(trainer_s, workers[each]) for each in partitions}
    publishing = dict.fromkeys(partitions, trainer_s)
    behind, behind_s = serve_lag(around, progress, now_ms)
    return {
        "ingest": stage(as_old_as(ingest_lag(around, now_ms), workers)),
        "sequence": stage(as_old_as(sequence_lag(around, now_ms), workers)),
        "train": stage(as_old_as(train_lag(around, progress, now_ms), training)),
        "publish": stage(as_old_as(publish_lag(progress, now_ms), publishing)),
        "serve": {
            "lag_records": behind,
            "lag_s": max(behind_s, broker_s) if broker_s > STALE_S else behind_s,
            "partitions": {},
        },
    }
