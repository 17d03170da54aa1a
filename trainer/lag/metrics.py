"""The lag as Prometheus metrics, computed when they are scraped: the age of a stale report keeps growing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wire.cluster import age_s
from wire.disk_metrics import DiskMetrics

NO_NUMBER = float("nan")


class LagMetrics(Collector):
    """Metrics from the message that ``tell`` returns, in a registry of their own; ``folder``: of the checkpoints."""

    def __init__(self, tell: Callable[[], dict[str, Any]], folder: Path) -> None:
        self._tell = tell
        self._first: tuple[int, int] | None = None
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.registry.register(DiskMetrics(folder))
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterator[Metric]:
        """All metrics, as of now."""
        message = self._tell()
        yield from _lags(message)
        yield from _processes(message)
        yield from _learning(message)
        yield from self._counters(message)

    def _counters(self, message: dict[str, Any]) -> Iterator[Metric]:
        """Counters of this process: what was learned before it started is not counted."""
        now = (message["num_interactions"], message["num_steps"])
        if message["epoch"] >= 0 and self._first is None:
            self._first = now
        first = self._first or now
        for name, words, num in (
            ("headrace_trainer_interactions", "Interactions trained by this process", now[0] - first[0]),
            ("headrace_trainer_steps", "Steps taken by this process", now[1] - first[1]),
            ("headrace_trainer_set_aside", "Interactions in steps that were set aside", message["num_set_aside"]),
            ("headrace_trainer_evicted_items", "Items that have left the vocabulary", message["num_evicted"]),
            ("headrace_trainer_lost", "Examples removed from the topic before they were read", message["num_lost"]),
        ):
            yield CounterMetricFamily(name, words, value=max(0, num))


def _gauge(name: str, words: str, label: str, values: dict[str, float | None]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], NO_NUMBER if value is None else value)
    return family


def _lags(message: dict[str, Any]) -> Iterator[Metric]:
    stages = message["stages"]
    seconds = {name: told["lag_s"] for name, told in stages.items()}
    records = {name: told["lag_records"] for name, told in stages.items()}
    yield _gauge("headrace_stage_lag_seconds", "Age of what is waiting at a stage", "stage", seconds)
    yield _gauge("headrace_stage_lag_records", "Records waiting at a stage", "stage", records)
    fresh = message["freshness"]["now_s"]
    yield GaugeMetricFamily(
        "headrace_freshness_seconds",
        "Age of the newest action in the weights being served",
        value=NO_NUMBER if fresh is None else fresh,
    )
    rates = message["throughput"]
    yield _gauge(
        "headrace_trainer_examples_rate",
        "Examples per second: learned, and arriving",
        "what",
        {"learned": rates["examples_per_s"], "arriving": rates["arriving_examples_per_s"]},
    )
    catch_up = rates["catch_up_s"]
    yield GaugeMetricFamily(
        "headrace_trainer_catch_up_seconds",
        "Time until nothing waits to be learned, at these rates; infinite if the trainer falls behind",
        value=float("inf") if catch_up is None else catch_up,
    )


def _processes(message: dict[str, Any]) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "headrace_broker_silence_seconds", "Time since the broker last answered", value=message["broker_silent_s"]
    )
    family = GaugeMetricFamily(
        "headrace_process_silence_seconds", "Time since a process last reported", labels=["role", "component"]
    )
    for each in message["processes"]:
        family.add_metric([each["role"], each["component"]], each["silent_s"])
    yield family


def _learning(message: dict[str, Any]) -> Iterator[Metric]:
    window = message["metrics"].get("retrieval_window", {})
    hits = {ranker: report["hr10"] for ranker, report in window.items() if isinstance(report, dict)}
    ranking = message["metrics"].get("ranking_window", {})
    entropy = ranking.get("all", {})
    kinds = {kind: report for kind, report in ranking.items() if kind != "all"}
    yield _gauge("headrace_trainer_loss", "Loss of the newest step, before it was learned", "loss", message["loss"])
    yield _gauge("headrace_trainer_hr10_ratio", "Prequential HR@10 of the newest targets", "ranker", hits)
    yield _gauge(
        "headrace_trainer_normalized_entropy_ratio",
        "Prequential NE of the newest targets",
        "predictor",
        {"model": entropy.get("ne"), "baseline": entropy.get("ne_baseline")},
    )
    yield _gauge(
        "headrace_trainer_kind_normalized_entropy_ratio",
        "Prequential NE of the newest targets, by kind of action",
        "kind",
        {kind: report["ne"] for kind, report in kinds.items()},
    )
    yield _gauge(
        "headrace_trainer_kind_calibration_ratio",
        "Predicted over observed, of the newest targets, by kind of action",
        "kind",
        {kind: report["calibration"] for kind, report in kinds.items()},
    )
    frozen = message["metrics"].get("frozen") or {}
    yield _gauge(
        "headrace_trainer_frozen_hr10_ratio",
        "Prequential HR@10 of a frozen copy of the weights, and of the fresh ones on the same choices",
        "weights",
        {weights: frozen.get(weights, {}).get("hr10") for weights in ("fresh", "frozen")},
    )
    since_ms = frozen.get("newest_record_ms")
    yield GaugeMetricFamily(
        "headrace_trainer_frozen_age_seconds",
        "Age of the newest action that the frozen copy has learned",
        value=NO_NUMBER if since_ms is None else age_s(message["time_ms"], since_ms),
    )
    yield GaugeMetricFamily("headrace_trainer_items", "Items in the vocabulary", value=message["num_items"])
    age = message["checkpoint_age_s"]
    yield GaugeMetricFamily(
        "headrace_trainer_checkpoint_age_seconds",
        "Time since this process wrote a checkpoint, or, before its first, since it started",
        value=NO_NUMBER if age is None else age,
    )
    version = message["version"] or {}
    yield _gauge("headrace_trainer_version", "Newest acknowledged version", "part", dict(version))
