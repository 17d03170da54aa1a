"""The heads of a training step against their definition in float64: predictions, losses, every gradient, any level."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.heads import FEEDBACK, HeadInputs, HeadOutputs, HeadParams, HeadRules, heads, reference
from tests.kernels.yardstick import assert_same_bits, force, levels, relative_error

CASES: dict[str, dict[str, int]] = {
    "a live step": {"outputs": 90, "targets": 30, "queries": 27, "rows": 700, "model": 64, "width": 64, "kinds": 3},
    "odd widths": {"outputs": 20, "targets": 9, "queries": 5, "rows": 37, "model": 13, "width": 18, "kinds": 7},
    "whole vectors": {"outputs": 9, "targets": 4, "queries": 3, "rows": 64, "model": 32, "width": 33, "kinds": 1},
    "narrow": {"outputs": 9, "targets": 4, "queries": 3, "rows": 3, "model": 5, "width": 4, "kinds": 1},
    "nothing retrieved": {"outputs": 9, "targets": 4, "queries": 0, "rows": 20, "model": 8, "width": 9, "kinds": 2},
}  # fmt: skip
RULES = HeadRules(temperature=0.2, bias_scale=0.7, norm_eps=1e-5, rank_share=0.6)


def make_inputs(outputs: int, targets: int, queries: int, rows: int, model: int, width: int, kinds: int) -> HeadInputs:
    """Random ones: some queries from the start, some targets without a row or in one that does not compete, one row of
    zeros."""
    generator = torch.Generator().manual_seed(outputs + rows)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def below(most: int, num: int) -> Tensor:
        return torch.randint(most, (num,), generator=generator)

    table_VD = normal(rows, width)
    table_VD[-1] = 0.0
    valid_V = torch.rand(rows, generator=generator) < 0.8
    valid_V[0] = False
    return HeadInputs(
        y_SM=normal(outputs, model), output_R=below(outputs, targets), output_Q=below(outputs + 3, queries) - 3,
        table_VD=table_VD, valid_V=valid_V, target_Q=below(rows, queries), prior_RPK=normal(targets, 2, kinds),
        learned_RK=(torch.rand(targets, kinds, generator=generator) < 0.5).double(), is_new_R=below(3, targets) > 0,
    )  # fmt: skip


def make_params(model: int, width: int, kinds: int) -> HeadParams:
    generator = torch.Generator().manual_seed(width)

    def normal(*shape: int) -> Tensor:
        return 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    return HeadParams(
        start_M=normal(model), query_weight=normal(model, width - 1), query_bias=normal(width - 1),
        rank_weight=normal(model, kinds), rank_bias_K=normal(kinds), rank_prior_PK=normal(2, kinds),
        norm_weight_M=1 + normal(model), norm_bias_M=normal(model),
    )  # fmt: skip


def cast(each: Any, dtype: torch.dtype) -> Any:
    """The same with every float tensor in another type, on its own."""
    names = [one.name for one in fields(each)]
    tensors = {name: getattr(each, name) for name in names}
    return type(each)(**{n: t.to(dtype, copy=True) if t.is_floating_point() else t.clone() for n, t in tensors.items()})


def by_definition(inputs: HeadInputs, params: HeadParams, rules: HeadRules) -> dict[str, Tensor]:
    """Predictions, losses and gradients in float64, by autograd."""
    inputs, params = cast(inputs, torch.float64), cast(params, torch.float64)
    leaves = {"y_SM": inputs.y_SM, "table_VD": inputs.table_VD}
    leaves |= {one.name: getattr(params, one.name) for one in fields(params)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    logit_QV, logit_RK, query_QD, retrieval, ranking = reference.losses(inputs, params, rules)
    torch.autograd.backward(retrieval + rules.rank_share * ranking)
    said = {
        "logit_QV": logit_QV,
        "logit_RK": logit_RK,
        "query_QD": query_QD,
        "losses": torch.stack([retrieval, ranking]),
    }
    slopes = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    return {**{name: each.detach() for name, each in said.items()}, **{f"d {n}": g for n, g in slopes.items()}}


def by_kernel(inputs: HeadInputs, params: HeadParams, rules: HeadRules) -> dict[str, Tensor]:
    inputs, params = cast(inputs, torch.float32), cast(params, torch.float32)
    slopes = HeadParams(**{one.name: torch.full_like(getattr(params, one.name), torch.nan) for one in fields(params)})
    out = heads(inputs, params, rules, slopes, backend="cpp")
    assert out.d_y_SM is not None
    assert out.d_table_VD is not None
    said = {"logit_QV": out.logit_QV, "logit_RK": out.logit_RK, "query_QD": out.query_QD}
    return {
        **said, "losses": torch.tensor([out.retrieval, out.ranking]), "d y_SM": out.d_y_SM,
        "d table_VD": out.d_table_VD, **{f"d {one.name}": getattr(slopes, one.name) for one in fields(slopes)},
    }  # fmt: skip


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float = 2e-5) -> None:
    for name, reference_tensor in expected.items():
        if not float(reference_tensor.norm() if reference_tensor.numel() else 0.0):
            assert not found[name].numel() or float(found[name].abs().max()) == 0.0, name
            continue
        assert relative_error(found[name], reference_tensor) < limit, name


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", CASES)
def test_predictions_losses_and_gradients_are_the_definitions(
    case: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    sizes = CASES[case]
    inputs = make_inputs(**sizes)
    params = make_params(sizes["model"], sizes["width"], sizes["kinds"])
    expected = by_definition(inputs, params, RULES)
    assert_close(by_kernel(inputs, params, RULES), expected)
    with pytest.raises(AssertionError):  # what is nearly nothing does not pass for right
        assert_close({name: torch.zeros_like(each) for name, each in expected.items()}, expected)


@pytest.mark.parametrize("feedback", FEEDBACK)
def test_late_kinds_are_taught_as_asked_for(feedback: str) -> None:
    inputs, params = make_inputs(**CASES["odd widths"]), make_params(13, 18, 7)
    rules = replace(RULES, feedback=feedback)
    assert not inputs.is_new_R.all()
    assert_close(by_kernel(inputs, params, rules), by_definition(inputs, params, rules))


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e4])
def test_rows_and_queries_of_any_length_have_the_definitions_gradients(scale: float) -> None:
    """Below the least length they are divided by that, and their direction does not matter."""
    sizes = CASES["odd widths"]
    inputs, params = make_inputs(**sizes), make_params(13, 18, 7)
    inputs = replace(inputs, y_SM=inputs.y_SM * scale, table_VD=inputs.table_VD * scale)
    params = replace(params, start_M=params.start_M * scale, query_bias=params.query_bias * scale)
    assert_close(by_kernel(inputs, params, RULES), by_definition(inputs, params, RULES), limit=1e-4)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    inputs, params = make_inputs(**CASES["a live step"]), make_params(64, 64, 3)
    assert_same_bits(lambda: by_kernel(inputs, params, RULES), (1, 2, 5))


def test_equal_rows_have_equal_logits() -> None:
    inputs, params = make_inputs(**CASES["a live step"]), make_params(64, 64, 3)
    inputs.table_VD[600:] = inputs.table_VD[3]
    logits = by_kernel(inputs, params, RULES)["logit_QV"]
    assert torch.equal(logits[:, 600:], logits[:, 3:4].expand(-1, 100))


def test_predictions_alone_are_the_same_and_touch_no_gradient() -> None:
    inputs, params = (
        cast(each, torch.float32) for each in (make_inputs(**CASES["a live step"]), make_params(64, 64, 3))
    )
    said: HeadOutputs = heads(inputs, params, RULES, None)
    assert said.d_y_SM is said.d_table_VD is None
    assert torch.equal(said.logit_QV, by_kernel(inputs, params, RULES)["logit_QV"])
    assert heads(inputs, params, RULES, None, backend="reference").retrieval == pytest.approx(said.retrieval, rel=1e-5)


def test_what_does_not_fit_together_is_refused() -> None:
    inputs, params = make_inputs(**CASES["narrow"]), make_params(5, 4, 1)
    for wrong in (replace(inputs, is_new_R=inputs.is_new_R[:1]), replace(inputs, valid_V=inputs.valid_V[:1])):
        with pytest.raises(ValueError, match=r"expected \("):
            heads(wrong, params, RULES, None)
    with pytest.raises(ValueError, match="feedback: expected one of"):
        heads(inputs, params, replace(RULES, feedback="late"), None)
