"""One trainer leads, others wait; a trainer that has lost the lead notices, stops, and is ignored by readers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import msgspec
import pytest

from tests.brokers import Broker, wait_until
from tests.process_factory import Child
from tests.trainer.stage import Stage
from trainer.versions import election
from trainer.versions.election import Claimant, Election, Leadership
from wire.weights import CLAIM_HEADERS, Claim

Make = Callable[..., Stage]
SELDOM_S = 0.2
"""Between feeds while silence is waited for: more would only keep the processor busy."""


def take_over(made: Stage, broken: tuple[str, ...] = ()) -> tuple[Child, Child]:
    """A trainer halts just before it writes a manifest; another takes over and publishes; then the first continues."""
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
    made.feed_until(lambda: old.status is not None, "the stale trainer ends", every_s=SELDOM_S)
    assert old.status == 1
    last = old.log().splitlines()[-1]
    assert last.startswith("headrace train: epoch 0: another trainer (")
    assert "has claimed epoch 1; this one stops. Start it again to have it wait as a standby" in last
    assert new.status is None
    recount = made.finish("new")
    # It checked, halted, and now writes a manifest, unless its other thread sees the new claim first.
    assert recount.stale in ([(0, 2)], [])
    fenced_off = [each for each in recount.dropped if "epoch 0 was fenced off by a claim of epoch 1" in each]
    assert bool(fenced_off) or not recount.stale
    assert recount.last.epoch == 1
    assert len({each.manifest.lineage for each in recount.versions}) == 1, "the new one went on where the old one was"


def test_a_trainer_that_is_taken_over_by_force_stops_though_it_has_nothing_to_publish(stage: Make) -> None:
    made = stage()
    made.feed(20)
    old = made.start("old")
    made.wait_published()
    new = made.start("new", (), "", "--take-over")
    assert old.wait() == 1
    assert "has claimed epoch 1; this one stops" in old.log()
    assert new.stop() == 0


def stand_by(made: Stage, broken: tuple[str, ...] = ()) -> tuple[Child, Child]:
    """A trainer that leads, and another one that waits longer than ``takeover_after_s``."""
    made.feed(20)
    leader = made.start("leader")
    made.wait_published()
    standby = made.start("standby", broken)
    standby.wait_for("standby: another trainer leads")
    num_versions = len(made.recount().versions)
    started_s = time.monotonic()

    def has_waited() -> bool:
        num_more = len(made.recount().versions) - num_versions
        return num_more > 5 and time.monotonic() - started_s > 2 * made.settings.trainer.takeover_after_s

    made.feed_until(has_waited, "the leader goes on", every_s=SELDOM_S)
    return leader, standby


def test_a_second_trainer_waits_and_takes_over_when_the_first_is_killed(stage: Make) -> None:
    made = stage()
    leader, standby = stand_by(made)
    assert len(made.recount().claims) == sum(each.epoch == 0 for each in made.recount().claims), "one epoch"
    assert standby.log().count("standby: another trainer leads") == 1, "said once"
    assert (leader.status, standby.status) == (None, None)
    leader.kill()
    standby.wait_for("taking over: the leader is silent")
    recount = made.finish("standby")
    assert recount.last.epoch == 1
    assert len({each.manifest.lineage for each in recount.versions}) == 1


def test_a_second_trainer_takes_over_at_once_when_the_first_ends_in_order(stage: Make) -> None:
    made = stage(trainer={"takeover_after_s": 600.0})
    made.feed(20)
    leader = made.start("leader")
    made.wait_published()
    standby = made.start("standby")
    standby.wait_for("standby: another trainer leads")
    assert leader.stop() == 0
    recount = made.finish("standby")
    assert recount.last.epoch == 1


def test_a_trainer_on_the_folder_of_one_that_was_killed_waits_for_nobody(stage: Make) -> None:
    made = stage(trainer={"takeover_after_s": 600.0})
    made.live_and_die("published:2:kill")
    child = made.start()
    recount = made.finish()
    assert "standby" not in child.log()
    assert recount.last.epoch == 1


def test_of_several_standbys_one_takes_over(stage: Make) -> None:
    made = stage()
    leader, first = stand_by(made)
    second = made.start("second")
    second.wait_for("standby: another trainer leads")
    leader.kill()
    made.feed_until(lambda: made.recount().last.epoch > 0, "one has taken over", every_s=SELDOM_S)
    num_versions = len(made.recount().versions)
    made.feed_until(lambda: len(made.recount().versions) > num_versions + 5, "it goes on undisturbed")
    assert {first.status, second.status} == {None}
    assert max(each.epoch for each in made.recount().claims) == 1, "the other one went on waiting"


def test_a_standby_whose_broker_was_away_gives_the_leader_its_time(stage: Make, durable_kafka: Broker) -> None:
    made = stage(trainer={"takeover_after_s": 60.0})  # the leader may take that long to find the broker again
    made.feed(20)
    leader = made.start("leader")
    made.wait_published()
    standby = made.start("standby")
    standby.wait_for("standby: another trainer leads")
    durable_kafka.kill()
    standby.wait_for("broker away")
    durable_kafka.restart()
    num_versions = len(made.recount().versions)
    made.feed_until(lambda: len(made.recount().versions) > num_versions + 3, "the leader goes on", 60, SELDOM_S)
    assert (leader.status, standby.status) == (None, None)
    assert {each.epoch for each in made.recount().claims} == {0}


class Clock:
    """A clock that goes on at each look at it, by as much as the test says."""

    def __init__(self) -> None:
        self.now_s, self.step_s, self.num_looks = 0.0, 0.0, 0

    def monotonic(self) -> float:
        self.now_s, self.num_looks = self.now_s + self.step_s, self.num_looks + 1
        return self.now_s

    def is_looked_at(self, num_more: int) -> Callable[[], bool]:
        last = self.num_looks + num_more
        return lambda: self.num_looks >= last


@pytest.mark.parametrize("is_outage", [False, True], ids=["a pause", "an outage"])
def test_what_a_standby_did_not_see_is_no_silence(
    is_outage: bool, stage: Make, durable_kafka: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps by hours between two looks, as in a process that was stopped; then it runs, and nobody beats."""
    made, clock, stop = stage(), Clock(), threading.Event()
    monkeypatch.setattr(election, "time", SimpleNamespace(monotonic=clock.monotonic))
    leader = Claim(epoch=0, claimant="leader")
    made.send_raw(made.topics.weights, msgspec.json.encode(leader), CLAIM_HEADERS)
    standby = Election(made.settings.kafka, made.settings.trainer, Claimant.on(None), stop)
    led: list[Leadership] = []
    thread = threading.Thread(target=lambda: led.append(standby.lead(lambda _: True)))
    thread.start()
    try:
        wait_until(clock.is_looked_at(6), 60, "some looks")
        if is_outage:
            durable_kafka.kill()
        clock.now_s += 10_000.0
        if is_outage:
            durable_kafka.restart()
        has_looked = clock.is_looked_at(6)
        wait_until(lambda: bool(led) or has_looked(), 60, "some more looks")
        assert not led, "it has not taken over"
        clock.step_s = 1.0
        wait_until(lambda: bool(led), 60, "it takes over")
        assert led[0].epoch == 1
    finally:
        stop.set()
        thread.join(60)


def test_a_standby_that_does_not_wait_is_caught(stage: Make) -> None:
    made = stage()
    made.feed(20)
    leader = made.start("leader")
    made.wait_published()
    made.start("standby", ("fences_a_live_leader",))
    assert leader.wait() == 1
    assert "has claimed epoch 1" in leader.log()


def test_a_trainer_that_does_not_look_for_another_is_caught(stage: Make) -> None:
    made = stage()
    old, _ = take_over(made, ("claims_nothing",))
    made.feed_until(lambda: len(made.recount().stale) > 2, "it goes on writing")
    assert old.status is None


def test_a_fenced_trainer_with_steps_of_its_own_refuses_to_go_on_from_them(stage: Make) -> None:
    made = stage(trainer={"checkpoint_every_steps": 1})
    old, new = take_over(made)
    made.feed_until(lambda: old.status is not None, "the stale trainer ends", every_s=0)  # in steps of its own
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
    assert f"model.{key}: the checkpoint was trained with" in child.log()
    assert "restore it, or name an empty trainer.checkpoint_dir" in child.log()
