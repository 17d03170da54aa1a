"""A frozen copy of the weights predicts beside the learner, from its checkpoint, and disturbs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from tests.brokers import wait_until
from tests.trainer.samples import SAMPLED, TRAINER, World, assert_same_arrays, taught
from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.snapshot import learner_arrays
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch
from trainer.frozen import Frozen
from trainer.frozen_rival import Allowance, FrozenRival
from trainer.learner.step import Learner

ALL = replace(TRAINER, frozen_share=1.0)
"""Every choice is compared."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[CheckpointFolder]:
    kept = CheckpointFolder(tmp_path, pytest.fail)
    kept.open()
    yield kept
    kept.close()


def kept_in(folder: CheckpointFolder, learner: Learner) -> None:
    meta = {"model": learner.model_config.as_dict(), "trainer": learner.config.learning_dict()}
    folder.write(Checkpoint(learner.num_steps, learner_arrays(learner), meta))


@pytest.fixture
def rival_of(folder: CheckpointFolder) -> Iterator[Callable[[TrainerConfig], FrozenRival]]:
    made: list[FrozenRival] = []

    def make(config: TrainerConfig) -> FrozenRival:
        made.append(FrozenRival(config, folder))
        return made[-1]

    yield make
    for each in made:
        each.close()


def wait_for_copy(rival: FrozenRival, learner: Learner, step: int) -> None:
    def is_there() -> bool:
        rival.renew(learner)
        return rival.step == step

    wait_until(is_there, 60, f"a copy of step {step}")


def enough(config: TrainerConfig) -> tuple[Learner, World]:
    """A learner that has learned a whole window."""
    learner, world = taught(config)
    while learner.num_interactions < config.metric_window:
        learner.step(world.examples(8))
    return learner, world


def compared(
    folder: CheckpointFolder, rival_of: Callable[[TrainerConfig], FrozenRival]
) -> tuple[Learner, World, FrozenRival]:
    """A learner whose choices a copy of it ranks."""
    learner, world = enough(ALL)
    kept_in(folder, learner)
    rival = rival_of(ALL)
    wait_for_copy(rival, learner, learner.num_steps)
    learner.scoring.evaluator.on_ranked = rival.compare
    return learner, world, rival


def step_beside(rival: FrozenRival, learner: Learner, world: World) -> None:
    """A step, and the ranks of its choices by the copy."""
    learner.step(world.examples(8))
    rival._thread.submit(int).result()


@pytest.mark.parametrize("config", [ALL, replace(SAMPLED, frozen_share=1.0)], ids=["exact", "sampled"])
def test_a_copy_of_this_moment_ranks_the_next_choice_as_the_learner_does(
    config: TrainerConfig,
) -> None:
    learner, world = enough(config)
    copies: list[Frozen] = []
    met: list[tuple[Any, Any]] = []

    def meet(batch: JaggedBatch, rank_S: Any, _: int) -> None:
        # The learner has learned the first target, such as the features of its item, before it predicts the next ones.
        first = np.flatnonzero(rank_S >= 0)[: int(batch.is_wanted_R[0])]
        met.append((rank_S[first], copies[-1].rank_choices(batch, first)))

    learner.scoring.evaluator.on_ranked = meet
    for _ in range(40):
        copies.append(Frozen.of(learner))
        learner.step(world.examples(1))
    live, frozen = (np.concatenate(each) for each in zip(*met, strict=True))
    assert (live > 0).sum() > 10
    np.testing.assert_array_equal(frozen, live)


def test_both_are_measured_on_the_same_choices_since_the_copy_stopped_learning(
    folder: CheckpointFolder, rival_of: Callable[[TrainerConfig], FrozenRival]
) -> None:
    learner, world = enough(ALL)
    kept_in(folder, learner)
    stopped, num_learned, rival = learner.num_steps, learner.num_interactions, rival_of(ALL)
    wait_for_copy(rival, learner, stopped)
    assert rival.report() is None, "nothing was compared yet"
    learner.scoring.evaluator.on_ranked = rival.compare
    before = learner.metrics.ranks[0, 0, 0]
    while (told := rival.report()) is None:
        step_beside(rival, learner, world)
    assert told["num_interactions"] == num_learned < learner.num_interactions
    assert told["num"] == min(ALL.metric_window, learner.metrics.ranks[0, 0, 0] - before)
    for name in ("fresh", "frozen"):
        assert 0 <= told[name]["hr10"] <= told[name]["hr50"] <= 1
    window = learner.metrics.summary()["retrieval_window"]["model"]
    assert told["fresh"] == pytest.approx(window), "as the learner's own window, which is of the same choices"


def test_what_is_learned_is_the_same_to_the_bit_beside_a_copy(
    folder: CheckpointFolder, rival_of: Callable[[TrainerConfig], FrozenRival]
) -> None:
    (alone, its_world), (beside, world) = enough(ALL), enough(ALL)
    kept_in(folder, beside)
    rival = rival_of(ALL)
    wait_for_copy(rival, beside, beside.num_steps)
    beside.scoring.evaluator.on_ranked = rival.compare
    for _ in range(10):
        alone.step(its_world.examples(8))
        step_beside(rival, beside, world)
    assert rival.report() is not None or rival.step is not None
    assert_same_arrays(learner_arrays(alone), learner_arrays(beside))


def test_a_copy_waits_for_a_window_of_interactions_and_a_checkpoint_that_has_them(
    folder: CheckpointFolder, rival_of: Callable[[TrainerConfig], FrozenRival]
) -> None:
    learner, world = taught(ALL, num_steps=1)
    kept_in(folder, learner)
    rival = rival_of(ALL)
    rival.renew(learner)
    while learner.num_interactions < ALL.metric_window:
        learner.step(world.examples(8))
        rival.renew(learner)
    rival.renew(learner)
    rival.close()  # ends what was begun
    rival.renew(learner)
    assert rival.step is None, "the only checkpoint has learned too little"


def test_a_learner_that_is_too_large_has_no_copy(
    folder: CheckpointFolder, rival_of: Callable[[TrainerConfig], FrozenRival]
) -> None:
    config = replace(ALL, frozen_bytes=1000)
    learner, _ = enough(config)
    kept_in(folder, learner)
    rival = rival_of(config)
    rival.renew(learner)
    rival.close()
    rival.renew(learner)
    assert rival.step is None


def test_a_copy_that_fails_is_dropped_and_learning_goes_on(
    folder: CheckpointFolder, rival_of: Callable[[TrainerConfig], FrozenRival], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, world, rival = compared(folder, rival_of)

    def fails(*_: object) -> None:
        raise IndexError("broken")

    monkeypatch.setattr(Frozen, "rank_choices", fails)
    before = learner.num_steps
    while rival.step is not None:
        step_beside(rival, learner, world)
    assert learner.num_steps > before
    assert rival.report() is None


def test_its_time_is_a_share_of_what_passes() -> None:
    allowance, spent_s, now_s = Allowance(0.02), 0.0, 100.0
    allowance.has_any(now_s)
    for _ in range(20_000):
        now_s += 0.005
        if allowance.has_any(now_s):
            allowance.left_s -= 0.004
            spent_s += 0.004
            now_s += 0.004
    assert spent_s == pytest.approx(0.02 * (now_s - 100.0), rel=0.05)
    allowance.has_any(now_s + 3600.0)
    assert allowance.left_s <= 0.05, "an idle hour is not spent at once"


def test_no_step_waits_for_a_copy_that_ranks(
    folder: CheckpointFolder, rival_of: Callable[[TrainerConfig], FrozenRival], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, world, rival = compared(folder, rival_of)
    has_learned, rank_choices = Event(), Frozen.rank_choices

    def waits(copy: Frozen, *given: Any) -> Any:
        assert has_learned.wait(60)
        return rank_choices(copy, *given)

    monkeypatch.setattr(Frozen, "rank_choices", waits)
    for _ in range(3):
        learner.step(world.examples(8))
    has_learned.set()
    while rival.report() is None:
        step_beside(rival, learner, world)
