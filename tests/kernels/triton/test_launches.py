"""The arguments that our launchers really pass compile for Hopper: types, absent tensors, constants, every kernel."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch on Linux")

from kernels import (
    Dither,
    TimeBuckets,
    delta_attention,
    full_softmax,
    hstu_attention,
    hstu_layer,
    hstu_layer_output,
    hstu_layer_project,
    rank_of_target,
    rowwise_adagrad_,
    sampled_softmax,
    stochastic_length,
    top_k,
)
from kernels.backend import KernelUnavailable
from tests.kernels.triton import cases
from tests.kernels.triton.compiling import read_report
from tests.kernels.triton.launches import compiling_launches
from tests.kernels.triton.variants import KERNELS as KERNEL_NAMES
from tests.kernels.triton.variants import launch_attention, launch_memory

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
KERNELS = Path(__file__).resolve().parents[3] / "kernels"
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def modules(triton_cache: None) -> None:
    for op in ("attention", "layer", "delta", "softmax", "adagrad", "length"):
        importlib.import_module(f"kernels.{op}.triton_op")
    importlib.import_module("kernels.memory.device")


def masked_attention() -> None:
    arguments, grad = cases.attention_case([100, 30], qk=64, value=64, context=2, targets=2)
    cases.run(hstu_attention, arguments, grad, "cpu", BF16, "triton")


def attention() -> None:
    masked_attention()
    arguments, grad = cases.attention_case([100, 30], qk=64, value=64, use_time=False)
    cases.run(hstu_attention, arguments, grad, "cpu", BF16, "triton")


def layer() -> None:
    for dropout, bias in ((0.2, True), (0.0, False)):
        arguments, grad = cases.layer_case([100, 30], model=64, qk=32, value=32, dropout=dropout, bias=bias)
        del arguments["time_bias_GK"]
        cases.run(hstu_layer, arguments, grad, "cpu", BF16, "triton")
    x, params = arguments["x_TM"], arguments["params"]
    u, v, _, _ = hstu_layer_project(x, params, num_heads=2, backend="triton")
    hstu_layer_output(x, v, u, params, backend="triton")


def delta() -> None:
    arguments, grad = cases.delta_case([3, 20], [40, 5], qk=64, value=64)
    cases.run(delta_attention, arguments, grad, "cpu", BF16, "triton")


def softmax() -> None:
    query, table = (torch.randn(n, 64, dtype=BF16, requires_grad=True) for n in (100, 300))
    target = torch.zeros(100, dtype=torch.int64)
    for shape in ((200,), (100, 20)):
        negatives, log_q = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        loss = sampled_softmax(
            query, table, target, negatives, log_q_target_R=torch.zeros(100), log_q_negatives=log_q, backend="triton"
        )
        torch.autograd.grad(loss.sum(), [query, table])
    full = full_softmax(query, table, target, valid_V=torch.ones(300, dtype=torch.bool), backend="triton")
    torch.autograd.grad(full.sum(), [query, table])


def best() -> None:
    common, masks = cases.best_case(100, 300, 64, 0)
    target = torch.zeros(100, dtype=torch.int64)
    rank_of_target(**common, **masks, target_R=target, backend="triton")
    top_k(**common, **masks, k=10, backend="triton")


def tables() -> None:
    rows, grad = torch.zeros(200, dtype=torch.int64), torch.randn(200, 64)
    rowwise_adagrad_(torch.zeros(50, 64), torch.zeros(50), rows, grad, lr=0.1, backend="triton")
    offsets, seeds = torch.tensor([0, 40, 60]), torch.tensor([1, -(2**63)])
    with suppress(RuntimeError, IndexError, MemoryError):  # its sizes depend on results, which are missing
        stochastic_length(offsets, seeds, max_kept=16, sometimes_whole=True, backend="triton")


def new_versions(seen: dict[str, dict[str, Any]], first: dict[str, set[str]]) -> dict[str, int]:
    """How many versions each kernel has got since."""
    return {name: len(set(versions) - first[name]) for name, versions in seen.items() if set(versions) != first[name]}


def memory_of_groups() -> None:
    launch_memory(num_columns=2)


OPS: list[Callable[[], None]] = [attention, layer, delta, softmax, best, tables, launch_memory, memory_of_groups]


def batches(lengths: list[int]) -> None:
    """A layer, its losses and an update, for one batch of a stream."""
    arguments, grad = cases.layer_case(lengths, model=64, qk=32, value=32)
    cases.run(hstu_layer, arguments, grad, "cpu", BF16, "triton")
    num_tokens = sum(lengths)
    query, table = (torch.randn(n, 64, dtype=BF16, requires_grad=True) for n in (num_tokens // 2, num_tokens + 40))
    target = torch.zeros(len(query), dtype=torch.int64)
    log_q = {"log_q_target_R": torch.zeros(len(query)), "log_q_negatives": torch.zeros(num_tokens)}
    loss = sampled_softmax(query, table, target, torch.zeros(num_tokens, dtype=torch.int64), **log_q, backend="triton")
    torch.autograd.grad(loss.sum(), [query, table])
    torch.autograd.grad(full_softmax(query, table, target, backend="triton").sum(), [query, table])
    rank_of_target(query, table, target, backend="triton")
    rows = torch.zeros(num_tokens + 40, dtype=torch.int64)
    rowwise_adagrad_(torch.zeros(500, 64), torch.zeros(500), rows, table.detach().float(), lr=0.1, backend="triton")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_every_launch_of_an_op_compiles_for_hopper(op: Callable[[], None]) -> None:
    with compiling_launches(90) as seen:
        op()
    assert seen


REAL = [
    *((BF16, width, both, both) for width in (64, 128) for both in (True, False)),
    (BF16, 64, True, False), (BF16, 128, False, True),
    (BF16, 25, True, True), (BF16, 256, True, True), (torch.float32, 64, True, True),
]  # fmt: skip
"""Every pair of a width and a bias; the first four are compiled by the tests of the budget too, so they cost little."""


@pytest.mark.parametrize("part", KERNEL_NAMES)
@pytest.mark.parametrize(("dtype", "width", "position", "time"), REAL, ids=str)
def test_attention_compiles_for_every_head_and_bias_and_its_products_do_not_wait(
    part: str, dtype: torch.dtype, width: int, position: bool, time: bool
) -> None:
    with compiling_launches(90, compiles={KERNEL_NAMES[part]}) as seen:
        launch_attention(part, width, position, time, dtype=dtype)
    (compiled,) = seen[KERNEL_NAMES[part]].values()
    report = read_report(compiled)
    assert dtype == torch.float32 or report.wgmma
    assert report.waits * 2 <= report.wgmma, report


@pytest.mark.parametrize(
    ("part", "width", "architecture"),
    [*((part, width, 89) for part in KERNEL_NAMES for width in (128, 256)), ("forward", 128, 120)],
)
def test_attention_fits_the_shared_memory_of_a_workstation_s_gpu(part: str, width: int, architecture: int) -> None:
    """Which is less than half of Hopper's; `compiling_launches` compares."""
    with compiling_launches(architecture, compiles={KERNEL_NAMES[part]}) as seen:
        launch_attention(part, width, True, True)
    assert seen[KERNEL_NAMES[part]]


def test_wide_heads_in_float32_are_refused_on_a_workstation_s_gpu() -> None:
    with compiling_launches(89, compiles=False):
        launch_attention("forward", 256, True, True, dtype=torch.float32)
        for part in ("queries", "keys"):
            with pytest.raises(
                KernelUnavailable, match=r"expected heads of at most 128 .* got 256; use narrower heads"
            ):
                launch_attention(part, 256, True, True, dtype=torch.float32)


@pytest.mark.parametrize(
    ("dtype", "widths"),
    [(torch.float32, (1, 12, 16, 32, 49, 50, 64, 100, 128, 256, 500, 512)), (BF16, (1, 12, 49, 128, 512))],
    ids=["float32", "bfloat16"],
)
def test_adagrad_compiles_at_every_width_of_a_table(dtype: torch.dtype, widths: tuple[int, ...]) -> None:
    """With 128 places per program, as narrow rows once had, Triton 3.6 failed an assertion."""
    rows = torch.zeros(500, dtype=torch.int64)
    with compiling_launches(90) as seen:
        for width in widths:
            table, grad = torch.zeros(50, width, dtype=dtype), torch.zeros(500, width, dtype=dtype)
            rowwise_adagrad_(table, torch.zeros(50), rows, grad, lr=0.1, backend="triton")
    assert len(seen["adagrad_kernel"]) == len(widths)


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_adagrad_that_rounds_stochastically_compiles_once_whatever_the_step(dtype: torch.dtype) -> None:
    rows, grad = torch.zeros(500, dtype=torch.int64), torch.zeros(500, 64)
    with compiling_launches(90) as seen:
        for step in range(20):
            table, dither = torch.zeros(50, 64, dtype=dtype), Dither.of((1, 2, step), 1 + step % 3, step % 3)
            rowwise_adagrad_(table, torch.zeros(50), rows, grad, lr=0.1, dither=dither, backend="triton")
    assert len(seen["adagrad_kernel"]) == 1


def test_batches_of_any_size_need_no_new_versions_of_a_kernel() -> None:
    """Compiling takes seconds, and would happen in the middle of a stream."""
    with compiling_launches(90, compiles=False) as seen:
        batches([640, 3])
        batches([40, 3])  # batches whose users are short on average have other tiles
        first = {name: set(versions) for name, versions in seen.items()}
        for length in (640, 641, 642, 644, 656, 704, 3000):
            batches([length, *[2] * (length % 7)])
    assert new_versions(seen, first) == {}


def test_questions_about_users_of_any_length_need_no_new_versions_of_a_kernel() -> None:
    def ask(length: int) -> None:
        """As a server scores candidates: with a bucket for each place of the user's history."""
        arguments, _ = cases.delta_case([30], [length], qk=32, value=32, buckets=9, targets=30)
        arguments["time_buckets"] = TimeBuckets(torch.arange(1, length + 1))
        arguments["time_bias_GK"] = torch.zeros(2, length + 1)
        cases.run(delta_attention, arguments, None, "cpu", torch.float32, "triton")

    with compiling_launches(90, compiles=False) as seen:
        ask(400)
        first = {name: set(versions) for name, versions in seen.items()}
        for length in (300, 303, 399, 511, 512):
            ask(length)
    assert new_versions(seen, first) == {}


@pytest.mark.parametrize("columns", [(0,), (1, 2, 4)], ids=["without groups", "with groups"])
def test_groups_of_any_size_need_two_versions_of_the_memory_s_kernels(columns: tuple[int, ...]) -> None:
    with compiling_launches(90, compiles=False) as seen:
        for num_events, num_columns in product((1, 20, 32, 33, 100, 128), columns):
            launch_memory(num_events, num_columns)
    versions = {name: len(each) for name, each in seen.items()}
    assert versions == {
        "predict_events_kernel": 1, "learn_weights_kernel": 2, "learn_events_kernel": 2, "count_events_kernel": 2,
    }  # fmt: skip


@pytest.mark.parametrize("op", [masked_attention, softmax], ids=lambda op: op.__name__)
def test_products_in_tf32_compile_for_hopper_too(op: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.BF16", torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with compiling_launches(90) as seen:
            op()
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen


def test_a_catalogue_of_millions_fits_the_grid() -> None:
    rows = 4_500_000
    query, table = torch.zeros(1, 16, dtype=BF16), torch.zeros(1, 16, dtype=BF16).expand(rows, 16)
    with compiling_launches(90, compiles=False) as seen:
        top_k(query, table, k=10, normalize=False, backend="triton")
    assert seen


def test_every_kernel_is_launched_by_some_op_here() -> None:
    defined = set()
    for path in KERNELS.rglob("triton_*.py"):
        defined |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE))
    launched = set()
    for path in KERNELS.rglob("*.py"):
        launched |= set(re.findall(r"(\w+_kernel)\[", path.read_text()))
    assert defined == launched
