"""The Prometheus registries of the three processes, as the processes create them."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from serving.http.readings import HELP
from serving.metrics import ServerMetrics, readings
from stream.metrics import WorkerMetrics
from trainer.config import TrainerConfig
from trainer.lag.progress import Progress
from trainer.lag.reporter import LagReporter
from wire.config import KafkaConfig


def registries() -> list[CollectorRegistry]:
    server = ServerMetrics(lambda: readings(HELP, dict.fromkeys(HELP, 0.0)))
    reporter = LagReporter(KafkaConfig(), TrainerConfig(), Progress)
    return [WorkerMetrics(Path()).registry, reporter.metrics.registry, server.registry]


def metric_names() -> set[str]:
    """Every metric that the processes expose."""
    names: set[str] = set()
    for registry in registries():
        for family in registry.collect():
            kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
            names |= {family.name + ending for ending in kinds.get(family.type, ("",))}
    return names
