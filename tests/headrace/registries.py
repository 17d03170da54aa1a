"""The Prometheus registries of the three processes, as the processes create them."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from serving.metrics import ServerMetrics, readings
from serving.service import HELP
from stream.metrics import WorkerMetrics
from trainer.config import TrainerConfig
from trainer.progress import Progress
from trainer.reporter import LagReporter
from wire.config import KafkaConfig


def registries() -> list[CollectorRegistry]:
    server = ServerMetrics(lambda: readings(HELP, dict.fromkeys(HELP, 0.0)))
    reporter = LagReporter(KafkaConfig(), TrainerConfig(), Progress)
    return [WorkerMetrics(Path()).registry, reporter.metrics.registry, server.registry]
