"""Records that an open transaction holds back: they cannot be read yet, so no reader misses them.

They do not count as backlog, since a worker cannot do anything about them. But a producer that hangs in the middle of a
transaction stops its partition for all readers, and the partition would look idle.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from stream.logs import log
from stream.metrics import WorkerMetrics

PATIENCE_S = 30.0
"""Longer than transactions take; one that exceeds it is logged, and again after each such period."""


class HeldBack:
    """Compares, once a second, how far each partition can be read with where it ends."""

    def __init__(self, topic: str, metrics: WorkerMetrics) -> None:
        self._topic, self._metrics = topic, metrics
        self._since: dict[int, tuple[int, float]] = {}
        """Partition → the offset at which it is stalled, and since when (monotonic)."""

    def note(self, readable: Mapping[int, int], ends: Mapping[int, int], now_s: float | None = None) -> None:
        """``readable``: our partitions → the offset that can be read up to; ``ends``: partition → its real end."""
        now_s = time.monotonic() if now_s is None else now_s
        self._since = {partition: since for partition, since in self._since.items() if partition in readable}
        for partition, offset in readable.items():
            num_held = max(0, ends.get(partition, offset) - offset)
            self._metrics.held.labels(str(partition)).set(num_held)
            stands, since_s = self._since.get(partition, (-1, now_s))
            if not num_held or stands != offset:
                self._since[partition] = offset, now_s
            elif now_s - since_s >= PATIENCE_S:
                self._since[partition] = offset, now_s
                log.warning(
                    "an open transaction holds back all records after it; look for a producer that hangs "
                    "(kafka-transactions.sh find-hanging)", topic=self._topic, partition=partition, offset=offset,
                    num_records=num_held,
                )  # fmt: skip
