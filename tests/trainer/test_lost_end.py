"""A sequences topic that lost its end, as in a broker whose data was restored from an older copy: what a worker writes
there has numbers that were learned, and is never passed over as a repeat."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from tests.brokers import Broker, taken_back, wait_until
from tests.trainer.samples import TRAINER
from tests.trainer.stage import Stage
from trainer.errors import GapError, SourceError
from trainer.sources.feed import StepFeed
from trainer.sources.kafka import KafkaSource
from trainer.sources.positions import check_ends
from trainer.sources.scheduler import ranges
from trainer.sources.source import Position
from wire.example import Lesson
from wire.weights import PlanStep

Make = Callable[..., Stage]
LOST = r"partition \d: expected it to reach .* records were lost, or it is another topic. Name an empty"


@contextmanager
def source_of(made: Stage, positions: dict[int, Position], max_buffered: int = 10_000) -> Iterator[KafkaSource]:
    stop = threading.Event()
    with closing(
        KafkaSource.open(made.settings.kafka, positions, on_gap="stop", max_buffered=max_buffered, stop=stop)
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


def test_a_recorded_step_that_is_longer_than_the_buffer_is_repeated(stage: Make) -> None:
    made, config = stage(), replace(TRAINER, max_buffered_examples=4)
    made.send(made.make(200))
    partition = max(made.covered, key=lambda each: made.covered[each])
    assert made.covered[partition] > 4
    recorded: list[PlanStep] = [[(partition, 0, made.covered[partition])]]
    with source_of(made, {}, max_buffered=config.max_buffered_examples) as source:
        feed = StepFeed(source, config, 10, recorded=recorded, first_step=0, is_live=True)
        wait_until(lambda: feed.next() is not None, 30, "the recorded step", 0.0)


def full_and_taken_back(stage: Make, broker: Broker, *, whole: bool, patience_s: float = 30.0) -> None:
    """A trainer has as many examples as it may keep, and reads nothing, while the topic loses its end and grows again.
    Raises what the trainer says when it reads on."""
    made = stage()
    made.send(made.make(60))
    num_sent = {partition: len(examples) for partition, examples in made.sent.items()}
    with source_of(made, {}, max_buffered=1) as source:
        with taken_back(broker, made.topics.sequences, whole=whole):
            made.send(made.make(60))
            waiting = read_all(source, made)
            assert not source.poll(0.2), "every partition is full"
        broker.restart()
        made.number_anew(num_sent)
        made.send(made.make(300))
        source.trained(ranges(waiting))
        wait_until(lambda: source.poll(0.2) == ["never"], patience_s, "the loss to be noticed", 0.0)


@pytest.mark.parametrize("whole", [False, True], ids=["the topic alone", "all of the broker"])
def test_a_topic_that_was_taken_back_while_a_trainer_read_nothing_ends_it(
    stage: Make, durable_kafka: Broker, whole: bool
) -> None:
    with pytest.raises(SourceError, match=LOST):
        full_and_taken_back(stage, durable_kafka, whole=whole)


def test_a_trainer_that_does_not_look_back_is_caught(
    stage: Make, durable_kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restored broker's leaders have the epochs of those that it lost, so the client notices nothing."""
    monkeypatch.setattr(KafkaSource, "_looks_back", lambda _: True)
    with pytest.raises((AssertionError, GapError)):
        full_and_taken_back(stage, durable_kafka, whole=True, patience_s=3.0)


def read_all(source: KafkaSource, made: Stage) -> list[Lesson]:
    """All that was sent, of which nothing is learned yet."""
    lessons: list[Lesson] = []

    def is_read() -> bool:
        # As if it had been learned, the partitions are read on; as for a while it is not, they are full afterwards.
        source._num_waiting = dict.fromkeys(source._num_waiting, 0)
        lessons.extend(source.poll(0.2))
        return len(lessons) == sum(len(examples) for examples in made.sent.values())

    wait_until(is_read, 60, "everything to be read", 0.0)
    source._num_waiting = {number: len(examples) for number, examples in made.sent.items()}
    return lessons
