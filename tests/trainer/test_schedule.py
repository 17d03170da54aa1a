"""The dense weights' optimiser: the schedules, and AdamW against torch's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.trainer.samples import MODEL, TRAINER, World
from trainer.config import TrainerConfig
from trainer.optim import AdamW, lr_scale
from trainer.step import Learner

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
