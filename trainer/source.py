"""Where examples come from: what a source offers the trainer, and how trained examples become positions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import msgspec

from trainer.histories import TrainedHistories
from wire.example import Example
from wire.weights import PlanStep


class Position(msgspec.Struct, frozen=True):
    """Where to go on in a partition: the next example number, the Kafka offset to read from, the writer's epoch, and
    the action offset up to which everything is in trained examples."""

    next_number: int = 0
    next_offset: int = 0
    writer_epoch: int = 0
    covered_offset: int = -1


class Source(Protocol):
    """Gives examples, each once, in the order of numbers within a partition."""

    @property
    def positions(self) -> dict[int, Position]:
        """Behind the last trained example of each partition."""

    def restore(self, histories: TrainedHistories) -> None:
        """Fold what was trained before ``positions`` into ``histories``, which are empty. Before the first `poll`."""

    def poll(self, timeout_s: float) -> list[Example]:
        """What has arrived; waits at most ``timeout_s`` for something."""

    @property
    def exhausted(self) -> bool:
        """Nothing more will ever come."""

    def trained(self, step: PlanStep) -> None:
        """These examples are learned: move ``positions`` behind them."""

    def close(self) -> None:
        """Let go of files and connections."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Where an example that is not trained yet stands in its topic."""

    number: int
    offset: int
    writer_epoch: int
    covered_offset: int


class Marks:
    """Turns trained numbers into positions."""

    def __init__(self, positions: dict[int, Position]) -> None:
        self.positions = positions
        self._marks: dict[int, deque[Mark]] = {}

    def add(self, example: Example, offset: int) -> None:
        """An example that was given out, and its offset."""
        mark = Mark(example.number, offset, example.writer_epoch, example.replay_from_offset - 1)
        self._marks.setdefault(example.partition, deque()).append(mark)

    def trained(self, step: PlanStep) -> None:
        """Move the positions behind a step's examples."""
        for partition, _, last in step:
            marks = self._marks[partition]
            while marks and marks[0].number <= last:
                mark = marks.popleft()
                self.positions[partition] = Position(
                    mark.number + 1, mark.offset + 1, mark.writer_epoch, mark.covered_offset
                )
