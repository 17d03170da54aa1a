"""A trainer that is told to forget: the user's history, the item's row and counts; and a resumed one does the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.memory_room import FIRST_CAPACITY
from tests.trainer.samples import MODEL, World, taught
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.snapshot import learner_arrays, restore_learner, weights_snapshot
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from trainer.set_aside import pass_over
from trainer.sources.scheduler import Scheduler
from wire.example import Example, Mark, fence

CONFIG = TrainerConfig(seed=1)


def mark_of(mark: Mark, number: int, *, user: str = "", item: int = 0) -> Example:
    names: dict[int, Any] = {item: f"item {item}"} if item else {}
    return replace(fence(0, 1, number), is_fence=False, mark=mark, user=user, names=names, newest_record_ms=1)


def trained(num: int = 60) -> tuple[Learner, World, int]:
    learner, world = Learner(MODEL, CONFIG), World()
    examples = world.examples(num)
    for start in range(0, num, 10):
        learner.step(examples[start : start + 10])
    item = int(learner.items.keys_of(np.array([3]))[0])
    return learner, world, item


def test_an_item_that_is_forgotten_has_no_row_no_counts_and_no_neighbours_and_gets_none_again() -> None:
    learner, world, item = trained()
    before = learner.items.num_live
    learner.step([mark_of(Mark.ITEM, 60, item=item)])
    assert learner.items.num_live == before - 1
    assert learner.items.lookup(np.array([item])) == [0]
    assert item in learner.items.tombstones
    arrays = learner.memory.arrays
    assert arrays.first[3] == -1
    used = np.arange(arrays.width) < arrays.num_neighbours[:, None]
    assert not (used & (arrays.neighbour_row == 3)).any()
    for _ in range(6):
        learner.step(world.examples(10))
    assert learner.items.lookup(np.array([item])) == [0], "its actions went on, and nothing was learned of it"
    snapshot = weights_snapshot(learner, everything=True)
    assert item not in snapshot.tables["items"].ids


def test_an_item_that_is_taken_back_is_learned_of_as_a_new_one() -> None:
    learner, world, item = trained()
    learner.step([mark_of(Mark.ITEM, 60, item=item)])
    learner.step([mark_of(Mark.ITEM_BACK, 61, item=item)])
    for _ in range(12):
        learner.step(world.examples(10))
    assert learner.items.lookup(np.array([item])) > 0


def test_a_user_who_is_forgotten_has_no_history() -> None:
    learner, _, _ = trained()
    (user, other) = list(learner.histories.users)[:2]
    for _ in range(2):  # again: the user is not there
        learner.step([mark_of(Mark.USER, 60, user=user)])
    assert user not in learner.histories.users
    assert other in learner.histories.users
    assert user not in learner.histories.state_dict()["users"].tobytes().decode()


def test_users_who_are_forgotten_together_have_no_history() -> None:
    learner, _, _ = trained()
    (first, second, other) = list(learner.histories.users)[:3]
    learner.step([mark_of(Mark.USERS, 60, user=json.dumps([first, "nobody", second]))])
    assert {first, second}.isdisjoint(learner.histories.users)
    assert other in learner.histories.users


def test_a_resumed_trainer_forgets_the_same_and_reaches_the_same_bits() -> None:
    learner, world, item = trained()
    user = next(iter(learner.histories.users))
    learner.step([mark_of(Mark.ITEM, 60, item=item)])
    learner.step([mark_of(Mark.USER, 61, user=user)])
    state = {name: array.copy() for name, array in learner_arrays(learner).items()}
    more = world.examples(20)
    learner.step(more)
    again = Learner(MODEL, CONFIG)
    meta = {"model": MODEL.as_dict(), "trainer": CONFIG.learning_dict()}
    restore_learner(again, Checkpoint(8, state, meta))
    assert item in again.items.blocked
    for each in [*World().examples(60), mark_of(Mark.ITEM, 60, item=item), mark_of(Mark.USER, 61, user=user)]:
        again.histories.restore(each)
    assert again.histories.users.keys() == learner.histories.users.keys() - {e.user for e in more if e.user == user}
    again.step(more)
    ours, theirs = learner_arrays(learner), learner_arrays(again)
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name], equal_nan=True)] == []


def test_a_step_that_is_set_aside_forgets_all_the_same() -> None:
    learner, _, item = trained()
    pass_over(learner, [mark_of(Mark.ITEM, 60, item=item)])
    assert learner.items.lookup(np.array([item])) == [0]


@pytest.mark.parametrize("how", ["a mark", "set aside"])
def test_a_step_that_learns_nothing_evicts_what_is_due(how: str) -> None:
    learner, world = taught(replace(CONFIG, max_items=10, evict_every_steps=7), num_steps=6)
    assert learner.items.num_live > 10
    user = next(iter(learner.histories.users))
    if how == "a mark":
        learner.step([mark_of(Mark.USER, 60, user=user)])
    else:
        pass_over(learner, world.examples(8))
    assert learner.items.num_live <= 10
    assert learner.num_steps == 7


def test_a_mark_may_evict_before_the_memory_has_learned_anything() -> None:
    """As after weights that were published without a memory."""
    learner = Learner(MODEL, replace(CONFIG, max_items=10, evict_every_steps=1))
    learner.items.insert(np.arange(1, FIRST_CAPACITY + 100), 1_000, 0)
    learner.items.insert(np.arange(1, 10), 2_000, 0)
    learner.step([mark_of(Mark.USER, 0, user="u1")])
    assert learner.items.num_live == 9


def test_a_mark_is_a_step_of_its_own() -> None:
    examples = World().examples(6)
    examples.insert(3, mark_of(Mark.USER, 3, user=examples[0].user))
    examples = [replace(each, number=number) for number, each in enumerate(examples)]
    scheduler = Scheduler(20, 100_000, 1000)
    scheduler.add(examples)
    steps = []
    while (batch := scheduler.next_batch()) is not None:
        steps.append(batch[0])
    assert steps == [[(0, 0, 2)], [(0, 3, 3)], [(0, 4, 6)]]


def test_a_trainer_that_starts_from_published_weights_learns_of_removed_items_from_the_topic() -> None:
    learner, _, item = trained()
    learner.histories.restore(mark_of(Mark.ITEM, 60, item=item))
    assert learner.histories.removed == {item}
    learner.remove_items(learner.histories.removed)
    learner.remove_items(learner.histories.removed)
    assert learner.items.lookup(np.array([item])) == [0]
