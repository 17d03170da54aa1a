"""Numbers that are not finite are neither stored nor published: the step at fault is set aside, the rest learned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.process_factory import Child
from tests.trainer.samples import taught
from tests.trainer.stage import Stage
from trainer.copies.soundness import unsound_learner

Make = Callable[..., Stage]


def live_with_a_step_that_spoils(made: Stage, broken: tuple[str, ...] = (), point: str = "") -> Child:
    """Run a trainer whose weights are not finite after the step that has one certain example."""
    made.feed(60)
    child = made.start(broken=("spoils_the_step_of_one_example", *broken), point=point)
    made.feed(40)
    return child


@pytest.mark.parametrize("publish_every_s", [0.05, 1.0])
def test_a_step_that_leaves_nothing_finite_is_the_only_one_that_is_lost(stage: Make, publish_every_s: float) -> None:
    made = stage(trainer={"publish_every_s": publish_every_s})
    child = live_with_a_step_that_spoils(made)
    recount = made.finish()
    assert [len(each.manifest.set_aside) for each in recount.versions if each.manifest.set_aside] == [1]
    assert child.log().count("a step is set aside") == 1
    assert {each.manifest.epoch for each in recount.versions} == {0}, "one process all the time"


@pytest.mark.parametrize(
    "config", [{"checkpoint_every_steps": 1}, {"checkpoint_every_steps": 0, "checkpoint_every_s": 3600.0}]
)
def test_a_step_whose_scoring_fails_after_it_is_the_only_one_that_is_lost(stage: Make, config: dict[str, int]) -> None:
    """Whoever asks first: a checkpoint, a version."""
    made = stage(trainer={"publish_every_s": 0.05, **config})
    made.feed(60)
    child = made.start(broken=("fails_in_scoring_the_step_of_one_example",))
    made.feed(40)
    recount = made.finish()
    assert {len(each.manifest.set_aside) for each in recount.versions if each.manifest.set_aside} == {1}
    assert child.log().count("a step is set aside") == 1
    assert {each.manifest.epoch for each in recount.versions} == {0}, "one process all the time"


@pytest.mark.parametrize(
    "point", ["journal_started:2:kill", "journalled:12:kill", "learned:12:kill", "learned:15:kill"]
)
def test_a_repair_that_is_interrupted_goes_on(stage: Make, point: str) -> None:
    made = stage(trainer={"checkpoint_every_steps": 0, "checkpoint_every_s": 3600.0})
    child = live_with_a_step_that_spoils(made, point=point)
    made.feed_until(lambda: child.status is not None, point)
    assert child.status == -9, child.log()
    made.note_journal()
    live_with_a_step_that_spoils(made)
    recount = made.finish()
    set_aside = {step for each in recount.versions for step in each.manifest.set_aside}
    assert len(set_aside) == 1


def test_a_step_that_was_set_aside_fails_no_later_start(stage: Make) -> None:
    made = stage()
    live_with_a_step_that_spoils(made)
    made.wait_published()
    made.children[-1].kill()
    child = live_with_a_step_that_spoils(made)
    made.finish()
    assert "set aside" not in child.log()
    assert "Traceback" not in child.log()


def test_a_trainer_that_cannot_learn_says_so_in_one_line_at_every_start_and_publishes_nothing(stage: Make) -> None:
    made = stage(trainer={"dense_lr": 1e30})
    made.feed(90)
    for _ in range(2):
        child = made.start()
        assert child.wait() == 1
        last = child.log().splitlines()[-1]
        assert last.startswith("headrace train: steps 0 to 2: each left numbers that are not finite (")
        assert "Lower trainer.dense_lr" in last
        assert made.recount().versions == []


def test_a_trainer_that_publishes_whatever_it_has_is_caught(stage: Make) -> None:
    made = stage()
    live_with_a_step_that_spoils(made, ("takes_anything_for_finite",))
    with pytest.raises(AssertionError, match=r"not finite|the trainer ended with 1"):
        made.finish()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("where", ["dense", "items"])
def test_a_learner_is_unsound_wherever_a_number_is(value: float, where: str) -> None:
    learner, _ = taught()
    assert unsound_learner(learner) is None
    if where == "dense":
        next(iter(learner.model.parameters())).data.view(-1)[0] = value
    else:
        learner.items.weight[learner.items.live_rows()[-1]] = value
    assert unsound_learner(learner) is not None
