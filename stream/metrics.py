"""A worker's Prometheus metrics: base units, ``_total`` on counters, gauges labelled by partition."""

from __future__ import annotations

import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from stream.errors import MetricsPortTaken
from wire.disk_metrics import DiskMetrics
from wire.example import Counts
from wire.listening import refused_address
from wire.status import PartitionStatus


class WorkerMetrics:
    """Metrics of one worker, in their own registry; ``disk``: the folder of its stores."""

    def __init__(self, disk: Path) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(DiskMetrics(disk))
        self.actions = Counter(
            "headrace_worker_actions", "Actions applied, by what became of them.", ("outcome",), registry=registry
        )
        self.records = Counter("headrace_worker_records", "Records of the actions topic applied.", registry=registry)
        self.relayed = Counter("headrace_worker_relayed", "Outbox entries acknowledged.", ("topic",), registry=registry)
        self.refused = Counter(
            "headrace_worker_dead_letters", "Dead letters, by reason.", ("reason",), registry=registry
        )
        self.gone = Counter(
            "headrace_worker_gone_records", "Records that retention removed before they were read.", registry=registry
        )
        self.forgotten = Counter(
            "headrace_worker_forgotten_users", "Users removed, on request or after a time.", registry=registry
        )
        self.fenced = Counter("headrace_worker_fenced", "Partitions taken by another writer.", registry=registry)
        self.restores = Counter("headrace_worker_restores", "Stores rebuilt from Kafka.", registry=registry)
        self.restarts = Counter("headrace_worker_restarts", "Restarts of the Faust app.", registry=registry)
        self.held = Gauge(
            "headrace_worker_held_records", "Records that an open transaction holds back.", ("partition",),
            registry=registry,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "headrace_worker_batch_seconds", "Duration of one write batch.", registry=registry,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        )  # fmt: skip
        self._lag = self._gauge("ingest_lag_records", "Records of the actions topic not applied yet.")
        self._outbox = self._gauge("outbox_entries", "Outbox entries not acknowledged yet.")
        self._applied = self._gauge("applied_offset", "Highest offset of the actions topic applied.")
        self.heard_s = time.monotonic()
        """When the broker last answered; the gauges by partition date from then."""
        Gauge(
            "headrace_worker_broker_silence_seconds", "Time since the broker last answered.", registry=registry
        ).set_function(lambda: time.monotonic() - self.heard_s)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"headrace_worker_{name}", text, ("partition",), registry=self.registry)

    def count(self, num_records: int, before: Counts, after: Counts) -> None:
        """Count a write batch that took the partition's counts from ``before`` to ``after``."""
        self.records.inc(num_records)
        for name, was, now in zip(Counts._fields, before, after, strict=True):
            if now > was:
                self.actions.labels(name.removeprefix("num_")).inc(now - was)

    def show(self, partition: int, status: PartitionStatus, lag_records: int) -> None:
        """Set a partition's gauges."""
        label = str(partition)
        self._lag.labels(label).set(lag_records)
        self._outbox.labels(label).set(status.outbox_len)
        self._applied.labels(label).set(status.applied_offset)

    def forget(self, partition: int) -> None:
        """Remove the gauges of a partition that is no longer ours."""
        for gauge in (self._lag, self._outbox, self._applied, self.held):
            try:
                gauge.remove(str(partition))
            except KeyError:
                continue

    def serve(self, host: str, port: int) -> None:
        """Serve Prometheus on ``port`` until the process ends; 0 does nothing. Raises `MetricsPortTaken`."""
        if port == 0:
            return
        try:
            start_http_server(port, host, self.registry)
        except OSError as error:
            told = refused_address("stream", "metrics_", host, port, error)
            raise MetricsPortTaken(f"{told} (0: no metrics)") from error
