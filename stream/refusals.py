"""How the worker reports what it refuses: a counter per reason, and occasional warnings."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from state.outbox import OutboxEntry
from stream.logs import log
from stream.metrics import WorkerMetrics
from wire.dead_letter import DeadLetter, read_headers

WARN_EVERY_S = 30.0


class Refusals:
    """Counts dead letters by reason, and warns of each reason at once, then at most every `WARN_EVERY_S`."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._since: Counter[str] = Counter()
        self._warned_s: dict[str, float] = {}

    def note(self, letters: Iterable[OutboxEntry]) -> None:
        """Count dead letters that have reached the broker."""
        latest: dict[str, DeadLetter] = {}
        for entry in letters:
            letter = read_headers(entry.headers)
            self._metrics.refused.labels(letter.reason).inc()
            self._since[letter.reason] += 1
            latest[letter.reason] = letter
        now_s = time.monotonic()
        for reason, letter in latest.items():
            if now_s - self._warned_s.get(reason, -WARN_EVERY_S) >= WARN_EVERY_S:
                self._warned_s[reason] = now_s
                log.warning(
                    "actions are refused; see: headrace dead-letters", reason=reason, num=self._since.pop(reason),
                    message=letter.message, topic=letter.topic, partition=letter.partition, offset=letter.offset,
                )  # fmt: skip
