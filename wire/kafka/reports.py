"""The newest reports of the status topic, for whoever looks at them once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaTimeoutError

from wire.config import KafkaConfig
from wire.errors import TopicMissing, TopicsMismatch
from wire.kafka.consumer import ANSWER_S, PROMPT, Span, ends, make_consumer, partitions_of
from wire.status import WorkerStatus, status_of
from wire.topics import Topics

NUM_LOOKED_AT = 1_000
"""How many of the newest reports, of all processes together, are searched: several seconds' worth."""
CHECK_S = 2.0
"""How long the broker may take for each answer while somebody waits for `check_partitions`."""
LATELY_S = 3600.0
"""An older report says nothing about the workers of today."""


@contextmanager
def newest_reports(
    kafka: KafkaConfig, answer_s: float = ANSWER_S
) -> Iterator[tuple[KafkaConsumer, TopicPartition, Span]]:
    """A consumer that reads the newest `NUM_LOOKED_AT` reports first, the partition that all processes report to, and
    where they are now. Raises KafkaError when a broker does not give an answer within ``answer_s`` (before
    that, to connect takes up to 5 s, and a TLS handshake 2 s per server), `BrokerUnavailable`, and `TopicMissing`."""
    answer_ms = round(answer_s * 1000)
    consumer = make_consumer(kafka, bootstrap_timeout_ms=min(answer_ms, 5_000), request_timeout_ms=answer_ms, **PROMPT)
    try:
        where = partitions_of(consumer, Topics.under(kafka.prefix).status)[0]
        end = ends(consumer, [where], answer_s)[where]
        begin = max(consumer.beginning_offsets([where])[where], end - NUM_LOOKED_AT)
        consumer.assign([where])
        consumer.seek(where, begin)
        yield consumer, where, Span(begin, end)
    finally:
        consumer.close()


def told(consumer: KafkaConsumer, where: TopicPartition, span: Span, answer_s: float = ANSWER_S) -> Iterator[Any]:
    """The reports of a span, and those that have come with them. Raises KafkaTimeoutError if the broker does not send
    them within ``answer_s``."""
    until_s = time.monotonic() + answer_s
    while consumer.position(where) < span.end:
        if time.monotonic() > until_s:
            raise KafkaTimeoutError(f"{where.topic}: the broker did not send within {answer_s:.0f} s what it has")
        yield from consumer.poll(timeout_ms=100).get(where, ())


def check_partitions(kafka: KafkaConfig) -> None:
    """Raise `TopicsMismatch` if the worker that reported last works with another number of partitions: what is sent by
    ours would go where no worker takes it, also if the topic has that many, since some may have been added. Raises
    KafkaError when a broker does not give an answer within `CHECK_S`, otherwise as `newest_reports`. Where no worker
    has reported within `LATELY_S`, nothing is known."""
    try:
        newest = _newest_of_workers(kafka)
    except TopicMissing:
        return
    if newest is not None and newest.num_partitions != kafka.partitions:
        raise TopicsMismatch(
            f"kafka.partitions: expected {newest.num_partitions}, as worker {newest.component} has it, got "
            f"{kafka.partitions}; set it to what the deployment was created with, in every process"
        )


def _newest_of_workers(kafka: KafkaConfig) -> WorkerStatus | None:
    """The newest report of a worker that says how many partitions it works with."""
    newest: WorkerStatus | None = None
    since_ms = (time.time() - LATELY_S) * 1000
    with newest_reports(kafka, CHECK_S) as (consumer, where, span):
        for record in told(consumer, where, span, CHECK_S):
            status = status_of(record.value)
            if isinstance(status, WorkerStatus) and status.num_partitions and record.timestamp >= since_ms:
                newest = status
    return newest
