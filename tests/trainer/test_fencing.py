"""One trainer at a time: who has lost its place finds out, stops, and is not read any more."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.nursery import Child
from tests.trainer.stage import Stage

Make = Callable[..., Stage]


def take_over(made: Stage, broken: tuple[str, ...] = ()) -> tuple[Child, Child]:
    """A trainer halts just before it writes a manifest; another takes over and publishes; the first one goes on."""
    old = made.start("old", broken, "fence_checked:3:stop")
    made.feed_until(old.is_stopped, "the first trainer halts")
    new = made.start("new")
    made.feed(20)
    made.wait_published()
    old.send(signal.SIGCONT)
    return old, new


def test_a_stale_trainer_stops_and_what_it_wrote_is_ignored(stage: Make) -> None:
    made = stage()
    old, new = take_over(made)
    made.feed_until(lambda: old.status is not None, "the stale trainer ends")
    assert old.status == 1
    last = old.log().splitlines()[-1]
    assert last.startswith("headrace train: epoch 0: another trainer (")
    assert "has claimed epoch 1; this one stops. Run one trainer per kafka.prefix" in last
    assert new.status is None
    recount = made.finish("new")
    # It had checked, halted, and then writes a manifest, unless its other thread sees the new claim first.
    assert recount.stale in ([(0, 2)], [])
    fenced_off = [each for each in recount.dropped if "epoch 0 was fenced off by a claim of epoch 1" in each]
    assert bool(fenced_off) or not recount.stale
    assert recount.last.epoch == 1
    assert len({each.manifest.lineage for each in recount.versions}) == 1, "the new one went on where the old one was"


def test_a_stale_trainer_that_has_nothing_to_publish_stops_too(stage: Make) -> None:
    made = stage()
    made.feed(20)
    old = made.start("old")
    made.wait_published()
    new = made.start("new")
    assert old.wait() == 1
    assert "has claimed epoch 1; this one stops" in old.log()
    assert new.stop() == 0


def test_a_trainer_that_does_not_look_for_another_is_caught(stage: Make) -> None:
    made = stage()
    old, _ = take_over(made, ("claims_nothing",))
    made.feed_until(lambda: len(made.recount().stale) > 2, "it goes on writing")
    assert old.status is None


def test_a_fenced_trainer_with_steps_of_its_own_refuses_to_go_on_from_them(stage: Make) -> None:
    made = stage(trainer={"checkpoint_every_steps": 1})
    old, new = take_over(made)
    made.feed_until(lambda: old.status is not None, "the stale trainer ends")
    assert new.stop() == 0
    again = made.start("old")
    assert again.wait() == 1
    last = again.log().splitlines()[-1]
    assert "of the checkpoint differs from the published one: another trainer " in last
    assert "Name an empty trainer.checkpoint_dir" in last
    made.start("another")
    made.feed(20)
    made.finish("another")


def test_two_trainers_never_share_a_checkpoint_folder(stage: Make) -> None:
    made = stage()
    first = made.start()
    first.wait_for("training")
    second = made.start()
    assert second.wait() == 1
    assert "another trainer is using it; stop that one, or name another folder" in second.log()
    assert first.status is None


@pytest.mark.parametrize("key", ["model_width", "num_layers"])
def test_a_checkpoint_of_another_model_is_refused(stage: Make, key: str) -> None:
    made = stage()
    made.live_and_die("checkpointed:3:kill")
    text = made.config_path.read_text()
    before = {"model_width": "model_width = 8", "num_layers": "num_layers = 1"}[key]
    made.config_path.write_text(text.replace(before, f"{key} = 2"))
    child = made.start()
    assert child.wait() == 1
    assert f"model.{key}: the checkpoint was learned with" in child.log()
    assert "put it back, or name an empty trainer.checkpoint_dir" in child.log()
