"""How far each stage is behind, once a second: to ``headrace.trainer.lag.v1`` and as Prometheus metrics.

A thread with clients of its own. It looks at the trainer's `Progress` and at what workers and servers say in the status
topic; the training never waits for it, and a broker that is away only makes it silent. ``schema/lag.schema.json`` says
what a message is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from prometheus_client import start_http_server

from trainer.config import TrainerConfig
from trainer.gauges import Gauges
from trainer.progress import Progress
from wire.config import KafkaConfig
from wire.errors import ConfigError, TopicMissing
from wire.kafka.consumer import make_consumer, partitions_of
from wire.kafka.producer import make_producer
from wire.status import PartitionStatus, ServerStatus, TrainerStatus, WorkerStatus, decode_status, encode_status
from wire.topics import LAG_KEY, Topics

log = structlog.get_logger("trainer")
SILENT_SERVER_MS = 10_000
STAGES = ("ingest", "sequence", "train", "publish", "serve")
Lag = tuple[int, float]
"""(records, seconds)."""


@dataclass(slots=True)
class Surroundings:
    """What the others said: ends of the actions topic, workers' partitions, servers."""

    action_ends: dict[int, int] = field(default_factory=dict)
    workers: dict[int, PartitionStatus] = field(default_factory=dict)
    servers: dict[str, ServerStatus] = field(default_factory=dict)
    trainers: dict[str, TrainerStatus] = field(default_factory=dict)

    def note(self, value: bytes) -> None:
        """One record of the status topic; what cannot be read is passed over."""
        try:
            status = decode_status(value)
        except msgspec.DecodeError:
            return
        if isinstance(status, WorkerStatus):
            for partition, told in status.partitions.items():
                known = self.workers.get(partition)
                if known is None or told.writer_epoch >= known.writer_epoch:
                    self.workers[partition] = told
        elif isinstance(status, ServerStatus):
            self.servers[status.component] = status
        else:
            self.trainers[status.component] = status

    def live_servers(self, now_ms: int) -> list[ServerStatus]:
        """Those that said something of late."""
        return [server for server in self.servers.values() if now_ms - server.time_ms < SILENT_SERVER_MS]


def _age_s(now_ms: int, then_ms: int) -> float:
    return round(max(0, now_ms - then_ms) / 1000, 3) if then_ms > 0 else 0.0


def ingest_lag(around: Surroundings, now_ms: int) -> dict[int, Lag]:
    """Actions in the topic that no worker has applied; the age of the newest applied one, while any are left."""
    lags: dict[int, Lag] = {}
    for partition, end in around.action_ends.items():
        worker = around.workers.get(partition, PartitionStatus())
        num = max(0, end - worker.applied_offset - 1)
        lags[partition] = (num, _age_s(now_ms, worker.applied_record_ms) if num else 0.0)
    return lags


def sequence_lag(around: Surroundings, now_ms: int) -> dict[int, Lag]:
    """Examples that wait in workers' outboxes; the age of the oldest."""
    return {
        partition: (worker.outbox_len, _age_s(now_ms, worker.oldest_outbox_record_ms) if worker.outbox_len else 0.0)
        for partition, worker in around.workers.items()
    }


def train_lag(around: Surroundings, progress: Progress, now_ms: int) -> dict[int, Lag]:
    """Examples in the topic that are not trained; the age of the oldest that has arrived."""
    lags: dict[int, Lag] = {}
    for partition, position in progress.positions.items():
        relayed = around.workers.get(partition, PartitionStatus()).relayed_number
        num = max(0, relayed + 1 - position.next_number)
        lags[partition] = (num, _age_s(now_ms, progress.oldest_waiting_ms.get(partition, 0)) if num else 0.0)
    return lags


def publish_lag(progress: Progress, now_ms: int) -> dict[int, Lag]:
    """Examples trained that no acknowledged version contains; since when there are any."""
    covered = progress.published.covered if progress.published is not None else {}
    age_s = _age_s(now_ms, progress.unpublished_since_ms)
    lags: dict[int, Lag] = {}
    for partition, position in progress.positions.items():
        num = max(0, position.next_number - 1 - covered.get(partition, -1))
        lags[partition] = (num, age_s if num else 0.0)
    return lags


def serve_lag(around: Surroundings, progress: Progress, now_ms: int) -> Lag:
    """Versions that the furthest live server is behind; how long ago the newest was acknowledged, while it is."""
    published = progress.published
    if published is None:
        return 0, 0.0
    behind = 0
    for server in around.live_servers(now_ms):
        if server.epoch == published.epoch:
            behind = max(behind, published.number - server.number)
        elif server.epoch < published.epoch:
            behind = max(behind, published.number + 1)
    return behind, _age_s(now_ms, progress.published_ms) if behind else 0.0


def freshness(around: Surroundings, now_ms: int) -> dict[str, float | None]:
    """Age of the newest action in the weights of the live server that is furthest behind: now, and when it swapped."""
    servers = [server for server in around.live_servers(now_ms) if server.newest_record_ms > 0]
    if not servers:
        return {"now_s": None, "at_swap_s": None}
    worst = min(servers, key=lambda server: server.newest_record_ms)
    return {
        "now_s": _age_s(now_ms, worst.newest_record_ms),
        "at_swap_s": _age_s(worst.swapped_ms, worst.newest_record_ms),
    }


def stage(lags: dict[int, Lag]) -> dict[str, Any]:
    """A stage of the message: records in all, seconds of the slowest partition, and each partition."""
    return {
        "lag_records": sum(records for records, _ in lags.values()),
        "lag_s": max((seconds for _, seconds in lags.values()), default=0.0),
        "partitions": {
            str(partition): {"lag_records": records, "lag_s": seconds}
            for partition, (records, seconds) in sorted(lags.items())
        },
    }


class Throughput:
    """Interactions and steps a second between messages."""

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None

    def measure(self, progress: Progress) -> dict[str, float]:
        """Since the call before."""
        now, last = (time.monotonic(), progress.num_interactions, progress.num_steps), self._last
        self._last = now
        if last is None or now[0] <= last[0]:
            return {"interactions_per_s": 0.0, "steps_per_s": 0.0}
        seconds = now[0] - last[0]
        return {
            "interactions_per_s": round((now[1] - last[1]) / seconds, 2),
            "steps_per_s": round((now[2] - last[2]) / seconds, 3),
        }


def build_message(
    progress: Progress, around: Surroundings, throughput: dict[str, float], now_ms: int
) -> dict[str, Any]:
    """One message, as ``schema/lag.schema.json`` says."""
    retrieval, ranking, published = progress.retrieval_loss, progress.ranking_loss, progress.published
    total = None if retrieval is None or ranking is None else retrieval + ranking
    return {
        "time_ms": now_ms,
        "stages": {
            "ingest": stage(ingest_lag(around, now_ms)),
            "sequence": stage(sequence_lag(around, now_ms)),
            "train": stage(train_lag(around, progress, now_ms)),
            "publish": stage(publish_lag(progress, now_ms)),
            "serve": {
                **dict(zip(("lag_records", "lag_s"), serve_lag(around, progress, now_ms), strict=True)),
                "partitions": {},
            },
        },
        "throughput": throughput,
        "loss": {"retrieval": retrieval, "ranking": ranking, "total": total},
        "metrics": progress.metrics,
        "num_interactions": progress.num_interactions,
        "num_steps": progress.num_steps,
        "num_items": progress.num_items,
        "num_open_users": sum(worker.num_open_users for worker in around.workers.values()),
        "num_servers": len(around.live_servers(now_ms)),
        "is_recovering": progress.is_recovering,
        "epoch": progress.epoch,
        "version": {"epoch": published.epoch, "number": published.number} if published is not None else None,
        "newest_event_ms": progress.newest_event_ms,
        "newest_record_ms": progress.newest_record_ms,
        "freshness": freshness(around, now_ms),
    }


class LagReporter(threading.Thread):
    """Writes a message every ``lag_every_s`` until `stop`."""

    def __init__(self, kafka: KafkaConfig, config: TrainerConfig, progress: Callable[[], Progress]) -> None:
        super().__init__(name="lag", daemon=True)
        self._kafka, self._config, self._progress = kafka, config, progress
        self._topics = Topics.under(kafka.prefix)
        self._stopped = threading.Event()
        self._around = Surroundings()
        self._throughput = Throughput()
        self._gauges = Gauges()
        if config.metrics_port:
            self._serve(config.metrics_port)

    def _serve(self, port: int) -> None:
        try:
            start_http_server(port, self._config.metrics_host, self._gauges.registry)
        except OSError as error:
            raise ConfigError(
                f"trainer.metrics_port: expected a free port, got {port} ({error.strerror}); stop what listens there, "
                "or choose another (0 switches metrics off)"
            ) from error

    def run(self) -> None:
        """Report; connect again whenever the broker was away."""
        while not self._stopped.is_set():
            connections: list[KafkaConsumer | KafkaProducer] = []
            try:
                self._report(connections)
            except (KafkaError, OSError, TopicMissing) as error:
                log.warning("lag cannot be reported now, trying again", error=repr(error))
                self._stopped.wait(self._config.lag_every_s)
            finally:
                for connection in connections:
                    connection.close()

    def _report(self, connections: list[KafkaConsumer | KafkaProducer]) -> None:
        reader = make_consumer(self._kafka)
        connections.append(reader)
        writer = make_producer(self._kafka, acks=1)
        connections.append(writer)
        actions = partitions_of(reader, self._topics.actions)
        status = partitions_of(reader, self._topics.status)
        reader.assign(status)
        reader.seek_to_beginning(*status)
        is_last = False
        while not is_last:
            is_last = self._stopped.is_set()
            deadline = time.monotonic() + self._config.lag_every_s
            self._beat(writer)
            self._look(reader, actions)
            if self._progress().epoch < 0:  # a standby is silent here: the leader speaks
                self._stopped.wait(max(0.0, deadline - time.monotonic()))
                continue
            message = build_message(
                self._progress(), self._around, self._throughput.measure(self._progress()), int(time.time() * 1000)
            )
            self._gauges.show(message)
            writer.send(self._topics.lag, key=LAG_KEY, value=msgspec.json.encode(message), partition=0)
            self._stopped.wait(max(0.0, deadline - time.monotonic()))

    def _beat(self, writer: KafkaProducer) -> None:
        """The heartbeat that standbys listen for; a standby's own shows that there is one."""
        progress = self._progress()
        if progress.claimant:
            status = TrainerStatus(
                component=f"trainer@{progress.claimant.rsplit('/', 2)[0]}",
                time_ms=int(time.time() * 1000),
                claimant=progress.claimant,
                epoch=progress.epoch,
                is_standby=progress.is_standby,
                num_steps=progress.num_steps,
            )
            value = encode_status(status)
            writer.send(self._topics.status, key=status.component.encode(), value=value, partition=0)

    def _look(self, reader: KafkaConsumer, actions: list[TopicPartition]) -> None:
        ends = reader.end_offsets(actions)
        self._around.action_ends = {where.partition: end for where, end in ends.items()}
        while batches := reader.poll(timeout_ms=50):
            for record in (record for records in batches.values() for record in records):
                if record.value is not None:
                    self._around.note(record.value)

    def stop(self) -> None:
        """Say the last state once more, and end."""
        self._stopped.set()
        self.join(10)
