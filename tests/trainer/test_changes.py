"""Users' features as tokens of their own, and choices that are weighed by how likely they were shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.tokens import propensities, states
from tests.trainer.samples import MODEL, TRAINER, columns, example, twin
from trainer.examples.batch import JaggedBatch, build_batch
from trainer.examples.changes import with_changes
from trainer.examples.context import shorten
from trainer.learner.step import Learner
from trainer.network.losses import exposure_weights
from trainer.ranks.shard_pass import tail_of
from wire.example import Example
from wire.history import Histories

TOKENS = replace(MODEL, user_tokens=True, use_value=False)
SHOWN = replace(MODEL, propensity=True)


def moved(lands: list[int], *, user: str = "u", num_new: int = 1) -> Example:
    """A user's interactions, each from one of these lands."""
    rows = columns(np.random.default_rng(4), len(lands), 20)
    return example(replace(rows, feature_hash=np.c_[rows.feature_hash, lands]), num_new, user=user)


def batch_of(*examples: Example, model: ModelConfig = TOKENS) -> JaggedBatch:
    return build_batch(examples, Histories(model.max_context), model)


def test_a_change_stands_before_the_first_interaction_that_has_it() -> None:
    plain = batch_of(moved([7, 7, 8, 8, 7], num_new=2), moved([0, 0, 9], user="v"))
    wide = with_changes(plain)
    items = plain.item_n.tolist()
    assert wide.item_n.tolist() == [0, *items[:2], 0, *items[2:4], 0, *items[4:7], 0, items[7]]
    assert wide.state_nU[:, 0].tolist() == [7, 0, 0, 8, 0, 0, 7, 0, 0, 0, 9, 0]
    assert wide.starts_B1.tolist() == [0, 8, 12]
    is_change = wide.item_n == 0
    assert not wide.bits_n[is_change].any()
    assert not wide.domain_n[is_change].any()
    assert not wide.feature_nF[is_change].any()
    assert wide.time_ms_n[is_change].tolist() == plain.time_ms_n[[0, 2, 4, 7]].tolist()


def test_what_is_asked_and_after_what_stays_the_same() -> None:
    plain = batch_of(moved([7, 7, 8, 8, 7], num_new=2), moved([9], user="v"))
    wide = with_changes(plain)
    assert wide.item_n[wide.target_R].tolist() == plain.item_n[plain.target_R].tolist()
    before = [wide.item_n[at] if at >= 0 else None for at in wide.previous_R.tolist()]
    assert before == [plain.item_n[at] if at >= 0 else None for at in plain.previous_R.tolist()]
    read = set(tail_of(wide).rows_S.tolist())
    assert {2 * at + 1 for at in wide.previous_R.tolist() if at >= 0} <= read
    assert set((2 * wide.target_R).tolist()) <= read


def test_a_context_that_is_cut_off_begins_with_the_features_of_its_first_interaction() -> None:
    wide = with_changes(shorten(batch_of(moved([7, 7, 7, 7, 7])), 2))
    assert wide.state_nU[:, 0].tolist() == [7, 0, 0, 0]


def query_of(learner: Learner, lands: list[int]) -> torch.Tensor:
    batch = batch_of(replace(moved([*lands, lands[-1]]), user="somebody"))
    batch = replace(batch, is_wanted_R=np.ones(1, np.bool_))
    with torch.no_grad():
        return learner.forward(batch, 0).query_SD


def test_predictions_know_when_a_feature_changed_and_learn_what_it_means() -> None:
    learner = Learner(TOKENS, TRAINER)
    for number in range(6):
        learner.step([moved([7, 7, 8, 8 + number % 2], user=f"u{each}", num_new=2) for each in range(4)])
    assert learner.features.lookup(np.array([7, 8, 9])).all()
    early, late, same = (query_of(learner, lands) for lands in ([7, 8, 8], [7, 7, 8], [7, 7, 8]))
    assert not torch.allclose(early, late, atol=1e-4)
    torch.testing.assert_close(late, same)
    assert not torch.allclose(late, query_of(learner, [7, 7, 9]), atol=1e-4)


def test_an_interactions_columns_are_its_items_features_the_propensity_and_its_users_features() -> None:
    model = replace(MODEL, user_tokens=True, propensity=True)
    bits = np.array([0.25]).view(np.int64)[0]
    column_nC = np.array([[1, 2, bits, 5], [3, 4, 0, 6]])
    assert states(column_nC, model).tolist() == [[5], [6]]
    np.testing.assert_array_equal(propensities(column_nC, model), [0.25, np.nan])
    assert states(column_nC[:, :2], MODEL).shape == (2, 0)


def test_a_choice_weighs_the_inverse_of_its_propensity_up_to_a_bound() -> None:
    given = np.array([1.0, 0.5, 0.01, np.nan])
    np.testing.assert_allclose(exposure_weights(given, 8.0), np.array([1, 2, 8, 11 / 3]) / (11 / 3), rtol=1e-6)
    np.testing.assert_array_equal(exposure_weights(given, 1.0), 1)
    np.testing.assert_array_equal(exposure_weights(given[3:], 8.0), 1)


def shown(propensity: float, user: str) -> Example:
    rows = columns(np.random.default_rng(4), 3, 20)
    bits = np.full(3, np.array([propensity]).view(np.int64)[0])
    rows = replace(rows, feature_hash=np.c_[rows.feature_hash, bits], action_bits=np.full(3, 2, np.uint32))
    if user == "other":
        rows = replace(rows, item_hash=rows.item_hash + 1)
    return example(rows, 1, user=user)


@pytest.mark.parametrize("most", [1.0, 10.0])
def test_what_was_hardly_shown_moves_network_and_memory_further(most: float) -> None:
    """Two choices in a step, of items that are equally known; one of them had a tenth of the other's chance."""
    learner = Learner(SHOWN, replace(TRAINER, max_exposure_weight=most))
    both = [shown(0.05, "u"), shown(0.5, "other")]
    learner.step(both)
    weighed, equal = twin(learner), twin(learner)
    weighed.step(both)
    equal.step([shown(0.5, "u"), shown(0.5, "other")])
    rows = learner.items.lookup(np.array([each.interactions.item_hash[-1] for each in both]))
    ratio = weighed.memory.arrays.seen[rows] / equal.memory.arrays.seen[rows]
    weight = exposure_weights(np.array([0.05, 0.5]), most)
    assert ratio.tolist() == pytest.approx((2 * weight / (1 + weight)).tolist(), rel=1e-3)  # of the first step as well
    is_same = torch.equal(weighed.items.weight[rows], equal.items.weight[rows])
    assert is_same == (most == 1)


def done(bits: int, user: str) -> Example:
    """Three interactions of a user, each with these kinds, on items that no other user has."""
    rows = columns(np.random.default_rng(4), 3, 20)
    item_hash = rows.item_hash + (user == "other")
    return example(replace(rows, item_hash=item_hash, action_bits=np.full(3, bits, np.uint32)), 1, user=user)


def test_a_choice_counts_as_much_as_the_heaviest_of_its_kinds() -> None:
    heavy = replace(TRAINER, kind_weights={MODEL.kinds[2]: 4.0})
    found = {}
    for name, bits in (("light", 2), ("both", 6)):
        learner = Learner(MODEL, heavy)
        both = [done(bits, "u"), done(2, "other")]
        learner.step(both)
        weighed, equal = twin(learner), twin(Learner(MODEL, TRAINER))
        equal.step(both)
        weighed.step(both)
        equal.step(both)
        rows = learner.items.lookup(np.array([each.interactions.item_hash[-1] for each in both]))
        found[name] = weighed.memory.arrays.seen[rows] / equal.memory.arrays.seen[rows]
        is_same = torch.allclose(weighed.items.weight[rows], equal.items.weight[rows], atol=1e-3)
        assert is_same == (name == "light")
    assert found["light"].tolist() == pytest.approx([1, 1], rel=1e-3)
    assert found["both"].tolist() == pytest.approx([4, 1], rel=1e-3)
