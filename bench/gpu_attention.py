# mypy: allow-untyped-calls
"""Attention on the GPU: TFLOP/s with and without the relative biases, short users, and the ceilings beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu_report import Clock, Row, row
from kernels import BucketCache, TimeBuckets, hstu_attention
from kernels.attention import triton_launch
from kernels.attention.triton_bias import make_position_tables

CEILINGS: dict[str, float] = {}
"""Measured in this run: ``tflops`` (bf16 matrix product) and ``bytes_per_s`` (copy, read and written)."""


def dtype_of(clock: Clock) -> torch.dtype:
    """bfloat16; float32 in rehearsal, where the interpreter cannot multiply bfloat16 matrices."""
    return torch.float32 if clock.rehearsal else torch.bfloat16


def ceilings(clock: Clock) -> list[Row]:
    """A large matrix product on random data, and a large copy."""
    size, count = (64, 1 << 12) if clock.rehearsal else (8192, 1 << 31)
    a, b = (torch.randn(size, size, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
    matmul_ms = clock.median_ms(lambda: a @ b)
    source = torch.empty(count, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copy_ms = clock.median_ms(lambda: target.copy_(source))
    CEILINGS["tflops"] = 2 * size**3 / matmul_ms / 1e9
    CEILINGS["bytes_per_s"] = 2 * count / copy_ms * 1e3
    return [
        row("ceiling: bf16 matrix product 8192", CEILINGS["tflops"], "TFLOP/s"),
        row("ceiling: device copy", CEILINGS["bytes_per_s"] / 1e12, "TB/s"),
    ]


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
    """Random data; times with bursts and gaps of up to days, in ms, as interactions have."""
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


def check(case: Case, clock: Clock, limit: float = 2e-2) -> str:
    """Output and gradients for the first user and one head against float64; raises if they are off."""
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
    if not all(error < limit for error in errors):
        raise ArithmeticError(f"attention is off: relative errors {errors}, expected below {limit}")
    return f"checked, worst error {max(errors):.1e}"


def timings(case: Case, clock: Clock, tiles: tuple[Any, Any, Any] = (None, None, None)) -> dict[str, float]:
    """Milliseconds: tables; forward and backward, with rab and without."""
    rows, columns = make_position_tables(case.pos_bias)
    times: dict[str, float] = {}
    q, k, v = case.q, case.k, case.v
    grads = [torch.empty_like(x) for x in (q, k, v)]
    for name, rab in (("rab", True), ("bare", False)):
        batch = case.prepare(rab)
        table = (rows, columns) if rab else (None, None)
        pos, time = (case.pos_bias, case.time_bias) if rab else (None, None)
        num_positions = case.pos_bias.shape[1] if rab else 0
        norm = case.norm_len
        forward = partial(triton_launch.forward, q, k, v, batch, norm, table[0], num_positions, time, tiles[0])
        queries = partial(
            triton_launch.backward_queries, q, k, v, case.grad, batch, norm, table[0], pos, time, grads[0], tiles[1]
        )
        keys = partial(
            triton_launch.backward_keys, q, k, v, case.grad, batch, norm, table[1], num_positions, time, grads[1],
            grads[2], tiles[2],
        )  # fmt: skip
        timed: tuple[tuple[str, Any], ...] = (("forward", forward), ("queries", queries), ("keys", keys))
        for part, run in timed:
            times[f"{part} {name}"] = clock.median_ms(run)
        times[f"backward {name}"] = times[f"queries {name}"] + times[f"keys {name}"]
    times["tables"] = clock.median_ms(lambda: case.prepare(True))
    return times


def long_users(clock: Clock) -> list[Row]:
    """The goal's shape: B 32, N 4096, H 4, d 128."""
    case = make_case(clock, *((1, 40, 1, 16) if clock.rehearsal else (32, 4096, 4, 128)))
    note = check(case, clock)
    ms = timings(case, clock)
    forward, backward = case.tflops(ms["forward rab"], 1), case.tflops(ms["backward rab"], 2.5)
    share = f"{forward / CEILINGS['tflops']:.0%} of the matrix product; {note}"
    overhead = {name: 100 * (ms[f"{name} rab"] / ms[f"{name} bare"] - 1) for name in ("forward", "backward")}
    return [
        row("attention forward, rab, B32 N4096 H4 d128", forward, "TFLOP/s", 400, share),
        row("attention backward, rab, same", backward, "TFLOP/s", 280, f"{backward / CEILINGS['tflops']:.0%} of it"),
        row("attention forward, no rab, same", case.tflops(ms["forward bare"], 1), "TFLOP/s"),
        row("attention backward, no rab, same", case.tflops(ms["backward bare"], 2.5), "TFLOP/s"),
        row("rab over no rab, forward", overhead["forward"], "%", 10, at_most=True),
        row("rab over no rab, backward", overhead["backward"], "%", 10, at_most=True),
        row("  kernel for dQ and biases", ms["queries rab"], "ms", note=f"without rab {ms['queries bare']:.3f}"),
        row("  kernel for dK and dV", ms["keys rab"], "ms", note=f"without rab {ms['keys bare']:.3f}"),
        row("  tables, once a batch for all layers", ms["tables"], "ms"),
    ]


def short_users(clock: Clock) -> list[Row]:
    """The goal's shape: B 512, N 128, H 4, d 64, all on one grid; by graph replays, so that launches do not count."""
    case = make_case(clock, *((2, 12, 1, 16) if clock.rehearsal else (512, 128, 4, 64)))
    note = check(case, clock)
    rows, _ = make_position_tables(case.pos_bias)
    batch, bare = case.prepare(True), case.prepare(False)
    num_positions = case.pos_bias.shape[1]

    def forward(rab: bool) -> Tensor:
        table, time = (rows, case.time_bias) if rab else (None, None)
        chosen = batch if rab else bare
        return triton_launch.forward(
            case.q, case.k, case.v, chosen, case.norm_len, table, num_positions if rab else 0, time
        )

    us = clock.graph_ms(lambda: forward(True)) * 1e3
    bare_us = clock.graph_ms(lambda: forward(False)) * 1e3
    num_bytes = 4 * case.q.numel() * case.q.element_size()
    share = num_bytes / us * 1e6 / CEILINGS["bytes_per_s"]
    return [
        row("attention forward, rab, B512 N128 H4 d64", us, "us", 45, f"no rab {bare_us:.1f}; {note}", at_most=True),
        row("  of the copy's bandwidth", 100 * share, "%", 70),
    ]
