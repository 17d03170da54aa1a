"""The model on a jagged batch against one user and one target at a time, and what it must not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels import TimeBuckets
from model.config import ModelConfig
from model.hstu import HSTU
from tests.trainer.samples import (
    FUXI,
    MODEL,
    SAMPLED,
    TRAINER,
    columns,
    example,
    pieces_of,
    predict_slowly,
    taught,
    twin,
)
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch, build_batch
from trainer.learner.step import Learner
from wire.errors import ConfigError
from wire.example import Example, Interactions, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCKS = [MODEL, FUXI]


def as_built(batch: JaggedBatch) -> JaggedBatch:
    return batch


@torch.no_grad()
def answers_of(
    learner: Learner, examples: list[Example], change: Callable[[JaggedBatch], JaggedBatch] = as_built
) -> tuple[np.ndarray, np.ndarray]:
    """(R, D) queries and (R, K) logits of a batch, before it is learned; ``learner`` stays as it is."""
    other = twin(learner)
    batch = change(build_batch(examples, other.histories, other.model_config))
    forward = other.forward(
        replace(batch, is_wanted_R=np.ones(batch.num_targets, np.bool_)), int(batch.time_ms_n.max())
    )
    return forward.query_SD.numpy(), forward.logits_RK.numpy()


def strangers(num: int, seed: int = 0) -> list[Example]:
    """Examples of unknown users, each with a past and something new."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        past = columns(rng, int(rng.integers(5, 14)), 30)
        made.append(example(past, int(rng.integers(1, 5)), user_feature=int(rng.integers(3))))
    return made


def with_columns(each: Example, change: Callable[[Interactions], Interactions]) -> Example:
    return replace(each, rows=rows_of(change(each.interactions)))


def changed_behind(past: Interactions, index: int, rng: np.random.Generator) -> Interactions:
    """The interactions with other kinds at ``index``, and other values everywhere after it."""
    items, bits = past.item_hash.copy(), past.action_bits.copy()
    domains, values, features = past.domain_hash.copy(), past.value.copy(), past.feature_hash.copy()
    bits[index:] ^= rng.integers(1, 8, len(bits) - index).astype(np.uint32)
    values[index:] = rng.normal(size=len(bits) - index)
    behind = slice(index + 1, None)
    items[behind] = rng.permutation(items[behind]) + 7919 * rng.integers(0, 2, len(items[behind]))
    domains[behind] = rng.integers(0, 3, len(domains[behind]))
    features[behind] = rng.integers(0, 5, features[behind].shape)
    return replace(past, item_hash=items, action_bits=bits, domain_hash=domains, value=values, feature_hash=features)


def leak_of(
    learner: Learner, examples: list[Example], seed: int, change: Callable[[JaggedBatch], JaggedBatch] = as_built
) -> float:
    """How far predictions move when only what comes after them changes: 0 without leakage."""
    rng, worst = np.random.default_rng(seed), 0.0
    queries, logits = answers_of(learner, examples, change)
    first_R = np.cumsum([0, *(each.num_new for each in examples)])
    for _ in range(8):
        which = int(rng.integers(len(examples)))
        each = examples[which]
        nth = int(rng.integers(each.num_new))
        index, target = len(each.interactions) - each.num_new + nth, first_R[which] + nth
        other = list(examples)
        other[which] = replace(each, rows=rows_of(changed_behind(each.interactions, index, rng)))
        after_queries, after_logits = answers_of(learner, other, change)
        upto = slice(first_R[which], target + 1)
        elsewhere = np.delete(np.arange(len(queries)), np.arange(target, first_R[which + 1]))
        for before, after in ((queries, after_queries), (logits, after_logits)):
            for rows in (upto, elsewhere):
                worst = max(worst, float(np.abs(before[rows] - after[rows]).max(initial=0.0)))
    return worst


@pytest.mark.parametrize("model", BLOCKS, ids=lambda model: model.block)
@pytest.mark.parametrize("config", [TRAINER, SAMPLED], ids=["exact", "sampled"])
def test_a_jagged_batch_answers_as_one_user_and_one_target_at_a_time(config: TrainerConfig, model: ModelConfig) -> None:
    learner, world = taught(config, model)
    for _ in range(2):
        examples = world.examples(8)
        queries, logits = answers_of(learner, examples)
        slowly = predict_slowly(learner, examples)
        np.testing.assert_allclose(queries, [each.query_D for each in slowly], rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(
            torch.sigmoid(torch.from_numpy(logits)), [each.probability_K for each in slowly], rtol=2e-4, atol=2e-5
        )
        learner.step(examples)


def test_a_batch_of_all_users_is_each_user_alone() -> None:
    learner, world = taught()
    learner.step(world.examples(20))
    examples = world.examples(8)
    queries, logits = answers_of(learner, examples)
    users = list(dict.fromkeys(piece.user for piece in pieces_of(examples)))
    alone = [answers_of(learner, [each for each in examples if each.user == user]) for user in users]
    np.testing.assert_allclose(queries, np.concatenate([each[0] for each in alone]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, np.concatenate([each[1] for each in alone]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("model", BLOCKS, ids=lambda model: model.block)
@pytest.mark.parametrize("config", [TRAINER, SAMPLED], ids=["exact", "sampled"])
def test_what_comes_later_never_changes_a_prediction(config: TrainerConfig, model: ModelConfig, seed: int) -> None:
    learner, _ = taught(config, model, seed=seed)
    assert leak_of(learner, strangers(6, seed), seed) < 1e-5


def own_action_for_the_query(batch: JaggedBatch) -> JaggedBatch:
    return replace(batch, previous_R=batch.target_R)


def next_item_for_this_one(batch: JaggedBatch) -> JaggedBatch:
    items = batch.item_n.copy()
    items[batch.target_R - 1] = batch.item_n[batch.target_R]
    return replace(batch, item_n=items)


def target_one_too_early(batch: JaggedBatch) -> JaggedBatch:
    """The boundaries between users are lost: the batch becomes one long user."""
    return replace(batch, starts_B1=np.array([0, len(batch.item_n)]), owner_R=np.zeros_like(batch.owner_R))


def next_action_for_this_one(batch: JaggedBatch) -> JaggedBatch:
    return replace(batch, bits_n=np.roll(batch.bits_n, -1))


@pytest.mark.parametrize(
    "leak", [own_action_for_the_query, next_item_for_this_one, target_one_too_early, next_action_for_this_one]
)
def test_the_check_for_leakage_finds_a_batch_builder_that_leaks(leak: Callable[[JaggedBatch], JaggedBatch]) -> None:
    learner, _ = taught()
    assert leak_of(learner, strangers(6), 0, leak) > 1e-3


def test_an_action_before_the_prediction_does_change_it() -> None:
    learner, _ = taught()
    each = strangers(1)[0]
    bits = each.interactions.action_bits.copy()
    bits[len(bits) - each.num_new - 1] ^= 7
    other = replace(each, rows=rows_of(replace(each.interactions, action_bits=bits)))
    before, after = answers_of(learner, [each]), answers_of(learner, [other])
    for left, right in zip(before, after, strict=True):
        assert np.abs(left[0] - right[0]).max() > 1e-4


def test_the_time_of_the_next_request_is_known_when_it_is_answered() -> None:
    learner, _ = taught()
    for layer in learner.model.layers:
        layer.time_bias_GK.data.normal_()  # type: ignore[operator]
    each = replace(strangers(1)[0], num_new=1)
    times = each.interactions.timestamp_ms.copy()
    times[-1] += 86_400_000
    queries, _ = answers_of(learner, [each])
    later, _ = answers_of(learner, [replace(each, rows=rows_of(replace(each.interactions, timestamp_ms=times)))])
    assert np.abs(queries - later).max() > 1e-4
    slowly = predict_slowly(learner, [replace(each, rows=rows_of(replace(each.interactions, timestamp_ms=times)))])
    np.testing.assert_allclose(later[0], slowly[0].query_D, rtol=2e-4, atol=2e-5)


def test_a_value_that_is_absent_says_nothing_and_one_that_is_there_does() -> None:
    learner, _ = taught()
    model = learner.model
    model.value_M.data.normal_()
    item_nM, kinds_nK = torch.randn(4, 16), torch.ones(4, 3)
    values = torch.tensor([float("nan"), 0.0, 3.0, -3.0])
    with torch.no_grad():
        without = model.action_inputs(item_nM, kinds_nK)
        moved = model.action_inputs(item_nM, kinds_nK, values) - without
    expected = [
        torch.zeros(16),
        model.value_M[0],
        *(model.value_M[0] + s * np.log1p(3.0) * model.value_M[1] for s in (1, -1)),
    ]
    torch.testing.assert_close(moved, torch.stack(expected).detach(), rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    first, same, other = (Learner(MODEL, replace(TRAINER, seed=seed)).optimiser.flat for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_user_without_domain_and_features_is_answered_the_same_beside_others_who_have_them() -> None:
    learner, _ = taught()
    each, other = strangers(2)
    past = each.interactions
    bare = replace(past, domain_hash=np.zeros_like(past.domain_hash), feature_hash=np.zeros_like(past.feature_hash))
    plain = replace(each, rows=rows_of(bare), user_feature_hash=np.zeros(1, np.int64))
    alone, beside = answers_of(learner, [plain]), answers_of(learner, [plain, other])
    for left, right in zip(alone, beside, strict=True):
        np.testing.assert_allclose(left, right[: len(left)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_side", [False, True])
def test_tokens_and_their_gradients_are_those_of_the_formula(*, with_side: bool) -> None:
    model, generator = HSTU(replace(MODEL, use_value=False), seed=3).double(), torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    place_n, kinds_nK = torch.tensor([2, 0, 2, 4]), (normal(4, len(MODEL.kinds)) > 0).double()
    rows, side, weights = normal(5, MODEL.item_width), normal(4, MODEL.model_width), normal(8, MODEL.model_width)
    found = []
    for written_out in (True, False):
        model.zero_grad()
        rows_UD, side_nM = (each.clone().requires_grad_() for each in (rows, side))
        given = side_nM if with_side else None
        if written_out:
            tokens_TM = model.tokens(rows_UD, place_n, kinds_nK, None, given)
        else:
            item_nM = model.item_inputs(rows_UD[place_n], given)
            tokens_TM = model.interleave(item_nM, model.action_inputs(item_nM, kinds_nK))
        (tokens_TM * weights).sum().backward()
        leaves = {"rows": rows_UD, "side": side_nM, **dict(model.named_parameters())}
        gradients = {name: each.grad for name, each in leaves.items() if each.grad is not None}
        found.append({"tokens": tokens_TM, **gradients})
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("unit_ms", [1e-3, 1.0, 1000.0, 86_400_000.0, 1e10])
def test_as_many_time_buckets_may_be_configured_as_times_reach(unit_ms: float) -> None:
    def is_allowed(num_buckets: int) -> bool:
        try:
            ModelConfig(num_time_buckets=num_buckets, time_unit_ms=unit_ms)
        except ConfigError:
            return False
        return True

    most = max(filter(is_allowed, range(1, 300)))
    assert TimeBuckets.logarithmic(most, unit_ms=unit_ms).num_buckets == most
    with pytest.raises(ValueError, match=f"expected at most {most} "):
        TimeBuckets.logarithmic(most + 1, unit_ms=unit_ms)
