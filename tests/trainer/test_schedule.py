"""The dense weights' optimiser: the schedules, and AdamW against torch's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from model.hstu import HSTU
from tests.trainer.samples import MODEL, TRAINER, World
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from trainer.network.optim import AdamW, lr_scale

pytestmark = pytest.mark.usefixtures("one_thread")
WSA = TrainerConfig(schedule="wsa", warmup_steps=4, stable_steps=6, anneal_steps=10, final_lr_ratio=0.2)


def test_warm_up_rises_in_a_line_then_stays_then_falls_by_half_a_cosine_and_remains() -> None:
    scales = [lr_scale(WSA, step) for step in range(40)]
    assert scales[:4] == [0.25, 0.5, 0.75, 1.0]
    assert scales[4:10] == [1.0] * 6
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * place / 10)) / 2 for place in range(1, 11)]
    assert scales[10:20] == pytest.approx(expected)
    assert scales[20:] == pytest.approx([0.2] * 20)
    assert scales[4:] == sorted(scales[4:], reverse=True)


def test_constant_is_one_after_the_warm_up() -> None:
    assert [lr_scale(TrainerConfig(), step) for step in (0, 1, 10**6)] == [1.0] * 3
    assert [lr_scale(TrainerConfig(warmup_steps=2), step) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_annealing_in_no_steps_is_at_its_end_at_once() -> None:
    config = replace(WSA, anneal_steps=0)
    assert [lr_scale(config, step) for step in (9, 10, 11)] == pytest.approx([1.0, 0.2, 0.2])


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), (1, 2, 2))]


@pytest.mark.parametrize(("weight_decay", "clip_norm"), [(0.0, 0.0), (0.1, 0.0), (0.05, 0.7)])
def test_adamw_is_torchs(weight_decay: float, clip_norm: float) -> None:
    config = TrainerConfig(weight_decay=weight_decay, clip_norm=clip_norm)
    ours, theirs, generator = parameters(), parameters(), torch.Generator().manual_seed(1)
    flat = AdamW(ours, config)
    expected = torch.optim.AdamW(
        theirs, lr=1.0, betas=(config.beta1, config.beta2), eps=config.adam_eps, weight_decay=weight_decay
    )
    for step in range(12):
        for left, right in zip(ours, theirs, strict=True):
            right.grad = torch.randn(left.shape, generator=generator)
            torch.autograd.backward((left * right.grad).sum())
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(theirs, clip_norm)
        for group in expected.param_groups:
            group["lr"] = 0.01 * (1 + step)
        flat.step(0.01 * (1 + step))
        expected.step()
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
            assert left.grad is not None
            assert not left.grad.any()


@pytest.mark.parametrize(("weight_decay", "clip_norm"), [(0.0, 0.0), (0.05, 0.7)])
def test_after_its_last_step_adam_is_followed_by_torchs_gradient_descent(weight_decay: float, clip_norm: float) -> None:
    config = TrainerConfig(weight_decay=weight_decay, clip_norm=clip_norm, sgd_after_steps=3, sgd_lr_ratio=5.0)
    ours, generator = parameters(), torch.Generator().manual_seed(1)
    flat, adam = AdamW(ours, config), AdamW(parameters(), replace(config, sgd_after_steps=0))
    for step in range(6):
        gradient = torch.randn(flat.flat.shape, generator=generator)
        before = flat.flat.clone()
        for each in (flat, adam):
            each.gradient.copy_(gradient)
            each.step(0.01)
        assert torch.equal(flat.flat, adam.flat) == (step < 3)
        if step >= 3:
            clipped = gradient * min(1.0, clip_norm / float(gradient.norm())) if clip_norm else gradient
            torch.testing.assert_close(flat.flat, before * (1 - 0.05 * weight_decay) - 0.05 * clipped)
            assert not flat.gradient.any()


def test_an_optimiser_restored_around_the_switch_goes_on_in_the_same_way() -> None:
    config, generator = TrainerConfig(sgd_after_steps=3), torch.Generator().manual_seed(1)
    whole = AdamW(parameters(), config)
    for step in range(6):
        resumed = AdamW(parameters(), config)
        resumed.load_state_dict({name: array.copy() for name, array in whole.state_dict().items()})
        gradient = torch.randn(whole.flat.shape, generator=generator)
        for each in (whole, resumed):
            each.gradient.copy_(gradient)
            each.step(0.01)
        assert torch.equal(whole.flat, resumed.flat), step


def test_dropout_falls_from_the_lowest_layer_to_the_highest_in_equal_steps() -> None:
    config = TrainerConfig(dropout=0.4, top_dropout_ratio=0.25)
    assert config.dropouts(3) == pytest.approx((0.4, 0.25, 0.1))
    assert config.dropouts(1) == (0.4,)
    assert TrainerConfig(dropout=0.4).dropouts(2) == (0.4, 0.4)


@pytest.mark.parametrize("block", ["hstu", "fuxi"])
def test_each_layer_drops_at_its_own_rate(block: str) -> None:
    """With a rate of zero in the highest layer, the rest is what the lower layer left."""
    model, generator = HSTU(replace(MODEL, block=block)), torch.Generator().manual_seed(2)
    x_TM, offsets = torch.randn(6, MODEL.model_width, generator=generator), torch.tensor([0, 6])
    times = 60_000 * torch.arange(6)
    pairs: dict[str, Any] = {"time_buckets": model.time_buckets, "query_time_T": times, "key_time_T": times}
    low, high = model.layers
    with torch.no_grad():
        found = model.encode(x_TM, offsets, times, times, dropouts=(0.5, 0.0), seed=3)
        lower = low(x_TM, offsets, dropout=0.5, seed=3 * 64, **pairs)
        assert torch.equal(found, high(lower, offsets, **pairs))
        assert not torch.equal(found, model.encode(x_TM, offsets, times, times, dropouts=(0.5, 0.5), seed=3))


def test_parameters_are_views_of_the_flat_vector_also_after_loading() -> None:
    ours, other = parameters(), parameters()
    first, second = AdamW(ours, TRAINER), AdamW(other, TRAINER)
    for each in ours:
        torch.autograd.backward(each.sum())
    first.step(0.1)
    second.load_state_dict({name: array.copy() for name, array in first.state_dict().items()})
    for left, right in zip(ours, other, strict=True):
        assert torch.equal(left, right)
        assert right.data_ptr() >= second.flat.data_ptr()
    assert second.num_steps == 1


def test_a_parameter_without_a_gradient_counts_as_zero() -> None:
    ours = parameters()
    flat = AdamW(ours, TRAINER)
    torch.autograd.backward(ours[0].sum())
    assert flat.gradient.tolist() == [1.0] * 12 + [0.0] * 9


def test_the_schedule_scales_every_rate_of_a_step() -> None:
    still = replace(TRAINER, schedule="wsa", anneal_steps=1, final_lr_ratio=0.0)
    learner, world = Learner(MODEL, still), World()
    learner.step(world.examples(8))
    dense, items = learner.optimiser.flat.clone(), learner.items.weight.clone()
    learner.step(world.examples(8))
    assert torch.equal(learner.optimiser.flat, dense)
    known = torch.from_numpy(learner.items.live_rows()[:5])
    assert torch.equal(learner.items.weight[known], items[known])
