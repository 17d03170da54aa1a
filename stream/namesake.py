"""Refuses to start beside another live worker of the same name: the group would move its partitions to and fro.

A worker with a configured name (`stream.component`) is a static member of the group: another one that joins under that
name takes its place. So before it joins, a worker checks whether one on another disk still reports under its name. A
previous process on the same disk is not waited for: this process holds the disk's lock. A live one that names the same
disk has a copy of it, as cloned machines have. That shows only in its next reports, so it is looked for once the worker
has begun.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from itertools import chain
from typing import Any

from kafka import KafkaConsumer

from stream.errors import NameTaken
from wire.config import KafkaConfig
from wire.kafka.reports import newest_reports, told
from wire.status import WorkerStatus, keys_of, status_of

SILENCE_S = 3.0
"""Three reports: a worker that is silent for this long is gone."""
MOST_LATE = 2
"""A process that has just been killed on this disk may have one report on its way, not two."""


def refuse_namesake(kafka: KafkaConfig, component: str, disk: str) -> None:
    """Raise `NameTaken` if another worker of this name is alive. Raises KafkaError when no broker answers."""
    with newest_reports(kafka) as (consumer, where, span):
        known: WorkerStatus | None = None
        for record in told(consumer, where, span):
            known = _report(record, component) or known
        if known is None or known.disk == disk:
            return
        later = _heard(consumer, component)
        if later is not None and later.disk != disk:
            raise NameTaken(
                f"stream.component {component!r}: expected a unique name, but a worker on another disk reports "
                f"under it and has {len(later.partitions)} partitions; give this worker a name and a disk of its own, "
                "or stop that one"
            )


def refuse_twin(kafka: KafkaConfig, component: str, process: str, stop: threading.Event) -> None:
    """Raise `NameTaken` if another process, which began to report before this one, goes on reporting under this name:
    of two that begin together, one stays. Takes `SILENCE_S`, or until ``stop`` is set. Raises KafkaError when no broker
    answers."""
    with newest_reports(kafka) as (consumer, _, span):
        deadline_s, first, live = time.monotonic() + SILENCE_S, dict[str, int](), Counter[str]()
        while time.monotonic() < deadline_s and not stop.is_set():
            for record in chain.from_iterable(consumer.poll(timeout_ms=100).values()):
                if (status := _report(record, component)) is not None:
                    first.setdefault(status.process, record.offset)
                    live[status.process] += record.offset >= span.end
        ours = first.get(process, math.inf)
        if any(live[other] >= MOST_LATE and at < ours for other, at in first.items() if other != process):
            raise NameTaken(
                f"stream.component {component!r}: expected a unique name, but another worker reports under it, from a "
                "copy of this disk; give this one a name of its own, and remove its store.path (it is restored from "
                "Kafka), or stop that one"
            )


def _heard(consumer: KafkaConsumer, component: str) -> WorkerStatus | None:
    """The next report under this name, if one comes within `SILENCE_S`."""
    deadline_s = time.monotonic() + SILENCE_S
    while time.monotonic() < deadline_s:
        for record in chain.from_iterable(consumer.poll(timeout_ms=100).values()):
            if (status := _report(record, component)) is not None:
                return status
    return None


def _report(record: Any, component: str) -> WorkerStatus | None:
    if record.key not in keys_of("worker", component):
        return None
    status = status_of(record.value)
    return status if isinstance(status, WorkerStatus) else None
