"""A server's Prometheus metrics: counted as requests are answered, or read when they are scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from serving.operations import BY_PATH

BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
Reading = tuple[str, str, float]
"""Name, help, value. A name that ends in ``_total`` is a counter."""


class _Readings:
    """A collector of values kept elsewhere."""

    def __init__(self, read: Callable[[], list[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Called by the registry at each scrape."""
        for name, text, value in self._read():
            if name.endswith("_total"):
                yield CounterMetricFamily(name.removesuffix("_total"), text, value=value)
            else:
                yield GaugeMetricFamily(name, text, value=value)


class ServerMetrics:
    """Requests are counted here, everything else is read through ``read``. For the event loop's thread only."""

    def __init__(self, read: Callable[[], list[Reading]]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Histogram(
            "headrace_request_seconds", "How long requests took to answer.", ("path", "status"),
            registry=self.registry, buckets=BUCKETS_S,
        )  # fmt: skip
        self.registry.register(_Readings(read))
        self.num_requests = self.in_flight = 0
        Gauge("headrace_requests_in_flight", "Requests being answered.", registry=self.registry).set_function(
            lambda: self.in_flight
        )
        self._children: dict[tuple[str, int], Histogram] = {}

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.num_requests += 1
        known = path if path in BY_PATH else "other"
        child = self._children.get((known, status))
        if child is None:
            child = self._children[known, status] = self.requests.labels(known, str(status))
        child.observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def readings(help_of: Mapping[str, str], values: Mapping[str, float]) -> list[Reading]:
    """Values with their help texts."""
    return [(name, help_of[name], float(value)) for name, value in values.items()]
