"""The FuXi-alpha layer on the attention kernels against its definition in float64: output, gradients, tails, caches."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import Tail
from kernels.fuxi import FuxiParams, channel_biases, fuxi_delta_attention, fuxi_layer, fuxi_project, reference
from tests.kernels.jagged import Batch, make_batch
from tests.kernels.yardstick import force, forward_limit, levels, relative_error

HEADS, QK, VALUE, MODEL, WIDE = 2, 8, 12, 20, 24


@dataclass(frozen=True)
class Case:
    batch: Batch
    x: Tensor
    params: FuxiParams

    def options(self, **more: Any) -> dict[str, Any]:
        batch = self.batch
        return {
            "num_heads": HEADS, "norm_len": batch.norm_len, "time_buckets": batch.buckets,
            "query_time_T": batch.query_time, "key_time_T": batch.key_time, **more,
        }  # fmt: skip


def made(lengths: list[int]) -> Case:
    batch, generator = make_batch(lengths, heads=HEADS, qk=QK, value=VALUE), torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    channels = 3 * HEADS * VALUE
    params = FuxiParams(
        uvqk_weight=normal(MODEL, HEADS * (4 * VALUE + 2 * QK)) / MODEL**0.5,
        mix_weight=normal(channels, MODEL) / channels**0.5, mix_bias_M=0.1 * normal(MODEL),
        gate_weight=normal(MODEL, WIDE) / MODEL**0.5, up_weight=normal(MODEL, WIDE) / MODEL**0.5,
        down_weight=normal(WIDE, MODEL) / WIDE**0.5,
        pos_bias_P=normal(50), time_bias_K=normal(40),
    )  # fmt: skip
    return Case(batch, normal(len(batch.q), MODEL), params)


def run(case: Case, dtype: torch.dtype, backend: str, **options: Any) -> dict[str, Tensor]:
    """The change (y - x) and every gradient."""
    weights = {
        each.name: getattr(case.params, each.name).to(dtype, copy=True).requires_grad_() for each in fields(FuxiParams)
    }
    x = case.x.to(dtype, copy=True).requires_grad_()
    y = fuxi_layer(x, FuxiParams(**weights), case.batch.offsets, **case.options(**options), backend=backend)
    generator = torch.Generator().manual_seed(9)
    torch.autograd.backward(y, torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype))
    tail = options.get("tail")
    before = x if tail is None or not options.get("only_tail", True) else tail.of(x)
    return {"change": (y - before).detach()} | {
        name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in ({"x": x} | weights).items()
    }


LENGTHS = {"jagged": [70, 0, 1, 33], "many short": [3] * 20, "nobody": [0]}


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_output_and_gradients_are_those_of_the_definition(
    name: str, dropout: float, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, level)
    case = made(LENGTHS[name])
    options = {"dropout": dropout, "seed": 2**40 + 7}
    expected, found = run(case, torch.float64, "reference", **options), run(case, torch.float32, "cpp", **options)
    for each, value in expected.items():
        if float(value.norm()) == 0.0:
            assert not bool(found[each].any()), each
        else:
            assert relative_error(found[each], value) <= (forward_limit() if each == "change" else 1e-4), each


def test_a_channel_that_lost_its_negative_half_would_be_caught() -> None:
    """SiLU of the bias alone, as in an HSTU head, is another function."""
    case = made(LENGTHS["jagged"])
    biased = replace(case.params, pos_bias_P=torch.nn.functional.silu(case.params.pos_bias_P))
    expected = run(case, torch.float64, "reference")
    assert relative_error(run(replace(case, params=biased), torch.float32, "cpp")["change"], expected["change"]) > 0.01


def test_position_and_time_have_channels_of_their_own() -> None:
    """Without queries, keys and biases nothing is attended; a bias of position fills its channel alone."""
    case = made([9])
    none = replace(
        case.params, pos_bias_P=torch.zeros(50).double(), time_bias_K=torch.zeros(40).double(),
        mix_weight=torch.eye(3 * HEADS * VALUE, MODEL).double(),
    )  # fmt: skip
    u, v, q, k = fuxi_project(case.x, none, num_heads=HEADS, eps=1e-6)
    assert u.shape == (9, 3 * HEADS * VALUE)
    pairs = {name: each for name, each in case.options().items() if name != "num_heads"}
    wide = HEADS * VALUE
    for name, place in (("pos_bias_P", 1), ("time_bias_K", 2)):
        params = replace(none, **{name: getattr(case.params, name)})
        attended = reference.attention(torch.zeros_like(q), k, v, case.batch.offsets, params, **pairs)
        parts = torch.split(attended, wide, dim=1)
        assert [bool(part.any()) for part in parts] == [each == place for each in range(3)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("only_tail", [True, False])
def test_a_tail_is_computed_as_the_definition_computes_all(dropout: float, *, only_tail: bool) -> None:
    case = made([30, 9, 4])
    tail = Tail.behind(torch.tensor([27, 9, 0]), case.batch.offsets)
    options: dict[str, Any] = {"tail": tail, "only_tail": only_tail, "dropout": dropout, "seed": 3}
    expected, found = run(case, torch.float64, "reference", **options), run(case, torch.float32, "cpp", **options)
    whole = run(case, torch.float64, "reference", dropout=dropout, seed=3)
    change = whole["change"] if not only_tail else tail.of(whole["change"])
    assert relative_error(expected["change"], change) < 1e-12
    for each, value in expected.items():
        assert relative_error(found[each], value) <= (forward_limit() if each == "change" else 1e-4), each
    if not only_tail:  # what comes before the tail gets gradients as keys and values alone, and none as outputs
        assert relative_error(expected["x"], whole["x"]) > 0.1


@pytest.mark.parametrize("num_new", [1, 5])
def test_new_tokens_against_a_cache_attend_as_in_the_whole_sequence(num_new: int) -> None:
    case = made([40])
    params = FuxiParams(**{each.name: getattr(case.params, each.name).float() for each in fields(FuxiParams)})
    _, v, q, k = fuxi_project(case.x.float(), params, num_heads=HEADS, eps=1e-6)
    pairs = {name: each for name, each in case.options().items() if name != "num_heads"}
    expected = reference.attention(q, k, v, case.batch.offsets, params, **pairs)[-num_new:]
    pos, time = channel_biases(params.pos_bias_P, params.time_bias_K)
    old, query, key = 40 - num_new, case.batch.query_time, case.batch.key_time
    found = fuxi_delta_attention(
        q[old:], k[old:], v[old:], torch.tensor([0, num_new]), k[:old], v[:old], torch.tensor([0]),
        torch.tensor([old]), norm_len=case.batch.norm_len, pos_bias_GP=pos, time_bias_GK=time,
        time_buckets=case.batch.buckets, query_time_S=query[old:], key_time_S=key[old:], cache_time_C=key[:old],
    )  # fmt: skip
    assert relative_error(found, expected) <= forward_limit()


def test_wrong_shapes_are_refused() -> None:
    case = made([4])
    with pytest.raises(ValueError, match=r"x_TM: expected \(T, 20\), got \(4, 19\)"):
        fuxi_layer(case.x[:, :-1], case.params, case.batch.offsets, **case.options())
    narrow = replace(case.params, down_weight=case.params.down_weight[:, :-1])
    with pytest.raises(ValueError, match=r"FuxiParams.down_weight: expected \(24, 20\), got \(24, 19\)"):
        fuxi_layer(case.x, narrow, case.batch.offsets, **case.options())
