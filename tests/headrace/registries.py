"""The Prometheus registries of the three processes, as they make them."""

from prometheus_client import CollectorRegistry

from serving.metrics import ServerMetrics, readings
from serving.service import HELP
from stream.metrics import WorkerMetrics
from trainer.gauges import Gauges


def registries() -> list[CollectorRegistry]:
    server = ServerMetrics(lambda: readings(HELP, dict.fromkeys(HELP, 0.0)))
    return [WorkerMetrics().registry, Gauges().registry, server.registry]
