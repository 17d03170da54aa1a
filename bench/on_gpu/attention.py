# mypy: allow-untyped-calls
"""Attention on the GPU: TFLOP/s with and without the relative biases, short users, and the hardware's ceilings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.on_gpu.report import Clock, Row, row
from kernels import BucketCache, TimeBuckets, hstu_attention
from kernels.attention import triton_launch
from kernels.attention.triton_bias import make_position_table

CEILINGS: dict[str, float] = {"tflops": 790.0, "bytes_per_s": 4.3e12}
"""``tflops`` (bf16 matrix product) and ``bytes_per_s`` (copy, read and written): an H200's, then this run's."""


def dtype_of(clock: Clock) -> torch.dtype:
    """bfloat16; float32 in rehearsal, where the interpreter cannot multiply bfloat16 matrices."""
    return torch.float32 if clock.rehearsal else torch.bfloat16


def ceilings(clock: Clock) -> Iterator[Row]:
    """A large matrix product on random data, and a large copy."""
    size, count = (64, 1 << 12) if clock.rehearsal else (8192, 1 << 31)
    a, b = (torch.randn(size, size, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
    matmul_ms = clock.median_ms(lambda: a @ b)
    source = torch.empty(count, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copy_ms = clock.median_ms(lambda: target.copy_(source))
    CEILINGS["tflops"] = 2 * size**3 / matmul_ms / 1e9
    CEILINGS["bytes_per_s"] = 2 * count / copy_ms * 1e3
    yield row("ceiling: bf16 matrix product 8192", CEILINGS["tflops"], "TFLOP/s")
    yield row("ceiling: device copy", CEILINGS["bytes_per_s"] / 1e12, "TB/s")


@dataclass(frozen=True, eq=False)
class Case:
    """Tensors of one attention shape, and its tables."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    offsets: Tensor
    time: Tensor
    pos_bias: Tensor
    time_bias: Tensor
    buckets: TimeBuckets
    norm_len: float

    def prepare(self, with_time: bool) -> triton_launch.Batch:
        """The tables that a batch's layers share."""
        buckets = self.buckets if with_time else None
        return triton_launch.prepare(
            self.offsets, len(self.q), buckets, self.time, self.time, None, None, BucketCache()
        )

    @property
    def num_pairs(self) -> float:
        """Scores: causal pairs of all users and heads."""
        lengths = self.offsets.diff().double()
        return float((lengths * (lengths + 1) / 2).sum()) * self.q.shape[1]

    def tflops(self, ms: float, passes: float) -> float:
        """``passes``: 1 forward, 2.5 backward, as attention's FLOPs are counted; causal pairs only."""
        return passes * 2 * (self.q.shape[2] + self.v.shape[2]) * self.num_pairs / ms / 1e9


def make_case(clock: Clock, users: int, length: int, heads: int, width: int) -> Case:
    """Random data; times in ms, with bursts and gaps of up to days, like those of interactions."""
    torch.manual_seed(7)
    tokens, dtype, num_buckets = users * length, dtype_of(clock), 4 if clock.rehearsal else 64

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, device=clock.device) * scale).to(dtype)

    gap = (10 ** (torch.rand(tokens, device=clock.device, dtype=torch.float64) * 6)).long()
    burst = torch.rand(tokens, device=clock.device) < 0.5
    return Case(
        normal(tokens, heads, width, scale=width**-0.25), normal(tokens, heads, width, scale=width**-0.25),
        normal(tokens, heads, width), normal(tokens, heads, width),
        torch.arange(0, tokens + 1, length, device=clock.device), 10**12 + (gap * burst * 60).cumsum(0),
        torch.randn(heads, length, device=clock.device) * 0.5,
        torch.randn(heads, num_buckets, device=clock.device) * 0.5,
        TimeBuckets.logarithmic(num_buckets), float(length),
    )  # fmt: skip


def check(case: Case, clock: Clock, name: str) -> Row:
    """The worst relative error of output and gradients for the first user and one head, against float64."""
    stop = int(case.offsets[1])
    stop = min(stop, 512 if not clock.rehearsal else stop)

    def run(backend: str, dtype: torch.dtype, device: str) -> list[Tensor]:
        tensors = [x[:stop, :1].to(device, dtype).requires_grad_() for x in (case.q, case.k, case.v)]
        biases = [x[:1].to(device, torch.float64 if backend == "reference" else torch.float32).requires_grad_()
                  for x in (case.pos_bias, case.time_bias)]  # fmt: skip
        times = case.time[:stop].to(device)
        q, k, v = tensors
        out = hstu_attention(
            q, k, v, torch.tensor([0, stop], device=device), norm_len=case.norm_len, pos_bias_GP=biases[0],
            time_bias_GK=biases[1], time_buckets=case.buckets, query_time_T=times, key_time_T=times, backend=backend,
        )  # fmt: skip
        return [out, *torch.autograd.grad(out, tensors + biases, case.grad[:stop, :1].to(device, out.dtype))]

    result, expected = run("triton", case.q.dtype, clock.device), run("reference", torch.float64, "cpu")
    pairs = [(a.detach().cpu().double(), b.detach()) for a, b in zip(result, expected, strict=True)]
    errors = [float((a - b).norm() / b.norm()) for a, b in pairs]
    worst = max(error if math.isfinite(error) else 1e9 for error in errors)
    note = "out, dq, dk, dv, position, time: " + ", ".join(f"{error:.1e}" for error in errors)
    return row(f"error of attention, {name}", worst, "", 2e-2, note, at_most=True)


def parts(case: Case, rab: bool, tiles: tuple[Any, Any, Any] = (None, None, None)) -> dict[str, Callable[[], Any]]:
    """The three kernels of attention, ready to run."""
    table = make_position_table(case.pos_bias) if rab else None
    batch, q, k, v, norm = case.prepare(rab), case.q, case.k, case.v, case.norm_len
    grads = [torch.empty_like(x) for x in (q, k, v)]
    pos, time = (case.pos_bias, case.time_bias) if rab else (None, None)
    num_positions = case.pos_bias.shape[1] if rab else 0
    return {
        "forward": partial(triton_launch.forward, q, k, v, batch, norm, table, num_positions, time, tiles[0]),
        "keys": partial(
            triton_launch.backward_keys, q, k, v, case.grad, batch, norm, table, num_positions, time, grads[1],
            grads[2], tiles[2],
        ),
        "queries": partial(
            triton_launch.backward_queries, q, k, v, case.grad, batch, norm, table, pos, time, grads[0], tiles[1]
        ),
    }  # fmt: skip


def dense_bias_ms(case: Case, clock: Clock) -> float:
    """The cost of reading a bias for every pair (users x heads x N x N, bfloat16) once: the price of not fusing it."""
    num_values = int((case.offsets.diff() ** 2).sum()) * case.q.shape[1]
    dense = torch.zeros((num_values + 1) // 2, dtype=torch.float32, device=clock.device)
    return clock.median_ms(dense.sum)


def long_users(clock: Clock) -> Iterator[Row]:
    """The goal's shape: B 32, N 4096, H 4, d 128."""
    case = make_case(clock, *((1, 40, 1, 16) if clock.rehearsal else (32, 4096, 4, 128)))
    yield check(case, clock, "d128")
    rab = {name: clock.median_ms(run) for name, run in parts(case, True).items()}
    forward, backward = case.tflops(rab["forward"], 1), case.tflops(rab["keys"] + rab["queries"], 2.5)
    ceiling = CEILINGS["tflops"]
    yield row("attention forward, rab, B32 N4096 H4 d128", forward, "TFLOP/s", 400, f"{forward / ceiling:.0%} of GEMM")
    yield row("attention backward, rab, same", backward, "TFLOP/s", 280, f"{backward / ceiling:.0%} of GEMM")
    bare = {name: clock.median_ms(run) for name, run in parts(case, False).items()}
    yield row("attention forward, no rab, same", case.tflops(bare["forward"], 1), "TFLOP/s", 560)
    yield row("attention backward, no rab, same", case.tflops(bare["keys"] + bare["queries"], 2.5), "TFLOP/s", 440)
    yield row("rab over no rab, forward", 100 * (rab["forward"] / bare["forward"] - 1), "%", 15, at_most=True)
    ratio = (rab["keys"] + rab["queries"]) / (bare["keys"] + bare["queries"])
    yield row("rab over no rab, backward", 100 * (ratio - 1), "%", 30, at_most=True)
    note = f"the whole forward, rab computed: {rab['forward']:.3f} ms"
    yield row("  a dense bias, only to read it", dense_bias_ms(case, clock), "ms", note=note)
    yield row("  kernel for dQ and biases", rab["queries"], "ms", note=f"without rab {bare['queries']:.3f}")
    yield row("  kernel for dK and dV", rab["keys"], "ms", note=f"without rab {bare['keys']:.3f}")
    yield row("  tables, once a batch for all layers", clock.median_ms(lambda: case.prepare(True)), "ms")
    narrow = replace(case, pos_bias=case.pos_bias[:, :256].contiguous())
    near = {name: clock.median_ms(run) for name, run in parts(narrow, True).items()}
    ratio = (near["keys"] + near["queries"]) / (bare["keys"] + bare["queries"])
    yield row("  rab over no rab, 256 positions, forward", 100 * (near["forward"] / bare["forward"] - 1), "%")
    yield row("  rab over no rab, 256 positions, backward", 100 * (ratio - 1), "%")


def short_users(clock: Clock) -> Iterator[Row]:
    """The goal's shape: B 512, N 128, H 4, d 64, all in one grid; by graph replay, so that launches do not count."""
    case = make_case(clock, *((2, 12, 1, 16) if clock.rehearsal else (512, 128, 4, 64)))
    yield check(case, clock, "d64")
    rab, bare = parts(case, True), parts(case, False)
    us = clock.graph_ms(rab["forward"]) * 1e3
    num_bytes = 4 * case.q.numel() * case.q.element_size()
    share = num_bytes / us * 1e6 / CEILINGS["bytes_per_s"]
    yield row("attention forward, rab, B512 N128 H4 d64", us, "us", 45, at_most=True)
    yield row("  of the copy's bandwidth", 100 * share, "%", 70)
    yield row("  no rab", clock.graph_ms(bare["forward"]) * 1e3, "us")
    for name, goal in (("queries", 160), ("keys", None)):
        what = {"queries": "dQ and biases", "keys": "dK and dV"}[name]
        note = f"without rab {clock.graph_ms(bare[name]) * 1e3:.0f}"
        yield row(f"  kernel for {what}", clock.graph_ms(rab[name]) * 1e3, "us", goal, note, at_most=True)
