"""A sequences topic that lost its end, as in a broker whose data was restored from an older copy: what a worker writes
there has numbers that were learned, and is never passed over as a repeat."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from tests.brokers import Broker, taken_back, wait_until
from tests.trainer.stage import Stage
from trainer.errors import SourceError
from trainer.sources.kafka import KafkaSource
from trainer.sources.positions import check_ends
from trainer.sources.scheduler import ranges
from trainer.sources.source import Position

Make = Callable[..., Stage]
LOST = r"partition \d: expected it to reach .* records were lost, or it is another topic. Name an empty"


@contextmanager
def source_of(made: Stage, positions: dict[int, Position], on_gap: str = "stop") -> Iterator[KafkaSource]:
    stop = threading.Event()
    with closing(
        KafkaSource.open(made.settings.kafka, positions, on_gap=on_gap, max_buffered=10_000, stop=stop)
    ) as source:
        yield source


def learn(source: KafkaSource, made: Stage) -> None:
    """Read and learn all that was sent."""

    def is_learned() -> bool:
        for lesson in source.poll(0.2):
            source.trained(ranges([lesson]))
        return {partition: each.next_number - 1 for partition, each in source.positions.items()} == made.covered

    wait_until(is_learned, 60, "everything to be learned", 0.0)


def check(made: Stage, source: KafkaSource) -> None:
    check_ends(made.settings.kafka, source.positions, "stop", threading.Event())


@pytest.mark.parametrize("num_kept", [0, 60], ids=["all of it", "its end"])
def test_a_running_trainer_ends_when_the_topic_lost(stage: Make, durable_kafka: Broker, num_kept: int) -> None:
    made = stage()
    made.send(made.make(num_kept))
    with source_of(made, {}) as source:
        with taken_back(durable_kafka, made.topics.sequences):
            made.send(made.make(60))
            learn(source, made)
            check(made, source)
        durable_kafka.restart()
        with pytest.raises(SourceError, match=LOST):
            wait_until(lambda: source.poll(0.2) == ["never"], 30, "the loss to be noticed", 0.0)


def test_a_topic_that_has_grown_again_is_not_gone_on_with(stage: Make, durable_kafka: Broker) -> None:
    made = stage()
    made.send(made.make(60))
    num_sent = {partition: len(examples) for partition, examples in made.sent.items()}
    with source_of(made, {}) as source:
        with taken_back(durable_kafka, made.topics.sequences):
            made.send(made.make(60))
            learn(source, made)
        durable_kafka.restart()
        with pytest.raises(SourceError, match=LOST):
            check(made, source)
        made.number_anew(num_sent)
        made.send(made.make(200))
        assert all(made.covered[each] >= position.next_number for each, position in source.positions.items())
        with pytest.raises(SourceError, match=r"but another record is before that: records were lost"):
            check(made, source)
        before = {
            each: Position(position.next_number, position.next_offset) for each, position in source.positions.items()
        }
        check_ends(made.settings.kafka, before, "stop", threading.Event())  # of an earlier build: unknown
