"""Send a file of actions through Kafka, at a given rate or as fast as possible."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stream.config import Settings
from stream.files import read_actions
from stream.producer import ActionProducer, BatchConfig
from wire.config import KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.topics import Topics

PACE_S = 0.02
"""With a rate, actions are sent in bursts this far apart."""


@dataclass(frozen=True)
class SendReport:
    """What was sent. ``is_whole``: whether sending was not interrupted."""

    num_actions: int
    num_records: int
    elapsed_s: float
    is_whole: bool = True


def send_actions(
    actions: Iterable[Mapping[str, Any]],
    kafka: KafkaConfig,
    *,
    rate: float | None = None,
    limit: int | None = None,
    batch: BatchConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> SendReport:
    """Send ``actions`` in order; ``rate`` in actions/s, None for as fast as possible.

    Ctrl-C ends it early. Raises `stream.producer.ProducerError` as soon as the broker has refused any of it.
    """
    started_s = time.monotonic()
    is_whole = True
    topic = Topics.under(kafka.prefix).actions
    with ActionProducer(kafka, topic, batch, kafka.partitions) as producer:
        try:
            for action in islice(_paced(actions, rate), limit):
                producer.send(action)

                if progress is not None and producer.num_actions % 1000 == 0:
                    progress(producer.num_actions)
        except KeyboardInterrupt:
            is_whole = False
        producer.flush()
        if progress is not None:
            progress(producer.num_actions)
        return SendReport(producer.num_actions, producer.num_records, time.monotonic() - started_s, is_whole)


def _paced(actions: Iterable[Mapping[str, Any]], rate: float | None) -> Iterable[Mapping[str, Any]]:
    """The same actions, no faster than ``rate``, and without a burst to catch up after a stall."""
    if rate is None:
        yield from actions
        return
    if not rate > 0:
        raise ValueError(f"rate: expected more than 0 actions/s, got {rate}; leave it out to send as fast as possible")
    began_s = time.monotonic()
    for num_sent, action in enumerate(actions):
        ahead_s = num_sent / rate - (time.monotonic() - began_s)
        if ahead_s > PACE_S:
            time.sleep(ahead_s)
        elif ahead_s < -1.0:
            began_s -= ahead_s
        yield action


def produce(settings: Settings, path: Path, *, rate: float | None = None, limit: int | None = None) -> int:
    """Send the actions of a file (`stream.files`) and print a report; returns the exit status.

    If the worker would refuse any line, nothing is sent: raises `stream.errors.FileError`.
    """
    actions = read_actions(path, settings.action)
    ensure_topics(settings.kafka)
    report = send_actions(
        actions, settings.kafka, rate=rate, limit=limit, batch=BatchConfig.within(settings.action),
        progress=show_progress if sys.stderr.isatty() else None,
    )  # fmt: skip
    return print_report(report, settings.kafka)


def show_progress(num_actions: int) -> None:
    """Show a counter that stays on its line."""
    print(f"\r{num_actions:,} actions ", end="\r", file=sys.stderr, flush=True)


def print_report(report: SendReport, kafka: KafkaConfig) -> int:
    """Print one line about what was sent; returns the exit status."""
    rate = report.num_actions / max(report.elapsed_s, 1e-9)
    start = "sent" if report.is_whole else "interrupted: sent"
    print(
        f"{start} {report.num_actions:,} actions in {report.num_records:,} records "
        f"to {Topics.under(kafka.prefix).actions} at {kafka.bootstrap}: {report.elapsed_s:.1f} s, {rate:,.0f} actions/s"
    )
    return 0 if report.is_whole else 130
