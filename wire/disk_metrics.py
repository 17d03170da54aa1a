"""How full the disk is that a process writes to, as Prometheus metrics, read when they are scraped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class DiskMetrics(Collector):
    """Of the file system that has ``path``; nothing while that is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def collect(self) -> Iterator[Metric]:
        """Its size, and what is free for this user."""
        try:
            usage = shutil.disk_usage(self._path)
        except OSError:
            return
        yield GaugeMetricFamily("headrace_disk_bytes", "Size of the disk that it writes to", value=usage.total)
        yield GaugeMetricFamily("headrace_disk_free_bytes", "What is free of it", value=usage.free)
