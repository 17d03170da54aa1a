"""Batches padded for CUDA graphs, on the same path without graphs: real tokens give what they give without it."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run in a process of its own by test_interpreter.py", allow_module_level=True)

from bench.on_gpu.single_pass import synthetic_examples
from model.config import ModelConfig
from model.hstu import HSTU
from tests.kernels.triton import cases
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from trainer.network.graph import Captures, PaddedEncoder, padded_size
from trainer.network.graph_step import PaddedStep
from wire.example import Example, rows_of

CONFIG = ModelConfig(
    num_layers=2, model_width=16, num_heads=1, qk_width=16, value_width=16, num_positions=40, num_time_buckets=8
)


def run(model: HSTU, lengths: list[int], encoder: PaddedEncoder | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(outputs, gradient of the inputs, gradients of the weights) of one batch."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths), 16, generator=generator).requires_grad_()
    offsets, times = cases.offsets_of(lengths), cases.times(generator, lengths)
    if encoder is None:
        y = model.encode(x, offsets, times + 700, times, in_order=True, backend="triton")
    else:
        y = encoder(x, *(each.numpy() for each in (offsets, times + 700, times)), np.ones(len(x), np.bool_))
    weights = [parameter for name, parameter in model.named_parameters() if name.startswith("layers.")]
    x_grad, *grads = torch.autograd.grad(y, [x, *weights], torch.randn(y.shape, generator=generator))
    return y.detach(), x_grad, torch.cat([grad.flatten() for grad in grads])


def with_domains(example: Example) -> Example:
    """The example with its items in three domains, which the layers see as side inputs."""
    rows = example.interactions
    return replace(example, rows=rows_of(replace(rows, domain_hash=1 + rows.item_hash % 3)))


def test_padding_changes_nothing_for_real_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.layer.check_offsets", lambda *_: None)  # on a GPU, offsets are not read
    monkeypatch.setattr("trainer.network.graph.LEAST_TOKENS", 64)  # the interpreter is slow
    model = HSTU(CONFIG)
    captures = Captures(wanted=False)
    encoder = PaddedEncoder(model, captures, backend="triton")
    for seed, lengths in enumerate(([30, 0, 7], [3, 5], [50, 30])):
        plain, padded = (run(model, lengths, each, seed) for each in (None, encoder))
        assert torch.equal(plain[0], padded[0])
        assert torch.equal(plain[1], padded[1])
        assert cases.error(padded[2], plain[2]) < 1e-5
    assert len(captures._known) == 2


@pytest.mark.parametrize("context_gradient", [False, True])
def test_a_padded_step_learns_what_a_step_learns(context_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users of different lengths, first interactions, new items, domains; later losses depend on what was learned."""
    monkeypatch.setattr("kernels.layer.check_offsets", lambda *_: None)
    monkeypatch.setattr("trainer.network.graph_step.LEAST_INTERACTIONS", 16)
    monkeypatch.setattr("trainer.network.graph_step.LEAST_USERS", 4)
    monkeypatch.setattr("trainer.network.graph_step.LEAST_ROWS", 80)
    losses: dict[str, list[tuple[float, float]]] = {}
    for way in ("unpadded", "two graphs", "one graph"):
        config = TrainerConfig(
            exclude_seen=False, context_gradient=context_gradient, graph_gradients=way == "one graph"
        )
        learner = Learner(CONFIG, config)
        if way != "unpadded":
            captures = Captures(wanted=False)
            learner.forward_pass.step_graphs = PaddedStep(
                learner.model, captures, feedback="reversal", context_gradient=context_gradient, backend="triton"
            )
        examples = map(with_domains, synthetic_examples(5, 30, 8, 3, 12))
        losses[way] = []
        for _ in range(3):
            report = learner.step(list(islice(examples, 4)))
            losses[way].append((report.retrieval_loss, report.ranking_loss))
    for ours, theirs in zip(losses["two graphs"], losses["unpadded"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert losses["one graph"] == losses["two graphs"]


def test_sizes_are_few_and_at_most_half_as_much_again() -> None:
    sizes = [padded_size(n, 256) for n in range(1, 20_000)]
    assert all(n <= size <= max(256, 1.5 * n) for n, size in enumerate(sizes, start=1))
    assert len(np.unique(sizes)) == 14
