"""Row-wise Adagrad against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import KernelUnavailable, rowwise_adagrad_
from kernels.adagrad.cpp import adagrad_operator
from tests.kernels.yardstick import assert_same_bits, force, levels, relative_error

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def make_inputs(num_rows: int, num: int, width: int, seed: int = 0) -> Inputs:
    torch.manual_seed(seed)
    rows_N = torch.randint(-1, num_rows, (num,))
    return torch.randn(num_rows, width), torch.rand(num_rows), rows_N, torch.randn(num, width)


def step(inputs: Inputs, dtype: torch.dtype, backend: str, *, grad_dtype: torch.dtype | None = None) -> Inputs:
    """Copies of weight and state after a step, and of the weight before it."""
    weight_VD, state_V, rows_N, grad_ND = inputs
    weight_VD = weight_VD.to(dtype, copy=True)
    state_V = state_V.to(torch.float64 if dtype == torch.float64 else torch.float32, copy=True)
    grad_ND = grad_ND.to(grad_dtype or dtype)
    rowwise_adagrad_(weight_VD, state_V, rows_N, grad_ND, lr=0.1, eps=1e-8, weight_decay=0.01, backend=backend)
    return weight_VD, state_V, rows_N, grad_ND


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("width", [1, 7, 16, 50, 64, 130])
def test_a_step_is_that_of_float64(monkeypatch: pytest.MonkeyPatch, level: str, width: int) -> None:
    force(monkeypatch, level)
    inputs = make_inputs(100, 300, width)
    exact, result = step(inputs, torch.float64, "reference"), step(inputs, torch.float32, "cpp")
    assert relative_error(result[0] - inputs[0], exact[0] - inputs[0].double()) < 1e-5
    assert relative_error(result[1], exact[1]) < 1e-5
    zeros = torch.zeros_like(result[0])  # the canary: doing nothing must fail
    assert relative_error(zeros, exact[0] - inputs[0].double()) > 0.9


@given(num_rows=st.integers(1, 5000), num=st.integers(0, 400), width=st.integers(1, 40), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_any_shape_is_close_and_other_rows_are_untouched(num_rows: int, num: int, width: int, seed: int) -> None:
    inputs = make_inputs(num_rows, num, width, seed)
    exact, result = step(inputs, torch.float64, "reference"), step(inputs, torch.float32, "cpp")
    torch.testing.assert_close(result[0].double(), exact[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result[1].double(), exact[1], rtol=1e-5, atol=1e-6)
    touched_V = torch.zeros(num_rows, dtype=torch.bool)
    touched_V[inputs[2][inputs[2] >= 0]] = True
    assert torch.equal(result[0][~touched_V], inputs[0][~touched_V])
    assert torch.equal(result[1][~touched_V], inputs[1][~touched_V])


@pytest.mark.parametrize("level", levels())
def test_bfloat16_weights_are_the_float32_step_rounded(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    force(monkeypatch, level)
    weight_VD, state_V, rows_N, grad_ND = make_inputs(100, 300, 50)
    rounded = (weight_VD.bfloat16(), state_V, rows_N, grad_ND.bfloat16())
    whole = step(rounded, torch.float32, "cpp")
    result = step(rounded, torch.bfloat16, "cpp")
    assert torch.equal(result[0], whole[0].bfloat16())
    assert torch.equal(result[1], whole[1])
    mixed = step(rounded, torch.float32, "cpp", grad_dtype=torch.bfloat16)
    assert torch.equal(mixed[0], whole[0])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    inputs = make_inputs(1000, 20_000, 24)
    assert_same_bits(lambda: step(inputs, torch.float32, "cpp"), (1, 2, 3, 7))


def test_repeats_are_added_in_the_order_of_positions() -> None:
    # 1e8 + 1 - 1e8 is 0 in float32, 1e8 - 1e8 + 1 is 1.
    weight_VD, state_V = torch.zeros(2, 1), torch.zeros(2)
    grad_ND = torch.tensor([[1e8], [1e8], [1.0], [-1e8], [-1e8], [1.0]])
    rowwise_adagrad_(weight_VD, state_V, torch.tensor([0, 1, 0, 0, 1, 1]), grad_ND, lr=1.0)
    assert state_V.tolist() == [0.0, 1.0]
    assert weight_VD[:, 0].tolist() == [0.0, -1.0]


def test_rows_beyond_the_digits_of_one_sorting_pass_are_kept_apart() -> None:
    rows_N = torch.tensor([0, 2048, 2048 * 2048, 1, 2049, 2048 * 2048, 5_000_000])
    weight_VD, state_V = torch.zeros(5_000_001, 1), torch.zeros(5_000_001)
    rowwise_adagrad_(weight_VD, state_V, rows_N, torch.ones(7, 1), lr=1.0)
    assert state_V[rows_N].tolist() == [1, 1, 4, 1, 1, 4, 1]
    assert float(state_V.sum()) == 9.0


def test_bad_arguments_say_what_was_expected_and_change_nothing() -> None:
    weight_VD, state_V, rows_N, grad_ND = make_inputs(10, 5, 4)
    before = weight_VD.clone()
    with pytest.raises(IndexError, match="expected rows -1 to 9, got 3 to 10"):
        rowwise_adagrad_(weight_VD, state_V, torch.tensor([3, 10, 4, 5, 6]), grad_ND, lr=0.1)
    with pytest.raises(ValueError, match="rows_N: expected"):
        rowwise_adagrad_(weight_VD, state_V, rows_N.int(), grad_ND, lr=0.1)
    with pytest.raises(ValueError, match=r"grad_ND: expected \(5, 4\)"):
        rowwise_adagrad_(weight_VD, state_V, rows_N, grad_ND[:, :3], lr=0.1)
    with pytest.raises(ValueError, match="weight_VD: expected contiguous"):
        rowwise_adagrad_(weight_VD.T.contiguous().T, state_V, rows_N, grad_ND, lr=0.1)
    with pytest.raises(ValueError, match="state_V: expected contiguous"):
        rowwise_adagrad_(weight_VD, state_V[:9], rows_N, grad_ND, lr=0.1)
    with pytest.raises(ValueError, match="expected 0 or above"):
        rowwise_adagrad_(weight_VD, state_V, rows_N, grad_ND, lr=-0.1)
    with pytest.raises(KernelUnavailable, match="float32 and bfloat16"):
        rowwise_adagrad_(weight_VD.double(), state_V.double(), rows_N, grad_ND.double(), lr=0.1)
    assert torch.equal(weight_VD, before)


def test_the_operator_keeps_torchs_rules() -> None:
    weight_VD, state_V, rows_N, grad_ND = make_inputs(10, 5, 4)
    torch.library.opcheck(adagrad_operator, (weight_VD, state_V, rows_N, grad_ND, 0.1, 1e-8, 0.0, 0, 0, 0))
