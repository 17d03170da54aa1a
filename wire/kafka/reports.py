"""The newest reports of the status topic, for whoever looks at them once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kafka import KafkaConsumer, TopicPartition

from wire.config import KafkaConfig
from wire.errors import TopicMissing, TopicsMismatch
from wire.kafka.consumer import PROMPT, Span, ends, make_consumer, partitions_of, read
from wire.status import WorkerStatus, status_of
from wire.topics import Topics

NUM_LOOKED_AT = 1_000
"""How many of the newest reports, of all processes together, are searched: several seconds' worth."""


@contextmanager
def newest_reports(kafka: KafkaConfig) -> Iterator[tuple[KafkaConsumer, TopicPartition, Span]]:
    """A consumer that reads the newest `NUM_LOOKED_AT` reports first, their partition, and where they are now. Raises
    KafkaError when no broker answers, and `TopicMissing`."""
    consumer = make_consumer(kafka, **PROMPT)
    try:
        [where] = partitions_of(consumer, Topics.under(kafka.prefix).status)
        end = ends(consumer, [where])[where]
        begin = max(consumer.beginning_offsets([where])[where], end - NUM_LOOKED_AT)
        consumer.assign([where])
        consumer.seek(where, begin)
        yield consumer, where, Span(begin, end)
    finally:
        consumer.close()


def check_partitions(kafka: KafkaConfig) -> None:
    """Raise `TopicsMismatch` if the worker that reported last works with another number of partitions: what is sent by
    ours would go where no worker takes it, also if the topic has that many, since some may have been added. Raises
    KafkaError when no broker answers. Where no worker has reported lately, nothing is known."""
    told: WorkerStatus | None = None
    try:
        with newest_reports(kafka) as (consumer, where, span):
            for record in read(consumer, where.topic, {where.partition: span}):
                status = status_of(record.value)
                told = status if isinstance(status, WorkerStatus) and status.num_partitions else told
    except TopicMissing:
        return
    if told is not None and told.num_partitions != kafka.partitions:
        raise TopicsMismatch(
            f"kafka.partitions: expected {told.num_partitions}, as worker {told.component} has it, got "
            f"{kafka.partitions}; set it to what the deployment was created with, in every process"
        )
