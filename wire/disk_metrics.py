"""How full the disk is that a process writes to, as Prometheus metrics, read at each scrape."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class DiskMetrics(Collector):
    """Metrics of the file system that contains ``path``; none while that does not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        """The disk's size, and what is free for this user."""
        try:
            usage = shutil.disk_usage(self._path)
        except OSError:
            return
        yield GaugeMetricFamily("headrace_disk_bytes", "Size of the disk that the process writes to", value=usage.total)
        yield GaugeMetricFamily("headrace_disk_free_bytes", "Free bytes on it", value=usage.free)
