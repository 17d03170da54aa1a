"""The HSTU layer against its definition in float64: the output, every gradient, dropout, any level, any threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import (
    KernelUnavailable,
    LayerParams,
    Tail,
    hstu_attention,
    hstu_layer,
    hstu_layer_history,
    hstu_layer_output,
    hstu_layer_project,
)
from kernels.layer.dropout import keep_mask
from tests.kernels.jagged import Batch, make_batch
from tests.kernels.yardstick import assert_same_bits, force, forward_limit, levels, relative_error

CASES: dict[str, dict[str, Any]] = {
    "one head, width 50": {"lengths": [5, 0, 1, 100, 164], "heads": 1, "model": 50, "qk": 50, "value": 50},
    "two heads, no biases": {"lengths": [97, 3], "heads": 2, "model": 64, "qk": 32, "value": 16, "bias": False},
    "odd widths, dropout": {"lengths": [30, 3], "heads": 3, "model": 7, "qk": 5, "value": 11, "dropout": 0.2},
    "targets": {"lengths": [30, 3], "heads": 2, "model": 16, "qk": 8, "value": 8, "targets": 5, "context": 2},
    "many users, dropout": {"lengths": [3] * 70 + [50], "heads": 1, "model": 8, "qk": 8, "value": 8, "dropout": 0.5},
    "nobody": {"lengths": [], "heads": 1, "model": 8, "qk": 8, "value": 8},
}


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def make_layer(
    lengths: list[int], heads: int, model: int, qk: int, value: int, *, bias: bool = True, dropout: float = 0.0,
    context: int = 0, targets: int = 0,
) -> tuple[Batch, Tensor, LayerParams, dict[str, Any]]:  # fmt: skip
    batch = make_batch(lengths, heads=heads, qk=qk, value=value, context=context, targets=targets)
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide = heads * value
    params = LayerParams(
        norm_in_weight_M=1 + 0.1 * normal(model),
        norm_in_bias_M=0.1 * normal(model),
        uvqk_weight=normal(model, 2 * heads * (qk + value)) / model**0.5,
        uvqk_bias=0.1 * normal(2 * heads * (qk + value)) if bias else None,
        norm_out_weight=1 + 0.1 * normal(wide),
        norm_out_bias=0.1 * normal(wide),
        out_weight=normal(wide, model) / wide**0.5,
        out_bias=0.1 * normal(model) if bias else None,
    )
    options = {"num_heads": heads, "norm_len": batch.norm_len, "dropout": dropout, "seed": 2**40 + 12345}
    return batch, normal(len(batch.q), model), params, options


def run(
    case: dict[str, Any], dtype: torch.dtype, backend: str, *, silent: list[int] | None = None, only_tail: bool = True
) -> dict[str, Tensor]:
    """The change (y - x) and every gradient. ``silent``: how many of each user's tokens are before the tail."""
    batch, x, params, options = make_layer(**case)
    tail = None if silent is None else Tail.behind(torch.tensor(silent), batch.offsets)
    table_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    weights = {
        field.name: tensor.to(table_dtype, copy=True).requires_grad_()
        for field in fields(params)
        if (tensor := getattr(params, field.name)) is not None
    }
    assert batch.pos is not None
    assert batch.time is not None
    pos, time = (bias.to(table_dtype, copy=True).requires_grad_() for bias in (batch.pos, batch.time))
    x = x.to(torch.bfloat16).to(dtype, copy=True).requires_grad_()
    y = hstu_layer(
        x, LayerParams(**({"uvqk_bias": None, "out_bias": None} | weights)), batch.offsets, **options, pos_bias_GP=pos,
        time_bias_GK=time, time_buckets=batch.buckets, query_time_T=batch.query_time, key_time_T=batch.key_time,
        num_context_B=batch.num_context, num_targets_B=batch.num_targets, tail=tail, only_tail=only_tail,
        backend=backend,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(9)
    y.backward(torch.randn(y.shape, generator=generator, dtype=torch.float64).to(torch.bfloat16).to(dtype))
    inputs = {"x": x, "pos": pos, "time": time} | weights
    results = {"change": (y - (tail.of(x) if tail is not None and only_tail else x)).detach()}
    return results | {f"d{k}": torch.zeros_like(v) if v.grad is None else v.grad for k, v in inputs.items()}


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_the_definition(
    case: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    expected, results = run(CASES[case], torch.float64, "reference"), run(CASES[case], torch.float32, "cpp")
    for name in expected:
        if float(expected[name].norm()) == 0.0:
            assert not bool(results[name].any()), name
        else:
            assert relative_error(results[name], expected[name]) <= (forward_limit() if name == "change" else 1e-4), (
                name
            )


TAILS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "whole steps of every level": ({"lengths": [70, 0, 1, 100, 164], "heads": 2, "model": 50, "qk": 16, "value": 32},
                                   [67, 0, 0, 3, 164]),
    "odd widths, dropout": (CASES["odd widths, dropout"], [29, 1]),
    "targets": ({"lengths": [30, 9], "heads": 2, "model": 16, "qk": 8, "value": 8, "targets": 5}, [20, 6]),
    "a last block at the end of the room": ({"lengths": [96, 192], "heads": 2, "model": 64, "qk": 32, "value": 32},
                                            [95, 191]),
    "nothing silent": ({"lengths": [7, 3], "heads": 1, "model": 8, "qk": 8, "value": 8}, [0, 0]),
    "many users": (CASES["many users, dropout"], [2] * 70 + [45]),
}  # fmt: skip


@pytest.mark.parametrize("only_tail", [True, False])
@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("name", TAILS)
def test_a_tail_is_computed_as_the_definition_computes_all(
    name: str, level: str, only_tail: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    case, silent = TAILS[name]
    expected = run(case, torch.float64, "reference", silent=silent, only_tail=only_tail)
    results = run(case, torch.float32, "cpp", silent=silent, only_tail=only_tail)
    for each, value in expected.items():
        limit = forward_limit() if each == "change" else 1e-4
        assert results[each].shape == value.shape, each
        assert relative_error(results[each], value) <= limit if float(value.norm()) else not bool(results[each].any())


def test_the_tokens_before_a_tail_get_gradients_as_keys_and_values_alone() -> None:
    case, silent = TAILS["odd widths, dropout"]
    whole = run(case, torch.float32, "cpp")
    tail = run(case, torch.float32, "cpp", silent=silent)
    constant = run(case, torch.float32, "cpp", silent=silent, only_tail=False)
    assert torch.equal(constant["change"], whole["change"])
    assert bool(tail["dx"][: silent[0]].any())
    assert tail["change"].shape[0] == 3
    assert relative_error(tail["dx"], whole["dx"]) > 0.1  # a build that ignored the tail would fail here


def test_a_tail_longer_than_its_user_is_refused() -> None:
    with pytest.raises(ValueError, match="num_silent_B: expected counts from 0"):
        Tail.behind(torch.tensor([3, 2]), torch.tensor([0, 2, 5]))


@pytest.mark.parametrize("level", levels())
def test_bfloat16_is_at_most_twice_as_far_as_plain_pytorch(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, level)
    case = CASES["one head, width 50"]
    exact, fused = run(case, torch.float64, "reference"), run(case, torch.bfloat16, "cpp")
    plain = _plain_bfloat16(case)
    for name, result in fused.items():
        limit = 2 * relative_error(plain[name], exact[name]) + 1e-5
        assert relative_error(result, exact[name]) <= limit, name


def _plain_bfloat16(case: dict[str, Any]) -> dict[str, Tensor]:
    """The definition with every tensor in bfloat16, weights too, like a model cast by ``.bfloat16()``."""
    batch, x, params, options = make_layer(**case)
    assert batch.pos is not None
    assert batch.time is not None
    tensors = {field.name: getattr(params, field.name) for field in fields(params)}
    leaves = {
        k: v.bfloat16().requires_grad_() for k, v in (tensors | {"x": x, "pos": batch.pos, "time": batch.time}).items()
    }
    y = hstu_layer(
        leaves["x"], LayerParams(**{name: leaves[name] for name in tensors}), batch.offsets, **options,
        pos_bias_GP=leaves["pos"], time_bias_GK=leaves["time"], time_buckets=batch.buckets,
        query_time_T=batch.query_time, key_time_T=batch.key_time, backend="reference",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(9)
    y.backward(torch.randn(x.shape, generator=generator, dtype=torch.float64).bfloat16())
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"change": (y - leaves["x"]).detach()} | gradients


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(
    dtype: torch.dtype, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    assert_same_bits(lambda: run(CASES["many users, dropout"], dtype, "cpp"), (1, 2, 5))


def test_the_dropout_mask_depends_on_seed_token_and_column_alone() -> None:
    mask = keep_mask(12345, 400, 64, 0.25, torch.device("cpu"))
    assert abs(float(mask.double().mean()) - 0.75) < 0.01
    assert torch.equal(mask[:100], keep_mask(12345, 100, 64, 0.25, torch.device("cpu")))
    assert torch.equal(mask[:, :10], keep_mask(12345, 400, 10, 0.25, torch.device("cpu")))
    for other in (12346, 12345 + 2**40):
        assert not torch.equal(mask, keep_mask(other, 400, 64, 0.25, torch.device("cpu")))


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_halves_compose_to_the_layer(dtype: torch.dtype, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, level)
    batch, x, params, options = make_layer(**CASES["two heads, no biases"])
    x = x.to(dtype)
    weights = {field.name: getattr(params, field.name) for field in fields(params)}
    params = LayerParams(**{name: None if weight is None else weight.float() for name, weight in weights.items()})
    whole = hstu_layer(x, params, batch.offsets, **options)
    u, v, q, k = hstu_layer_project(x, params, num_heads=2)
    attended = hstu_attention(q, k, v, batch.offsets, norm_len=batch.norm_len)
    composed = hstu_layer_output(x, attended, u, params)
    limit = (
        2e-2
        if dtype == torch.bfloat16
        else 1e-6
        if torch.get_float32_matmul_precision() == "highest"
        else forward_limit()
    )
    assert relative_error(composed - x, whole - x) < limit


@pytest.mark.parametrize("silent", [None, [67, 0, 0, 3, 163]])
@pytest.mark.parametrize("level", levels())
def test_a_layer_of_histories_gives_their_keys_and_values_too(
    level: str, silent: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    batch, x, params, options = make_layer(**TAILS["whole steps of every level"][0])
    tail = None if silent is None else Tail.behind(torch.tensor(silent), batch.offsets)

    def computed(dtype: torch.dtype, backend: str) -> list[Tensor]:
        weights = {field.name: getattr(params, field.name).to(dtype) for field in fields(params)}
        assert batch.pos is not None
        assert batch.time is not None
        y, k, v = hstu_layer_history(
            x.to(dtype), LayerParams(**weights), batch.offsets, num_heads=2, norm_len=options["norm_len"], tail=tail,
            pos_bias_GP=batch.pos.to(dtype), time_bias_GK=batch.time.to(dtype), time_buckets=batch.buckets,
            query_time_T=batch.query_time, key_time_T=batch.key_time, backend=backend,
        )  # fmt: skip
        return [y - (x if tail is None else tail.of(x)).to(dtype), k, v]

    for found, expected in zip(computed(torch.float32, "cpp"), computed(torch.float64, "reference"), strict=True):
        assert found.shape == expected.shape
        assert relative_error(found, expected) <= forward_limit()


def test_a_layer_of_histories_has_an_output_for_everybody() -> None:
    batch, x, params, _ = make_layer(**CASES["two heads, no biases"])
    with pytest.raises(ValueError, match="tail: expected an output for each user"):
        hstu_layer_history(
            x, params, batch.offsets, num_heads=2, norm_len=1.0, pos_bias_GP=None, time_bias_GK=None,
            time_buckets=batch.buckets, query_time_T=batch.query_time, key_time_T=batch.key_time,
            tail=Tail.behind(torch.tensor([97, 0]), batch.offsets),
        )  # fmt: skip


def test_a_kernel_that_returns_zeros_would_fail() -> None:
    expected = run(CASES["two heads, no biases"], torch.float64, "reference")
    assert all(relative_error(torch.zeros_like(tensor), tensor) == 1.0 for tensor in expected.values())


def test_wide_rows_are_normalized_whatever_their_width_and_too_wide_ones_are_refused() -> None:
    for model, value in ((130, 7), (7, 130)):
        case = {"lengths": [5, 1], "heads": 1, "model": model, "qk": 4, "value": value}
        expected, results = run(case, torch.float64, "reference"), run(case, torch.float32, "cpp")
        assert relative_error(results["change"], expected["change"]) <= 1e-5
        assert relative_error(results["dx"], expected["dx"]) <= 1e-4
    case = {"lengths": [2], "heads": 1, "model": 4, "qk": 1, "value": 4097}
    with pytest.raises(KernelUnavailable, match="at most 4096 columns, got 4 and 4097"):
        run(case, torch.float32, "cpp")


def test_weights_that_do_not_fit_are_refused() -> None:
    batch, x, params, options = make_layer([7, 2], heads=2, model=6, qk=4, value=4)
    with pytest.raises(ValueError, match="x_TM: expected"):
        hstu_layer(x[:, :5], params, batch.offsets, **options)
    with pytest.raises(ValueError, match="dropout: expected a fraction"):
        hstu_layer(x.float(), params, batch.offsets, **(options | {"dropout": 1.0}))
    with pytest.raises(ValueError, match="LayerParams: expected uvqk_weight"):
        hstu_layer(x.float(), params, batch.offsets, **(options | {"num_heads": 3}))
