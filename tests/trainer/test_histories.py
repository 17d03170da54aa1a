"""Bounded histories: which users a trainer forgets, and that a resumed one forgets the same users."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.samples import MODEL, TRAINER, World, assert_same_arrays
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.snapshot import learner_arrays, restore_learner
from trainer.examples.batch import build_batch
from trainer.examples.histories import TrainedHistories
from trainer.learner.step import Learner
from wire.example import Example
from wire.history import Histories

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = 9_000
NUM_FEATURES = MODEL.num_features


def compacted(examples: Iterable[Example]) -> list[Example]:
    """The newest record of each segment, as a compacted topic keeps them."""
    newest = {(each.user, each.segment): each for each in examples}
    return sorted(newest.values(), key=lambda each: each.number)


def rows_of(histories: Histories) -> dict[str, tuple[int, int, bytes]]:
    return {
        user: (each.start, each.end, each.rows(each.start, each.end).tobytes())
        for user, each in histories.users.items()
    }


def test_bytes_stay_below_the_bound_and_the_quietest_are_forgotten_first() -> None:
    world, histories = World(3, num_users=40), TrainedHistories(MODEL.max_context, SMALL, NUM_FEATURES)
    last_seen: dict[str, int] = {}
    num_forgotten = 0
    for number in range(60):
        for each in world.examples(3):
            histories.settle(histories.gather(each))
            last_seen[each.user] = number
        num_forgotten += histories.bound()
        assert histories.num_kept_bytes <= SMALL
        present = [last_seen[user] for user in histories.users]
        gone = [seen for user, seen in last_seen.items() if user not in histories.users]
        assert not gone or max(gone) <= min(present)
    assert num_forgotten > 10


def restored_by_all(histories: TrainedHistories, example: Example) -> None:
    """A build that takes every example in the topic."""
    histories.settle(*Histories.gather_all(histories, (example,)))


@pytest.mark.parametrize(("restore", "is_exact"), [(TrainedHistories.restore, True), (restored_by_all, False)])
def test_a_resumed_learner_knows_whom_the_first_one_knew_and_no_more(
    restore: Callable[[TrainedHistories, Example], None], *, is_exact: bool
) -> None:
    config, world, told = replace(TRAINER, history_bytes=SMALL), World(4, num_users=40), list[Example]()
    whole = Learner(MODEL, config)
    for _ in range(25):
        told += (batch := world.examples(5))
        whole.step(batch)
    assert len(whole.histories) < len({each.user for each in told})
    meta = {"model": MODEL.as_dict(), "trainer": config.learning_dict()}
    arrays = {name: array.copy() for name, array in learner_arrays(whole).items()}
    resumed = Learner(MODEL, config)
    restore_learner(resumed, Checkpoint(whole.num_steps, arrays, meta))
    for each in compacted(told):
        restore(resumed.histories, each)
    assert (rows_of(resumed.histories) == rows_of(whole.histories)) is is_exact
    if not is_exact:
        return
    assert resumed.histories.num_kept_bytes == whole.histories.num_kept_bytes
    for _ in range(25):
        batch = world.examples(5)
        for learner in (whole, resumed):
            learner.step(batch)
    assert_same_arrays(learner_arrays(whole), learner_arrays(resumed))
    assert rows_of(resumed.histories) == rows_of(whole.histories)


def test_who_returns_begins_with_the_segment_that_he_acts_in() -> None:
    world = World(5, num_users=2)
    every = [each for _ in range(30) for each in world.examples(2)]
    user = every[-1].user
    histories = TrainedHistories(MODEL.max_context, 1 << 20, NUM_FEATURES)
    for each in every[:-1]:
        histories.settle(histories.gather(each))
    assert histories.users[user].start < every[-1].first_index
    histories.drop(user)
    histories.settle(histories.gather(every[-1]))
    assert histories.users[user].start == every[-1].first_index
    assert len(histories.state_dict()["born"]) == len(histories.users)


def test_a_line_of_training_of_its_own_knows_everybody_whom_the_topic_tells_of() -> None:
    world, histories = World(6, num_users=5), TrainedHistories(MODEL.max_context, 1 << 20, NUM_FEATURES)
    told = [each for _ in range(10) for each in world.examples(3)]
    for each in told:
        histories.restore(each)
    plain = Histories(MODEL.max_context)
    for each in told:
        plain.fold(each)
    assert rows_of(histories) == rows_of(plain)
    last_ms = {each.user: each.newest_record_ms for each in told}
    assert histories.known_since("user 0") == (min(e.number for e in told if e.user == "user 0"), last_ms["user 0"])
    assert histories.unsaved.keys() == last_ms.keys()


def test_a_line_of_training_of_its_own_forgets_the_quietest_while_it_reads_the_topic() -> None:
    world, histories = World(3, num_users=60, num_items=300), TrainedHistories(MODEL.max_context, SMALL, NUM_FEATURES)
    last_ms, most = dict[str, int](), 0
    for place, each in enumerate(world.examples(900)):
        told = replace(each, newest_record_ms=place)
        histories.restore(told)
        last_ms[each.user], most = place, max(most, histories.num_kept_bytes)
    assert most <= SMALL
    kept = sorted(last_ms, key=last_ms.__getitem__)[-len(histories) :]
    assert 5 < len(kept) < 60
    assert histories.users.keys() == set(kept)


def test_what_a_line_of_training_of_its_own_read_is_known_to_one_that_resumes_it() -> None:
    world, config = World(3, num_users=60, num_items=300), replace(TRAINER, history_bytes=SMALL)
    past, learner, resumed = world.examples(900), Learner(MODEL, config), Learner(MODEL, config)
    for each in past:
        learner.histories.restore(each)
    meta = {"model": MODEL.as_dict(), "trainer": config.learning_dict()}
    arrays = {name: array.copy() for name, array in learner_arrays(learner).items()}
    restore_learner(resumed, Checkpoint(0, arrays, meta))
    for each in sorted(past, key=lambda each: each.user, reverse=True):  # as from other partitions
        resumed.histories.restore(each)
    assert rows_of(resumed.histories) == rows_of(learner.histories)


def test_a_copy_of_histories_is_laid_out_from_its_own_rows() -> None:
    world, histories = World(5, num_users=3), TrainedHistories(MODEL.max_context, SMALL, NUM_FEATURES)
    for each in world.examples(6):
        histories.fold(each)
    copied, examples = copy.deepcopy(histories), world.examples(3)
    ours, theirs = (build_batch(examples, each, MODEL) for each in (histories, copied))
    np.testing.assert_array_equal(ours.item_n, theirs.item_n)
    assert not {each.address for each in histories.users.values()} & {each.address for each in copied.users.values()}
