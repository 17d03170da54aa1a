"""Where examples come from: what a source must offer the trainer, and how trained examples become positions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from trainer.examples.histories import TrainedHistories
from wire.example import Lesson
from wire.weights import PlanStep


class Position(msgspec.Struct, frozen=True):
    """Where to resume in a partition: the next example number, the Kafka offset to read from, the writer's epoch, the
    last action offset up to which all actions are in trained examples, and the Kafka timestamp of the record before
    (ms; -1 if unknown, as in checkpoints of earlier builds)."""

    next_number: int = 0
    next_offset: int = 0
    writer_epoch: int = 0
    covered_offset: int = -1
    record_ms: int = -1


class Source(Protocol):
    """Yields each example once, in the order of their numbers within a partition."""

    max_buffered: int
    """So many examples of a partition may wait to be trained, or a few more. A recorded step must fit."""

    @property
    def positions(self) -> dict[int, Position]:
        """After the last trained example of each partition."""

    def restore(self, histories: TrainedHistories) -> None:
        """Fold what was trained before ``positions`` into the empty ``histories``. Called before the first `poll`."""

    def poll(self, timeout_s: float) -> Sequence[Lesson]:
        """What has arrived; waits at most ``timeout_s`` for something."""

    @property
    def exhausted(self) -> bool:
        """Whether there will never be any more examples."""

    def trained(self, step: PlanStep) -> None:
        """Move ``positions`` past a step's examples, which are learned."""

    def close(self) -> None:
        """Close files and connections."""


class Untrained(NamedTuple):
    """Where an example that is not trained yet is in its topic."""

    number: int
    offset: int
    writer_epoch: int
    covered_offset: int
    record_ms: int


class PositionTracker:
    """Turns the numbers of trained examples into positions."""

    def __init__(self, positions: dict[int, Position]) -> None:
        self.positions = positions
        self._untrained: dict[int, deque[Untrained]] = {}

    def add(self, example: Lesson, offset: int, record_ms: int = -1) -> None:
        """Note an example that was handed to the trainer, and its record's offset and Kafka timestamp."""
        covered_offset = example.resume_from_offset - 1
        untrained = Untrained(example.number, offset, example.writer_epoch, covered_offset, record_ms)
        self._untrained.setdefault(example.partition, deque()).append(untrained)

    def trained(self, step: PlanStep) -> None:
        """Move the positions past a step's examples."""
        for partition, _, last in step:
            waiting = self._untrained[partition]
            while waiting and waiting[0].number <= last:
                done = waiting.popleft()
                self.positions[partition] = Position(
                    done.number + 1, done.offset + 1, done.writer_epoch, done.covered_offset, done.record_ms
                )
