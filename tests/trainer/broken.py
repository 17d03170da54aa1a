"""Deliberately broken trainers, by name. The tests beside this must catch each."""

from __future__ import annotations

from typing import Any

import trainer.kafka_source
import trainer.loop
import trainer.plan
import trainer.publisher
import trainer.snapshot
import wire.example_log


def ignores_the_journal() -> None:
    """Steps that were decided before a kill are decided anew."""
    trainer.loop.read_journal = lambda folder, from_step: []


def ignores_the_plan() -> None:
    """Steps that were published before a kill are decided anew."""
    trainer.plan.Plan.after = lambda self, step: []  # type: ignore[method-assign]


def checkpoints_without_positions() -> None:
    """The covered numbers do not go into the checkpoint."""
    trainer.loop.Trainer._current_positions = lambda self: {}  # type: ignore[method-assign]


def forgets_histories() -> None:
    """A trainer that starts knows nothing of what users did before its checkpoint."""
    trainer.kafka_source.KafkaSource.restore = lambda self, histories: None  # type: ignore[method-assign]


def folds_what_arrives() -> None:
    """Histories take in what has arrived, learned or not."""
    arrived = trainer.loop.Backlog.add

    def add(self: Any, examples: Any) -> None:
        for example in examples:
            self.histories.fold(example)
        arrived(self, examples)

    begin = trainer.loop.Trainer._next_step

    def next_step(self: Any) -> Any:
        self.backlog.histories = self.learner.histories
        return begin(self)

    trainer.loop.Trainer._next_step = next_step  # type: ignore[method-assign]
    trainer.loop.Backlog.add = add  # type: ignore[method-assign]


def forgets_dirty_rows() -> None:
    """What a delta should carry is forgotten before it is acknowledged; the next one starts from there."""
    original = trainer.snapshot.weights_snapshot

    def forgetful(learner: Any, *, everything: bool) -> Any:
        if not everything:
            for table in learner.tables.values():
                table.mark_published()
        return original(learner, everything=everything)

    trainer.loop.weights_snapshot = forgetful


def trains_what_is_stale() -> None:
    """Records of a worker that lost its partition, and repeats, count too."""

    def feed(self: Any, example: Any) -> wire.example_log.Verdict:
        return wire.example_log.Verdict.FENCE if example.is_fence else wire.example_log.Verdict.ACCEPT

    wire.example_log.ExampleLog.feed = feed  # type: ignore[method-assign]


def claims_nothing() -> None:
    """Nobody looks whether another trainer has taken over."""
    trainer.publisher.Publisher._check_fence = lambda self: None  # type: ignore[method-assign]


def passes_over_holes() -> None:
    """Missing numbers are taken in silence."""
    meet = trainer.kafka_source.KafkaSource._meet_hole

    def silent(self: Any, partition: int, offset: int, example: Any) -> None:
        self._on_hole = "skip"
        meet(self, partition, offset, example)

    trainer.kafka_source.KafkaSource._meet_hole = silent  # type: ignore[method-assign]
