"""The C++ kernels as torch operators: everything that `torch.library.custom_op` does, without its cost at startup."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from kernels.adagrad.cpp import adagrad_operator
from kernels.attention.cpp import attention_op

FIRST_USE = """
import sys, torch
from kernels import LayerParams, full_softmax, hstu_attention, hstu_layer, rowwise_adagrad_, sampled_softmax

offsets_B1 = torch.tensor([0, 4, 9])
x_TM, q_THD = torch.randn(9, 4, requires_grad=True), torch.randn(9, 2, 2, requires_grad=True)
hstu_attention(q_THD, q_THD, q_THD, offsets_B1, norm_len=10.0).sum().backward()
weights = LayerParams(
    norm_in_weight_M=torch.ones(4), norm_in_bias_M=torch.zeros(4), uvqk_weight=torch.randn(4, 16), uvqk_bias=None,
    norm_out_weight=torch.ones(4), norm_out_bias=torch.zeros(4), out_weight=torch.randn(4, 4), out_bias=None,
)
hstu_layer(x_TM, weights, offsets_B1, num_heads=2, norm_len=10.0).sum().backward()
full_softmax(x_TM, torch.randn(5, 4), torch.zeros(9, dtype=torch.int64)).mean().backward()
sampled_softmax(x_TM, torch.randn(5, 4), torch.zeros(9, dtype=torch.int64), torch.arange(1, 5)).mean().backward()
rowwise_adagrad_(torch.zeros(5, 4), torch.zeros(5), torch.tensor([1]), torch.ones(1, 4), lr=0.1)
print("torch._dynamo" in sys.modules)
"""


def test_a_process_that_uses_every_operator_never_loads_the_compiler() -> None:
    ran = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "False\n"


def attend(q: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
    none = [None] * 8
    return attention_op(q * 2, q, q, offsets, 10.0, bias, *none).sin()


def test_torch_compiles_an_operator_and_its_gradient_into_one_graph() -> None:
    q, bias, offsets = torch.randn(9, 2, 8), torch.randn(1, 12), torch.tensor([0, 4, 9])
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    results = []
    for function in (attend, compiled):
        inputs = (q.clone().requires_grad_(), bias.clone().requires_grad_())
        out = function(*inputs, offsets)
        results.append((out, *torch.autograd.grad(out.sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def update(weight: Tensor, state: Tensor) -> None:
    adagrad_operator(weight, state, torch.tensor([1, 2]), torch.ones(2, 4), 0.1, 1e-8, 0.0, 0, 0, 0)


def test_autograd_refuses_a_backward_that_needs_what_an_operator_has_overwritten() -> None:
    weight, state = torch.ones(5, 4), torch.zeros(5)
    needs_weight = (weight * torch.ones(5, 4, requires_grad=True)).sum()
    update(weight, state)
    assert state._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        needs_weight.backward()


def test_an_operator_writes_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        weight = torch.ones(5, 4)
        update(weight, torch.zeros(5))
    assert not torch.equal(weight, torch.ones(5, 4))
