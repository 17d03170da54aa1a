"""Retention of the weights topic: a new server must find a base, however little the trainer learns; and no version may
outgrow a record, however seldom one is published."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature

import msgspec
import pytest

from tests.trainer.stage import Recount, Stage, weights_of
from trainer.loop import Trainer
from trainer.publication import MOST_RUNS
from trainer.replay import differences
from trainer.sources.kafka import KafkaSource
from trainer.versions.publisher import Publisher
from wire.weights import encode_manifest

Make = Callable[..., Stage]
SELDOM = {"base_every": 1000}


@dataclass
class Clock:
    """Seconds, moved by the test."""

    now_s: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def trainer_of(made: Stage, clock: Clock) -> Iterator[Trainer]:
    """A trainer in this process that publishes by the test's clock, and trains when the test takes a turn."""
    kafka, config, stop = made.settings.kafka, made.settings.trainer, threading.Event()
    trainer = Trainer(
        made.settings.model,
        config,
        lambda positions: KafkaSource.open(
            kafka, positions, on_gap=config.on_gap, max_buffered=config.max_buffered_examples, stop=stop
        ),
        checkpoint_dir=made.checkpoints(),
        publisher=Publisher(kafka, config, threading.Event(), clock),
        stop=stop,
    )
    try:
        trainer.start()
        yield trainer
        trainer.finish()
    finally:
        trainer.close()


def turn_until(trainer: Trainer, made: Stage, holds: Callable[[Recount], bool]) -> Recount:
    """Take turns until the condition holds for what is published."""
    for _ in range(300):
        trainer.turn()
        recount = made.recount()
        if recount.versions and holds(recount):
            return recount
    raise AssertionError(f"expected another version, got {[each.manifest.kind for each in made.recount().versions]}")


def kinds(recount: Recount) -> list[str]:
    return [each.manifest.kind for each in recount.versions]


def test_a_trainer_that_learns_nothing_publishes_a_base_before_retention_takes_the_last(stage: Make) -> None:
    made, clock = stage(trainer=SELDOM), Clock()
    retention_s = made.settings.kafka.actions_retention_s
    made.feed(40)
    with trainer_of(made, clock) as trainer:
        before = turn_until(trainer, made, lambda recount: recount.last.covered == made.covered)
        num_versions = len(before.versions)
        clock.now_s += 0.49 * retention_s
        for _ in range(4):
            trainer.turn()
        assert len(made.recount().versions) == num_versions, "the base is young enough, and there is nothing to say"
        for wanted in (num_versions + 1, num_versions + 2):
            clock.now_s += 0.51 * retention_s
            after = turn_until(trainer, made, lambda recount, wanted=wanted: len(recount.versions) == wanted)
            newest = after.versions[-1]
            assert (newest.manifest.kind, newest.manifest.plan) == ("base", [])
            assert newest.manifest.next_step == after.versions[num_versions - 1].manifest.next_step
            assert differences(weights_of([newest]), trainer.learner) == []
        made.feed(3)
        turn_until(trainer, made, lambda recount: recount.last.covered == made.covered)
    recount = made.recount()
    assert kinds(recount)[num_versions:][:3] == ["base", "base", "delta"]
    made.check(recount)
    assert differences(weights_of(recount.versions[num_versions + 1 :]), trainer.learner) == []


def test_a_trainer_that_learns_a_little_now_and_then_publishes_a_base_in_time_too(stage: Make) -> None:
    made, clock = stage(trainer=SELDOM), Clock()
    with trainer_of(made, clock) as trainer:
        for _ in range(3):
            made.feed(3)
            turn_until(trainer, made, lambda recount: recount.last.covered == made.covered)
            clock.now_s += 0.2 * made.settings.kafka.actions_retention_s
        assert set(kinds(made.recount())[1:]) == {"delta"}
        made.feed(3)
        clock.now_s += 0.2 * made.settings.kafka.actions_retention_s
        num_versions = len(made.recount().versions)
        turn_until(trainer, made, lambda recount: recount.last.covered == made.covered)
    recount = made.recount()
    assert kinds(recount)[num_versions] == "base"
    assert len(recount.versions[num_versions].manifest.plan) > 0
    made.check(recount)


def test_a_wall_clock_that_steps_back_delays_no_base() -> None:
    """By the wall clock, the next base could come after retention has taken the last one."""
    assert signature(Publisher).parameters["clock"].default is time.monotonic


def test_a_trainer_goes_on_from_a_base_that_added_nothing(stage: Make) -> None:
    made, clock = stage(trainer=SELDOM), Clock()
    made.feed(40)
    with trainer_of(made, clock) as trainer:
        num_versions = len(turn_until(trainer, made, lambda recount: recount.last.covered == made.covered).versions)
        clock.now_s += made.settings.kafka.actions_retention_s
        turn_until(trainer, made, lambda recount: len(recount.versions) > num_versions)
    made.start()
    recount = made.finish()
    assert recount.last.epoch == 1
    assert recount.last.lineage == recount.versions[0].manifest.lineage


def test_a_version_is_due_before_its_plan_outgrows_a_record(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(trainer={"publish_every_s": 3600.0})
    monkeypatch.setattr("trainer.publication.MOST_RUNS", 1)
    with trainer_of(made, Clock()) as trainer:
        for _ in range(2):
            made.feed(3)
            recount = turn_until(trainer, made, lambda recount: recount.last.covered == made.covered)
    plan = [[(99_999, 10**9, 10**9 + 63)]] * MOST_RUNS
    assert len(encode_manifest(msgspec.structs.replace(recount.last, plan=plan))) < 1_000_000
