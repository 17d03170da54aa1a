"""A step computed in shards learns what a step in one piece learns, and a balanced tree adds up the same everywhere."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.config import ModelConfig
from tests.trainer.samples import FUXI, MODEL, SAMPLED, TRAINER, World, taught
from trainer.checkpoint.snapshot import learner_arrays
from trainer.config import TrainerConfig
from trainer.examples.batch import build_batch
from trainer.learner.step import Learner
from trainer.ranks.shards import COUNTING_TOKENS, TreeSum, added, bounds_of, first_tokens, take_users

CONFIGS = {
    "exact": TRAINER, "sampled": SAMPLED, "reference": replace(TRAINER, backend="reference"),
    "one loss": replace(TRAINER, rank_weight=0.0), "whole context": replace(SAMPLED, context_gradient=True),
    "evicting": replace(SAMPLED, evict_after_days=0.02, evict_every_steps=2, admit_after=2),
}  # fmt: skip


def trained(
    config: TrainerConfig, num_steps: int = 6, size: int = 9, model: ModelConfig = MODEL
) -> tuple[Learner, list[Any]]:
    """A learner, and the reports of its steps."""
    learner, world = Learner(model, config), World(seed=3, num_users=12)
    return learner, [learner.step(world.examples(size)) for _ in range(num_steps)]


def learned(learner: Learner) -> dict[str, NDArray[Any]]:
    """What gradients have changed."""
    arrays = learner_arrays(learner)
    wanted = ("optimiser.", "items.weight", "items.state", "domains.weight", "features.weight", "features.state")
    return {name: array for name, array in arrays.items() if name.startswith(wanted)}


@pytest.mark.parametrize(("name", "model"), [*((name, MODEL) for name in CONFIGS), ("exact", FUXI), ("sampled", FUXI)])
def test_shards_learn_what_one_piece_learns(name: str, model: ModelConfig) -> None:
    (whole, reports), (parts, its) = (trained(replace(CONFIGS[name], shards=each), model=model) for each in (1, 4))
    for one, other in zip(reports, its, strict=True):
        np.testing.assert_allclose(other.retrieval_loss, one.retrieval_loss, rtol=1e-3)
        np.testing.assert_allclose(other.ranking_loss, one.ranking_loss, rtol=1e-3)
    for key, array in learned(whole).items():
        np.testing.assert_allclose(learned(parts)[key], array, rtol=5e-3, atol=5e-4, err_msg=key)
    assert parts.metrics.summary()["retrieval"]["all"] == whole.metrics.summary()["retrieval"]["all"]


def test_a_shard_whose_gradients_are_lost_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: every other shard's gradients are not added."""
    add, num_added = TreeSum.add, itertools.count()

    def add_some(self: TreeSum, flat: torch.Tensor | None) -> None:
        add(self, flat.zero_() if flat is not None and next(num_added) % 2 else flat)

    monkeypatch.setattr(TreeSum, "add", add_some)
    with pytest.raises(AssertionError):
        test_shards_learn_what_one_piece_learns("exact", MODEL)


@pytest.mark.parametrize("num_shards", [1, 2, 4, 16])
def test_shards_are_consecutive_users_and_all_but_the_first_have_about_as_many_tokens(num_shards: int) -> None:
    learner, world = taught(num_steps=3)
    batch = build_batch(world.examples(40), learner.histories, MODEL)
    bounds = bounds_of(batch, num_shards)
    assert bounds[0] == 0
    assert bounds[-1] == len(batch.starts_B1) - 1
    assert (np.diff(bounds) >= 0).all()
    longest = int(np.diff(batch.starts_B1).max())
    parts = [take_users(batch, first, stop) for first, stop in itertools.pairwise(bounds.tolist())]
    first = first_tokens(batch.num_tokens, batch.num_targets, num_shards) / 2 if num_shards > 1 else len(batch.item_n)
    assert abs(len(parts[0].item_n) - first) <= longest
    for part in parts[1:]:
        assert abs(len(part.item_n) - (len(batch.item_n) - first) / (num_shards - 1)) <= longest
    for field in ("item_n", "bits_n", "feature_nF", "seed_B", "user_feature_BF", "learned_bits_R", "is_wanted_R"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(batch, field))
    before = 0
    for part, first in zip(parts, bounds, strict=False):
        np.testing.assert_array_equal(part.owner_n + first, batch.owner_n[before : before + len(part.item_n)])
        assert (part.previous_R < part.target_R).all()
        np.testing.assert_array_equal(part.item_n[part.target_R], batch.item_n[before:][part.target_R])
        before += len(part.item_n)


@pytest.mark.parametrize("num_shards", [2, 4, 8])
def test_the_first_shard_has_as_much_less_as_counting_takes(num_shards: int) -> None:
    assert first_tokens(80_000, 0, num_shards) == 80_000 // num_shards
    first = first_tokens(80_000, 100, num_shards)
    others = (80_000 - first) / (num_shards - 1)
    np.testing.assert_allclose(first + COUNTING_TOKENS * 100, others, rtol=1e-3)
    assert first_tokens(80_000, 4_000, num_shards) == 0, "a shard of a few tokens would cost more than it is worth"


def test_a_shard_that_is_missing_leaves_the_others_as_they_are() -> None:
    """Also where zeros are negative, so it does not matter whether a rank has it alone or beside others."""
    parts = torch.tensor([[1.0, -0.0], [2.0, -0.0], [4.0, -0.0], [8.0, -0.0]])
    total = added(parts, [1, 2])
    np.testing.assert_array_equal(total.numpy(), [6.0, -0.0])
    assert torch.signbit(total[1])


def test_the_sum_of_shards_has_the_same_bits_however_ranks_divide_them() -> None:
    shards = torch.randn(16, 1000, generator=torch.Generator().manual_seed(0)) * 10
    found = set()
    for size in (1, 2, 4, 8, 16):
        over_ranks = TreeSum()
        for part in shards.view(size, -1, 1000):
            over_one = TreeSum()
            for flat in part.clone():
                over_one.add(flat)
            over_ranks.add(over_one.total)
        assert over_ranks.total is not None
        found.add(over_ranks.total.numpy().tobytes())
    assert len(found) == 1
    assert shards.cumsum(0)[-1].numpy().tobytes() not in found, "added up one after the other, they differ"
