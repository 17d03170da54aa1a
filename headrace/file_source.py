"""A file of actions as a source of examples, without Kafka.

The file goes through the same sequencer as the worker's, in memory, so that a trainer without Kafka meets the same
examples in the same order whenever the file, the sequence configuration and ``file_take`` are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from state.names import Names
from state.sequencer import Sequencer
from trainer.examples.histories import TrainedHistories
from trainer.sources.source import Position, PositionTracker
from wire.action import Action, Rejection, decode_record
from wire.config import ActionConfig, SequenceConfig
from wire.example import Example
from wire.weights import PlanStep

FILE_PARTITION = 0


class _NamesInEach(Names):
    """Nothing counts as sent, so every example names its items: names cost nothing on this way, and the items of a
    chunk may be of many days."""

    def add(self, item_hash: int) -> None:
        """Remember nothing."""


class FileSource:
    """The actions of a file (an iterator of JSON-able objects) as the examples of one partition.

    After a restart the file is read from its start again, and examples below the position are left out.
    """

    max_buffered = 0  # nobody waits: `poll` reads on

    def __init__(
        self,
        actions: Iterable[dict[str, Any]],
        action: ActionConfig,
        sequence: SequenceConfig,
        take: int,
        positions: dict[int, Position] | None = None,
        on_rejection: Callable[[Rejection], None] = lambda _: None,
    ) -> None:
        self._chunks = _decoded(actions, action, take, on_rejection)
        self._sequencer = Sequencer(action, sequence, FILE_PARTITION, names=_NamesInEach())
        self._tracker = PositionTracker(dict(positions or {}))
        self._skip_below = self.positions.get(FILE_PARTITION, Position()).next_number
        self._histories: TrainedHistories | None = None
        self._offset, self._ended = 0, False

    @property
    def positions(self) -> dict[int, Position]:
        """Just after the last trained example."""
        return self._tracker.positions

    @property
    def exhausted(self) -> bool:
        """Whether the file has been read to its end."""
        return self._ended

    def restore(self, histories: TrainedHistories) -> None:
        """Nothing to do: the examples before the position are folded when the file is read again."""
        self._histories = histories

    def poll(self, timeout_s: float) -> list[Example]:
        """The examples of the next ``take`` actions. Never waits: ``timeout_s`` is ignored."""
        del timeout_s
        chunk = next(self._chunks, None)
        if chunk is None:
            self._ended = True
            return []
        for action in chunk:
            self._sequencer.apply(action, self._offset, action.timestamp_ms)
            self._offset += 1
        return self._drain()

    def _drain(self) -> list[Example]:
        examples = []
        for example in self._sequencer.drain():
            if example.number >= self._skip_below:
                self._tracker.add(example, example.number)
                examples.append(example)
            elif self._histories is not None:
                self._histories.restore(example)
        return examples

    def trained(self, step: PlanStep) -> None:
        """Move the position past a step's examples."""
        self._tracker.trained(step)

    def close(self) -> None:
        """Nothing to close."""


def _decoded(
    actions: Iterable[dict[str, Any]], config: ActionConfig, take: int, on_rejection: Callable[[Rejection], None]
) -> Iterator[list[Action]]:
    stream = iter(actions)
    while chunk := list(itertools.islice(stream, take)):
        good = []
        for action in chunk:
            decoded = decode_record(msgspec.json.encode(action), int(action.get("timestamp", 0)), config)
            for each in decoded:
                match each:
                    case Action():
                        good.append(each)
                    case Rejection():
                        on_rejection(each)
        yield good
