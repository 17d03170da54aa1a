"""Stochastic rounding: right on average, reproducible to the bit, the same in C++ as in its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import Dither, rowwise_adagrad_
from kernels.adagrad.dither import dithered, random_bits
from tests.kernels.yardstick import assert_same_bits, force, levels

HALVES = (torch.bfloat16, torch.float16)
SMALLEST = 2.0**-24
"""Of float16's numbers above zero."""


def signs(num: int, width: int) -> Tensor:
    return torch.randint(0, 2, (num, width), generator=torch.Generator().manual_seed(num)).float() * 2 - 1


def stepped(
    dtype: torch.dtype, lr: float, dither: Dither | None, *, backend: str = "cpp", num: int = 40, width: int = 50
) -> Tensor:
    """Rows that have moved from zero to lr or -lr exactly, before they are rounded."""
    weight_VD, state_V = torch.zeros(num, width, dtype=dtype), torch.zeros(num)
    rows, lr = torch.arange(num), float(torch.tensor(lr))
    rowwise_adagrad_(weight_VD, state_V, rows, signs(num, width), lr=lr, eps=0.0, dither=dither, backend=backend)
    return weight_VD


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("width", [1, 7, 16, 50, 130])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_level_rounds_as_the_definition_does(
    monkeypatch: pytest.MonkeyPatch, level: str, width: int, dtype: torch.dtype
) -> None:
    force(monkeypatch, level)
    sizes = (0.0, 1e-39, 3e-13, 2.1e-10, 5e-8, 1e-6, 7e-5, 0.01, 1.3, 900.0, 65_510.0, 1e6, 3.4e38, float("inf"))
    for number, lr in enumerate(sizes):
        for dither in (Dither.of((3, 1, number)), None):
            slow, fast = (stepped(dtype, lr, dither, backend=each, width=width) for each in ("reference", "cpp"))
            assert torch.equal(bits(slow), bits(fast)), (lr, dither)
    nan = torch.full((2, width), torch.nan)
    for dither in (Dither(5), None):
        weight_VD = torch.zeros(2, width, dtype=dtype)
        rowwise_adagrad_(weight_VD, torch.ones(2), torch.arange(2), nan, lr=0.1, dither=dither)
        assert weight_VD.isnan().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("x", [1e-7, 3.3e-6, -1e-4, 0.0123, -1.7, 300.1])
def test_a_number_becomes_one_of_its_neighbours_and_is_right_on_average(dtype: torch.dtype, x: float) -> None:
    num = 1 << 16
    exact = torch.full((256, num // 256), x)
    random = random_bits(Dither.of((7,)), torch.arange(256), num // 256)
    found = dithered(exact, random, dtype).float()
    low, high = float(found.min()), float(found.max())
    between = torch.tensor([low, high]).to(dtype)
    assert abs(int(bits(between)[1]) - int(bits(between)[0])) == 1, "neighbours"
    assert low < float(exact[0, 0]) < high
    spread = (high - low) / 2 / num**0.5
    assert abs(float(found.double().mean()) - float(exact[0, 0])) < 4 * spread
    nearest = exact.to(dtype).float()  # the canary: rounding to nearest is not right on average
    assert abs(float(nearest.double().mean()) - float(exact[0, 0])) > 4 * spread


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_16_bits_hold_is_left_as_it_is(dtype: torch.dtype) -> None:
    held = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    held = held[held.isfinite()].reshape(2, -1)
    found = dithered(held.float(), torch.full(held.shape, 0xFFFF_FFFF), dtype)
    assert torch.equal(found.float(), held.float())


def test_float16_ends_where_its_numbers_do() -> None:
    always = torch.full((1,), 0xFFFF_FFFF)

    def up(x: float) -> float:
        return float(dithered(torch.tensor([x]), always, torch.float16))

    assert up(65_504.0) == 65_504.0
    assert up(65_505.0) == float("inf"), "beyond its range: the trainer finds it and goes back"
    assert up(SMALLEST / 3) == SMALLEST
    assert up(2.0**-33) == 0.0
    assert up(6.1e-5) > 6.1e-5, "between the smallest normal number and the largest subnormal one"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_small_updates_add_up(dtype: torch.dtype) -> None:
    """Each is a 50th of a step between two numbers of the type: to nearest, none would change anything."""
    start, lr = 0.75, (2.0**-8 if dtype == torch.bfloat16 else 2.0**-11) / 50
    moved = {}
    for way in ("stochastic", "nearest"):
        weight_VD, state_V, grad = torch.full((400, 64), start, dtype=dtype), torch.zeros(400), torch.full((400, 64), 8)
        for step in range(100):
            dither = Dither.of((1, step)) if way == "stochastic" else None
            state_V.zero_()
            rowwise_adagrad_(weight_VD, state_V, torch.arange(400), grad.float(), lr=lr, eps=0.0, dither=dither)
        moved[way] = start - float(weight_VD.double().mean())
    assert moved["stochastic"] == pytest.approx(100 * lr, rel=0.02)
    assert moved["nearest"] == 0.0


def test_the_bits_of_rows_columns_and_keys_have_nothing_to_do_with_each_other() -> None:
    rows, width = torch.arange(300), 64
    found = torch.stack([random_bits(Dither.of((1, 2, step)), rows, width) for step in range(12)]).double() / 2**32
    assert abs(float(found.mean()) - 0.5) < 4 / (12 * found.numel()) ** 0.5
    for axis in range(3):
        num = found.shape[axis] - 1
        pairs = torch.stack([found.narrow(axis, first, num).flatten() for first in (0, 1)])
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 5 / pairs.shape[1] ** 0.5, axis
    assert Dither.of((1, 2)).key != Dither.of((2, 1)).key
    assert -(2**63) <= min(Dither.of((each,)).key for each in range(99)) < 0 < Dither.of((0,)).key + 2**63


def test_a_share_of_the_rows_is_rounded_as_the_whole_table_is() -> None:
    num, size, lr = 30, 3, 0.0123
    whole = Dither.of((4, 9))
    expected = stepped(torch.float16, lr, whole, num=num)
    for rank in range(size):
        weight_VD, state_V = torch.zeros(num // size, 50, dtype=torch.float16), torch.zeros(num // size)
        for dither, agrees in ((Dither(whole.key, size, rank), True), (whole, False)):
            weight_VD.zero_(), state_V.zero_()
            places, grad = torch.arange(num // size), signs(num, 50)[rank::size]
            rowwise_adagrad_(weight_VD, state_V, places, grad, lr=float(torch.tensor(lr)), eps=0.0, dither=dither)
            assert torch.equal(bits(weight_VD), bits(expected[rank::size].contiguous())) == agrees


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight_VD, rows_N, grad_ND = torch.randn(1000, 24), torch.randint(-1, 1000, (20_000,)), torch.randn(20_000, 24)

    def step() -> list[Tensor]:
        rounded, state_V = weight_VD.to(dtype), torch.zeros(1000)
        rowwise_adagrad_(rounded, state_V, rows_N, grad_ND, lr=0.1, dither=Dither(11))
        return [rounded.float(), state_V]

    assert_same_bits(step, (1, 2, 3, 7))


def test_what_cannot_be_rounded_is_refused() -> None:
    rest = torch.zeros(4), torch.arange(4), torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"expected bfloat16 or float16 to round stochastically, got torch\.float32"):
        rowwise_adagrad_(torch.zeros(4, 2), *rest, lr=0.1, dither=Dither(1))
    for dither in (Dither(1, stride=0), Dither(1, first=-1), Dither(1, stride=1 << 30)):
        with pytest.raises(ValueError, match=r"expected rows of the whole table below 2\^31"):
            rowwise_adagrad_(torch.zeros(4, 2, dtype=torch.float16), *rest, lr=0.1, dither=dither)
