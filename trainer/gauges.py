"""The lag message as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge


class Gauges:
    """Metrics in a registry, set from each message."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        gauge: Callable[..., Gauge] = partial(Gauge, registry=self.registry)
        self._seconds = gauge("headrace_stage_lag_seconds", "Age of what waits at a stage", ["stage"])
        self._records = gauge("headrace_stage_lag_records", "Records that wait at a stage", ["stage"])
        self._freshness = gauge("headrace_freshness_seconds", "Age of the newest action in the weights served")
        self._loss = gauge("headrace_trainer_loss", "Loss of the newest step, before learning it", ["loss"])
        self._hr10 = gauge("headrace_trainer_hr10_ratio", "Prequential HR@10 of the newest targets", ["ranker"])
        self._ne = gauge(
            "headrace_trainer_normalized_entropy_ratio", "Prequential NE of the newest targets", ["predictor"]
        )
        self._items = gauge("headrace_trainer_items", "Items in the vocabulary")
        self._version = gauge("headrace_trainer_version", "Newest version acknowledged", ["part"])
        counter: Callable[..., Counter] = partial(Counter, registry=self.registry)
        self._interactions = counter("headrace_trainer_interactions_total", "Interactions trained by this process")
        self._steps = counter("headrace_trainer_steps_total", "Steps taken by this process")
        self._counted: tuple[int, int] | None = None

    def show(self, message: dict[str, Any]) -> None:
        """Set everything from a message."""
        for name, told in message["stages"].items():
            self._seconds.labels(name).set(told["lag_s"])
            self._records.labels(name).set(told["lag_records"])
        _set(self._freshness, message["freshness"]["now_s"])
        for name, loss in message["loss"].items():
            _set(self._loss.labels(name), loss)
        for ranker, report in message["metrics"].get("retrieval_window", {}).items():
            if isinstance(report, dict):
                _set(self._hr10.labels(ranker), report["hr10"])
        entropy = message["metrics"].get("ranking_window", {}).get("all", {})
        _set(self._ne.labels("model"), entropy.get("ne"))
        _set(self._ne.labels("baseline"), entropy.get("ne_baseline"))
        self._items.set(message["num_items"])
        for part, number in (message["version"] or {}).items():
            self._version.labels(part).set(number)
        before = self._counted or (message["num_interactions"], message["num_steps"])
        self._counted = (message["num_interactions"], message["num_steps"])
        self._interactions.inc(max(0, self._counted[0] - before[0]))
        self._steps.inc(max(0, self._counted[1] - before[1]))


def _set(gauge: Gauge, value: float | None) -> None:
    gauge.set(float("nan") if value is None else value)
