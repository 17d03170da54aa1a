"""Names of items that have long had no row are forgotten: by the trainer, its checkpoints and its versions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.samples import MODEL, START_MS, TRAINER, columns, example, twin
from tests.trainer.stage import NOT_KEPT, unequal
from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshot import learner_arrays, small_arrays
from trainer.learner.step import Learner
from trainer.versions.collection import Collection
from wire.example import Example
from wire.moment import MS_PER_DAY
from wire.weights import decode_blob

pytestmark = pytest.mark.usefixtures("one_thread")
EVICTING = replace(TRAINER, evict_after_days=1.0, evict_every_steps=1)
PER_DAY = 6
SLICE_BYTES = 20_000


def day_of(day: int, *, items: range | None = None) -> list[Example]:
    """What a day teaches: some items that are new then, with their names, or these."""
    keys = np.array(items or range(day * PER_DAY, (day + 1) * PER_DAY)) + 1
    made = []
    for hour in (1, 12, 23):
        rows = columns(np.random.default_rng(day), len(keys), PER_DAY)
        start_ms = START_MS // MS_PER_DAY * MS_PER_DAY + day * MS_PER_DAY + hour * 3_600_000
        rows = replace(rows, item_hash=keys * 7919, timestamp_ms=start_ms + 1000 * np.arange(len(keys)))
        names: dict[int, str | int] = {int(key): f"name {key}" for key in keys * 7919} if hour == 1 else {}
        made.append(example(rows, len(keys), names=names))
    return made


def learn(learner: Learner, day: int, *, items: range | None = None) -> None:
    for each in day_of(day, items=items):
        learner.step([each])


def test_names_do_not_outlive_their_items_by_more_than_two_days() -> None:
    learner = Learner(MODEL, EVICTING)
    for day in range(12):
        learn(learner, day)
        assert len(learner.names.all) <= 5 * PER_DAY
        live = learner.items.keys_of(learner.items.live_rows())
        assert set(live.tolist()) <= learner.names.all.keys()
    assert len(learner.names.all) >= 3 * PER_DAY, "some days without a row are not enough"


def test_an_item_that_comes_back_has_its_name_again_and_it_is_published() -> None:
    learner = Learner(MODEL, EVICTING)
    for day in range(8):
        learn(learner, day)
    assert 7919 not in learner.names.all
    learner.names.unpublished.clear()
    learn(learner, 8, items=range(PER_DAY))
    assert learner.names.all[7919] == learner.names.unpublished[7919] == "name 7919"


def step_at(learner: Learner, days: float, *, named: dict[int, str | int], items: tuple[int, ...] = ()) -> None:
    """Learn an example of one user that has these items, and names some of them."""
    keys = np.array(items or tuple(named))
    rows = columns(np.random.default_rng(0), len(keys), PER_DAY)
    start_ms = START_MS // MS_PER_DAY * MS_PER_DAY + int(days * MS_PER_DAY)
    rows = replace(rows, item_hash=keys, timestamp_ms=start_ms + np.arange(len(keys)))
    learner.step([example(rows, len(keys), user=f"u{days}", names=named)])


def test_a_name_that_comes_as_a_day_begins_is_kept_for_what_comes_without_it() -> None:
    learner = Learner(MODEL, replace(TRAINER, admit_after=3))
    step_at(learner, 0.1, named={1: "one"})
    step_at(learner, 0.2, named={2: "two"})
    step_at(learner, 1.1, named={1: "one"})
    step_at(learner, 2.1, named={1: "one", 2: "two"})
    step_at(learner, 2.5, named={}, items=(2,))
    assert learner.items.lookup(np.array([2])).all()
    assert learner.names.all == {1: "one", 2: "two"}


def test_a_name_is_kept_until_an_interaction_that_waits_for_feedback_is_learned() -> None:
    learner = Learner(MODEL, replace(TRAINER, feedback="wait", feedback_window_s=3 * 86_400.0))
    for day in range(3):
        step_at(learner, day, named={1: "one"})
    step_at(learner, 3, named={1: "one", 2: "two"})
    for day in range(4, 9):
        step_at(learner, day, named={1: "one"})
        assert learner.names.all[2] == "two"
    assert learner.items.lookup(np.array([2])).all()


def test_a_name_that_is_known_is_neither_published_nor_saved_again() -> None:
    learner = Learner(MODEL, EVICTING)
    step_at(learner, 0, named={1: "one", 2: "two"})
    learner.names.unpublished.clear()
    learner.names.unsaved.clear()
    step_at(learner, 1, named={1: "one", 2: "another"})
    assert learner.names.unpublished == learner.names.unsaved == {2: "another"}
    assert list(learner.names.all.items()) == [(1, "one"), (2, "another")]


def test_increments_and_versions_have_only_the_names_that_are_left(folder: CheckpointFolder) -> None:
    learner, saver = Learner(MODEL, EVICTING), Saver(folder)
    for day in range(8):
        learn(learner, day)
        base = Collection(learner, whole=True)
        base.advance(1)
        saver.begin(learner)
        while not saver.advance(SLICE_BYTES):  # names are forgotten while they are copied
            learner.step(day_of(day + 1)[:1])
        expected = {name: np.array(array) for name, array in learner_arrays(learner).items()}
        meta = {"model": learner.model_config.as_dict(), "trainer": learner.config.learning_dict()}
        saver.cut(Checkpoint(learner.num_steps, small_arrays(learner), meta))
        assert saver.wait() is None
        kept = folder.load()
        assert kept is not None
        assert unequal(kept.arrays, expected, NOT_KEPT) == []
        assert decode_blob(b"".join(base.cut(learner)().parts)).names == learner.names.all
    assert len(learner.names.all) < 7 * PER_DAY
    saver.close()


def test_a_trainer_that_goes_on_from_a_checkpoint_forgets_the_same_names() -> None:
    learner = Learner(MODEL, EVICTING)
    for day in range(5):
        learn(learner, day)
    other = twin(learner)
    for day in range(5, 9):
        for each in day_of(day):
            learner.step([each])
            other.step([each])
        assert other.names.all == learner.names.all
