"""Tokens against their definition in float64: values, every gradient, any level and any number of threads."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.tokens import TokenParams, token_gradients, tokens
from tests.kernels.yardstick import assert_same_bits, force, levels, relative_error

CASES: dict[str, dict[str, Any]] = {
    "a live step": {"num": 560, "rows": 700, "width": 64, "model": 64, "kinds": 3},
    "with sides and values": {"num": 70, "rows": 30, "width": 64, "model": 64, "kinds": 3, "side": True, "value": True},
    "odd widths": {"num": 131, "rows": 9, "width": 9, "model": 21, "kinds": 5, "side": True, "value": True},
    "many": {"num": 3000, "rows": 50, "width": 8, "model": 16, "kinds": 1},
    "one": {"num": 1, "rows": 3, "width": 3, "model": 2, "kinds": 2},
    "none": {"num": 0, "rows": 3, "width": 3, "model": 2, "kinds": 2},
}
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def make(num: int, rows: int, width: int, model: int, kinds: int, *, side: bool = False, value: bool = False) -> Any:
    """Table, places, kinds, values, sides; weights; and the gradient of the tokens."""
    generator = torch.Generator().manual_seed(num)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = normal(num) * 10
    values[::3] = torch.nan
    inputs = (
        normal(rows, width), torch.randint(rows, (num,), generator=generator),
        (torch.rand(num, kinds, generator=generator) < 0.5).double(), values if value else None,
        normal(num, model) if side else None,
    )  # fmt: skip
    params = TokenParams(
        normal(width, model), normal(model), normal(kinds, model), normal(model, model),
        normal(2, model) if value else None,
    )  # fmt: skip
    return inputs, params, normal(2 * num, model)


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor.to(dtype, copy=True) if tensor is not None and tensor.is_floating_point() else tensor


def by_definition(inputs: Inputs, params: TokenParams, grad_TM: Tensor) -> dict[str, Tensor]:
    leaves = {
        "table": inputs[0],
        "side": inputs[4],
        **{each.name: getattr(params, each.name) for each in fields(params)},
    }
    present = {name: leaf.requires_grad_() for name, leaf in leaves.items() if leaf is not None}
    tokens_TM = tokens(*inputs, params, backend="reference")
    torch.autograd.backward((tokens_TM * grad_TM).sum())
    slopes = {f"d {n}": torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for n, leaf in present.items()}
    return {"tokens": tokens_TM.detach(), **slopes}


def by_kernel(inputs: Inputs, params: TokenParams, grad_TM: Tensor) -> dict[str, Tensor]:
    table, place, kinds, value, side = (cast(each, torch.float32) for each in inputs)
    assert table is not None
    assert place is not None
    assert kinds is not None
    weights = TokenParams(*(cast(getattr(params, each.name), torch.float32) for each in fields(params)))  # type: ignore[arg-type]
    tokens_TM = tokens(table, place, kinds, value, side, weights, backend="cpp")
    slopes = TokenParams(*(None if w is None else torch.full_like(w, torch.nan) for w in vars(weights).values()))  # type: ignore[arg-type]
    d_table, d_side = torch.zeros_like(table), None if side is None else torch.full_like(side, torch.nan)
    token_gradients(grad_TM.float(), tokens_TM, table, place, kinds, value, weights, slopes, d_table, d_side)
    found = {"tokens": tokens_TM, "d table": d_table, "d side": d_side}
    found |= {f"d {each.name}": getattr(slopes, each.name) for each in fields(slopes)}
    return {name: each for name, each in found.items() if each is not None}


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", CASES)
def test_tokens_and_gradients_are_the_definitions(case: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, level)
    inputs, params, grad_TM = make(**CASES[case])
    expected, found = by_definition(inputs, params, grad_TM), by_kernel(inputs, params, grad_TM)
    assert expected.keys() == found.keys()
    for name, each in expected.items():
        if each.numel() and float(each.norm()):
            assert relative_error(found[name], each) < 5e-6, name
            assert relative_error(torch.zeros_like(each), each) > 0.9, name  # nothing does not pass for right
        else:
            assert not found[name].any(), name


def test_the_tables_gradient_is_added_to() -> None:
    inputs, params, grad_TM = make(**CASES["one"])
    once = by_kernel(inputs, params, grad_TM)["d table"]
    table, place, kinds, _, _ = (cast(each, torch.float32) for each in inputs)
    assert table is not None
    assert place is not None
    assert kinds is not None
    weights = TokenParams(*(cast(each, torch.float32) for each in vars(params).values()))  # type: ignore[arg-type]
    d_table, made = torch.ones_like(table), tokens(table, place, kinds, None, None, weights)
    token_gradients(grad_TM.float(), made, table, place, kinds, None, weights, weights, d_table, None)
    torch.testing.assert_close(d_table, once + 1)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    inputs, params, grad_TM = make(**CASES["many"])
    assert_same_bits(lambda: by_kernel(inputs, params, grad_TM), (1, 2, 5))


def test_what_does_not_fit_together_is_refused() -> None:
    inputs, params, _ = make(**CASES["one"])
    with pytest.raises(ValueError, match="side_nM: expected"):
        tokens(*inputs[:4], torch.zeros(2, 2), params)
    with pytest.raises(ValueError, match="item_weight: expected"):
        tokens(torch.zeros(3, 4), *inputs[1:], params)
