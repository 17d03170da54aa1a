"""With `trainer.feedback` "wait", an interaction is learned once, when its window is over, with all kinds that came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import trainer.examples.batch
import trainer.examples.waiting
from tests.trainer.samples import KINDS, MODEL, TRAINER, World, assert_same_arrays, example
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.snapshot import learner_arrays, restore_learner
from trainer.examples.batch import JaggedBatch, build_batch
from trainer.examples.histories import TrainedHistories
from trainer.learner.step import Learner
from trainer.set_aside import pass_over
from wire.example import Example
from wire.history import Histories

WINDOW_MS = 120_000
WAIT = replace(TRAINER, feedback="wait", feedback_window_s=WINDOW_MS / 1000)
Place = tuple[str, int]

pytestmark = pytest.mark.usefixtures("one_thread")


def histories_of(window_ms: int = WINDOW_MS) -> TrainedHistories:
    return TrainedHistories(MODEL.max_context, 1 << 30, 2, window_ms)


def steps_of(num_steps: int = 60, seed: int = 0) -> list[list[Example]]:
    """Steps of a world; examples of later steps may have earlier times, as those of several partitions do."""
    world = World(seed)
    return [world.examples(4) for _ in range(num_steps)]


def taught_by(batch: JaggedBatch, name_of: dict[int, str]) -> dict[Place, tuple[int, bool]]:
    """User and place → the kinds that a step teaches, and whether the interaction is new."""
    users = [name_of[key] for key in batch.user_key_B[batch.owner_n[batch.target_R]].tolist()]
    pieces = zip(batch.learned_bits_R.tolist(), batch.is_new_R.tolist(), strict=True)
    return dict(zip(zip(users, batch.age_R.tolist(), strict=True), pieces, strict=True))


def check_each_piece_once(steps: list[list[Example]]) -> None:
    """Compare what each step teaches with the definition, looked up in all that has come so far."""
    histories, known = histories_of(), Histories(10_000)
    name_of: dict[int, str] = {}
    began: dict[Place, int] = {}
    seen: dict[Place, list[int]] = {}
    done: dict[Place, int] = {}
    clock_ms = 0
    for examples in steps:
        for each in examples:
            known.fold(each)
            name_of |= dict.fromkeys(build_batch([each], Histories(10_000), MODEL).user_key_B.tolist(), each.user)
            for index in range(each.num_new):
                began[each.user, each.first_new_index + index] = each.newest_record_ms
                seen[each.user, each.first_new_index + index] = known.users[each.user].rows(0, 10_000)["bits"].tolist()
        clock_ms = max(clock_ms, *(each.newest_record_ms for each in examples))
        batch = build_batch(examples, histories, MODEL, histories.choose)
        taught = taught_by(batch, name_of)
        check_contexts(batch, name_of, seen)
        ends = {user: history.end for user, history in known.users.items()}
        due = {
            (user, place) for (user, place), since_ms in began.items()
            if since_ms <= clock_ms - WINDOW_MS or place < ends[user] - MODEL.max_context
        }  # fmt: skip
        assert {place for place, (_, is_new) in taught.items() if is_new} == due - done.keys()
        assert {place for place, (_, is_new) in taught.items() if not is_new} <= done.keys(), "late for what is learned"
        for (user, place), (bits, is_new) in taught.items():
            now = int(known.users[user].window(place, place + 1)[1]["bits"][0])
            assert bits == (now if is_new else now & ~done[user, place])
        done |= {place: int(known.users[place[0]].window(place[1], place[1] + 1)[1]["bits"][0]) for place in due}
    assert len(done) > 50
    assert len(began) > len(done), "some still wait"


def check_contexts(batch: JaggedBatch, name_of: dict[int, str], seen: dict[Place, list[int]]) -> None:
    """What comes before a new target has the kinds that it had then, if it is the only one of its user."""
    for owner, key in enumerate(batch.user_key_B.tolist()):
        own = np.flatnonzero(batch.owner_n[batch.target_R] == owner)
        if len(own) == 1 and batch.is_new_R[own[0]]:
            first, target, place = batch.starts_B1[owner], batch.target_R[own[0]], int(batch.age_R[own[0]])
            then = seen[name_of[key], place][place - (target - first) : place]
            assert batch.bits_n[first:target].tolist() == then


def test_contexts_as_they_are_now_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.examples.batch, "_put_seen", lambda *_: None)
    with pytest.raises(AssertionError):
        check_each_piece_once(steps_of())


@pytest.mark.parametrize("seed", range(3))
def test_each_interaction_is_learned_when_its_window_is_over_with_all_its_kinds(seed: int) -> None:
    check_each_piece_once(steps_of(seed=seed))


def test_kinds_that_are_told_as_they_come_too_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    late: Callable[..., object] = trainer.examples.waiting._late
    monkeypatch.setattr(trainer.examples.waiting, "_late", lambda example, _: late(example, {}))
    with pytest.raises(AssertionError):
        check_each_piece_once(steps_of())


def learned(steps: list[list[Example]]) -> Learner:
    learner = Learner(MODEL, WAIT)
    for number, examples in enumerate(steps):
        if number == 7:
            pass_over(learner, examples)
        else:
            learner.step(examples)
    return learner


def resumed(before: list[list[Example]], after: list[list[Example]]) -> Learner:
    """A learner that was stopped between two steps, and reads again what the steps had taken, by partition."""
    stopped, learner = learned(before), Learner(MODEL, WAIT)
    meta = {"model": MODEL.as_dict(), "trainer": WAIT.learning_dict()}
    arrays = {name: array.copy() for name, array in learner_arrays(stopped).items()}
    restore_learner(learner, Checkpoint(stopped.num_steps, arrays, meta))
    for each in sorted((each for examples in before for each in examples), key=lambda each: each.number):
        learner.histories.restore(each)
    for examples in after:
        learner.step(examples)
    return learner


def check_resumed(steps: list[list[Example]]) -> None:
    whole = learner_arrays(learned(steps))
    for place in (9, 23):
        ours = learner_arrays(resumed(steps[:place], steps[place:]))
        assert_same_arrays(
            *({name: array for name, array in each.items() if not name.endswith(("dirty", "dirty_V", ".moved"))}
              for each in (ours, whole))
        )  # fmt: skip


def test_a_resumed_trainer_learns_the_same_and_has_the_same_bits() -> None:
    check_resumed(steps_of(40))


def test_a_resumed_trainer_that_forgets_what_waits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.examples.waiting.Waiting, "restore", lambda self, example, history: None)
    with pytest.raises(AssertionError, match="different"):
        check_resumed(steps_of(40))


def test_after_a_silence_not_all_that_waited_is_learned_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.examples.waiting, "MOST_AT_ONCE", 5)
    histories, steps = histories_of(20 * WINDOW_MS), steps_of(40)
    for examples in steps:
        build_batch(examples, histories, MODEL, histories.choose)
    waiting = histories.waiting
    assert waiting is not None
    num_waiting, nums = len(waiting), list[int]()
    later = example(steps[-1][0].interactions, 0, user="somebody else")
    later = replace(later, newest_record_ms=waiting.clock_ms + 20 * WINDOW_MS)
    while len(waiting):
        nums.append(build_batch([later], histories, MODEL, histories.choose).num_targets)
    assert sum(nums) == num_waiting > 5
    assert max(nums) < 5 + 4, "an example, whose interactions have one record time, has up to four"


def test_what_a_forgotten_user_did_is_not_learned_when_somebody_of_that_name_comes() -> None:
    histories = histories_of()
    first = example(World().examples(1)[0].interactions, 1, user="u", number=1)
    build_batch([first], histories, MODEL, histories.choose)
    histories.drop("u")
    again = replace(first, number=2)
    build_batch([again], histories, MODEL, histories.choose)
    assert histories.waiting is not None
    assert len(histories.waiting) == 1
    late = replace(example(first.interactions, 0, user="v", number=3), newest_record_ms=first.newest_record_ms + 10**7)
    assert build_batch([late], histories, MODEL, histories.choose).num_targets == 1


def test_a_version_covers_only_what_is_learned() -> None:
    learner, steps = Learner(MODEL, WAIT), steps_of(40)
    for examples in steps:
        learner.step(examples)
    taken = {0: max(each.resume_from_offset for examples in steps for each in examples) - 1}
    (covered,) = learner.histories.covered(taken).values()
    clock_ms = max(each.newest_record_ms for examples in steps for each in examples)
    in_order = [each for examples in steps for each in examples]
    first = next(place for place, each in enumerate(in_order) if each.newest_record_ms > clock_ms - WINDOW_MS)
    assert covered == in_order[first - 1].resume_from_offset - 1 < taken[0]
    assert learner.newest_record_ms == clock_ms - WINDOW_MS
    assert TrainedHistories(10, 1 << 20, 2).covered(taken) == taken


def test_with_nothing_late_waiting_and_not_waiting_learn_the_same_pieces() -> None:
    world = World(4, late=False)
    steps = [world.examples(4) for _ in range(60)]
    at_once, waits = Histories(10_000), histories_of()
    told, found = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for examples in steps:
        batch = build_batch(examples, at_once, MODEL)
        told.update(zip(batch.key_R.tolist(), batch.learned_bits_R.tolist(), strict=True))
        batch = build_batch(examples, waits, MODEL, waits.choose)
        assert np.all(batch.learned_bits_R < 2 ** len(KINDS))
        found.update(zip(batch.key_R.tolist(), batch.learned_bits_R.tolist(), strict=True))
    assert waits.waiting is not None
    assert sum((told - found).values()) == len(waits.waiting)
    assert not found - told


def test_a_step_that_is_set_aside_counts_what_it_would_have_learned() -> None:
    """Not the interactions of its own examples, which begin to wait."""
    learner, steps = Learner(MODEL, WAIT), steps_of(200)
    num_taken = sum(each.num_new for examples in steps for each in examples)
    num_lost = 0
    for number, examples in enumerate(steps):
        if number % 7 == 3:
            num_lost += pass_over(learner, examples)
        else:
            learner.step(examples)
    assert num_lost > 20
    waiting = learner.histories.waiting
    assert waiting is not None
    assert learner.metrics.ranking.num + num_lost + len(waiting) == num_taken


def test_what_is_covered_is_the_same_after_a_restart_though_users_were_forgotten() -> None:
    config = replace(WAIT, history_bytes=3_000)
    learner, again, steps, taken = Learner(MODEL, config), Learner(MODEL, config), steps_of(80), {0: 0}
    told = [each for examples in steps for each in examples]
    for examples in steps:
        learner.step(examples)
    assert len(learner.histories) < len({each.user for each in told})
    meta = {"model": MODEL.as_dict(), "trainer": config.learning_dict()}
    arrays = {name: array.copy() for name, array in learner_arrays(learner).items()}
    restore_learner(again, Checkpoint(learner.num_steps, arrays, meta))
    for each in told:
        again.histories.restore(each)
    assert again.histories.covered(taken) == learner.histories.covered(taken)
