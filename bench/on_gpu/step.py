# mypy: allow-untyped-calls
"""Whole training steps on the GPU: against the padded model, eager and compiled; where time goes; the single pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from bench.on_gpu.attention import dtype_of
from bench.on_gpu.model import Data, Shape, Step, make_data
from bench.on_gpu.report import Clock, Row, row
from trainer.network.graph import padded_size

ATTENTION = ("attention_forward_kernel", "query_gradient_kernel", "key_gradient_kernel", "bias_gradient_kernel",
             "time_gradient_kernel", "unfold_kernel", "fold_positions_kernel", "position_table_kernel")  # fmt: skip
TABLES = ("plan_kernel", "order_blocks_kernel", "extremes_kernel", "ranges_kernel", "near_kernel", "bounds_kernel")
MEMORY = ("predict_events", "learn_events", "learn_weights", "count_events")
GEMM = ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitK", "gemv")
OURS = ("shared_", "loss_kernel", "finish_kernel", "add_slots", "adagrad", "norm", "gate", "silu", "residual",
        "add_programs", "order_kernel", "count_kernel", "rank_kernel", "key_kernel")  # fmt: skip


def kind_of(kernel: str) -> str:
    """The kind that a kernel's time counts towards."""
    for kind, words in (
        ("attention", ATTENTION),
        ("tables", TABLES),
        ("memory", MEMORY),
        ("GEMM", GEMM),
        ("our other kernels", OURS),
    ):
        if any(word in kernel for word in words):
            return kind
    return "copies" if "mem" in kernel.lower() else "other"


def shares(clock: Clock, run: Callable[[], Any]) -> tuple[dict[str, float], float, list[tuple[str, float]]]:
    """(device milliseconds by kind, wall milliseconds, the ten longest kernels), of one profiled run."""
    if clock.rehearsal or clock.compiles_only:
        run()
        return {"attention": 1.0, "GEMM": 1.0}, 4.0, [("none", 1.0)]
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        wall_ms = (time.perf_counter() - began) * 1e3
    by_kind: dict[str, float] = {}
    by_name: dict[str, float] = {}
    for event in profile.events():
        if event.device_type.name != "CUDA":
            continue
        ms = event.time_range.elapsed_us() / 1e3
        by_kind[kind_of(event.name)] = by_kind.get(kind_of(event.name), 0.0) + ms
        by_name[event.name[:60]] = by_name.get(event.name[:60], 0.0) + ms
    return by_kind, wall_ms, sorted(by_name.items(), key=lambda pair: -pair[1])[:10]


def described(by_kind: dict[str, float]) -> str:
    """The shares as text."""
    total = sum(by_kind.values()) or 1.0
    return ", ".join(f"{kind} {ms / total:.0%}" for kind, ms in sorted(by_kind.items(), key=lambda pair: -pair[1]))


def long_tail(users: int, longest: int) -> tuple[int, ...]:
    """Lengths from a power law, including the longest."""
    generator = np.random.Generator(np.random.Philox(1))
    lengths = (longest / 16 * (1 + generator.pareto(1.2, users))).astype(int).clip(8, longest)
    lengths[0] = longest
    return tuple(int(length) for length in lengths)


def layer_share(clock: Clock) -> Iterator[Row]:
    """d 512, 8 layers, forward and backward of the layers: what is neither GEMM nor attention."""
    shape = Shape(8, 512, 8, (2048,) * 16, 4096, 512)
    if clock.rehearsal:
        shape = Shape(1, 16, 1, (12, 7), 16, 8, 4)
    step = Step(shape, make_data(shape, clock.device), clock.device, dtype_of(clock))
    x = torch.randn(len(step.data.items_T), shape.width, device=clock.device).to(dtype_of(clock)).requires_grad_()

    def run() -> None:
        step.weights.jagged(x, step.data.offsets, step.data.time_T).float().square().mean().backward()

    run()
    by_kind, wall_ms, longest = shares(clock, run)
    total = sum(by_kind.values()) or 1.0
    rest = 100 * (total - by_kind.get("attention", 0.0) - by_kind.get("GEMM", 0.0)) / total
    note = f"{described(by_kind)}; device {total:.2f} ms, wall {wall_ms:.2f} ms"
    yield row("layers d512 x 8: all but GEMM and attention", rest, "%", 8, note, at_most=True)
    yield from (row(f"  {name}", ms, "ms") for name, ms in longest)


def check_step(shape: Shape, clock: Clock) -> Row:
    """How far apart the first losses of both versions are, on a small batch in float32."""
    small = replace(shape, lengths=tuple(min(each, 64) for each in shape.lengths[:4]), layers=min(shape.layers, 2))
    step = Step(small, make_data(small, clock.device), clock.device, torch.float32)
    ours, eager = float(step.loss(True)[0].detach()), float(step.loss(False)[0].detach())
    apart = abs(ours / eager - 1) if math.isfinite(ours) else 1e9
    return row("error of the step's loss", apart, "", 2e-3, f"loss {ours:.4f}, eager {eager:.4f}", at_most=True)


def step_shapes(clock: Clock) -> dict[str, Shape]:
    """The data that whole steps are measured on."""
    generator = np.random.Generator(np.random.Philox(2))
    lengths = tuple(int(n) for n in generator.integers(60, 201, 128))
    shapes = {
        "ML-1M large (8 layers, d 50, 2 heads, 128 users of up to 200)": Shape(8, 50, 2, lengths, 3706, 128),
        "N 1024 long tail (8 layers, d 256, 4 heads, 64 users)": Shape(8, 256, 4, long_tail(64, 1024), 20_000, 512),
    }
    return dict.fromkeys(shapes, Shape(1, 16, 1, (12, 7), 16, 8, 4)) if clock.rehearsal else shapes


OURS_MS: dict[str, float] = {}
"""The better of our versions for each shape, in this process."""


def against_eager(clock: Clock) -> Iterator[Row]:
    """Whole steps; every number is a median of whole steps, launches included."""
    for name, shape in step_shapes(clock).items():
        yield check_step(shape, clock)
        step = Step(shape, make_data(shape, clock.device), clock.device, dtype_of(clock))
        ours_ms = OURS_MS[name] = clock.median_ms(partial(step.run, True))
        tokens = sum(shape.lengths)
        yield row(f"step, {name}", ours_ms, "ms", note=f"{tokens / ours_ms * 1e3:,.0f} tokens/s")
        by_kind, _, _ = shares(clock, partial(step.run, True))
        busy = sum(by_kind.values())
        idle = 100 * max(0.0, 1 - busy / ours_ms)
        yield row("  GPU idle share", idle, "%", note=f"device {busy:.2f} ms: {described(by_kind)}")
        eager_ms = clock.median_ms(partial(step.run, False), repeats=1)
        yield row("  against eager PyTorch, padded", eager_ms / ours_ms, "x", 10, f"eager {eager_ms:.2f} ms")
        try:
            with patch("kernels.layer.check_offsets", lambda *_: None):  # it would read offsets from the device
                yield from _as_graph(clock, name, shape, eager_ms)
        except RuntimeError as failure:  # that it cannot be captured is a result too
            yield row("  as one CUDA graph", None, "ms", note=f"failed: {failure!r}"[:300])


def _as_graph(clock: Clock, name: str, shape: Shape, eager_ms: float) -> Iterator[Row]:
    """The step on padded, static memory: first as launches, which must give the same loss, then as one graph."""
    data = make_data(shape, clock.device)
    padded = data.with_padding(padded_size(len(data.items_T), 64 if clock.rehearsal else 256))
    step = Step(shape, padded, clock.device, dtype_of(clock))
    apart = abs(float(step.loss(True)[0].detach()) / float(Step.loss(_on(step, data), True)[0].detach()) - 1)
    note = f"{len(padded.items_T)} tokens of which {len(data.items_T)} are real"
    yield row("  error of the padded step's loss", apart, "", 1e-2, note, at_most=True)
    replay: Callable[[Data], None] = partial(_rerun, step) if clock.rehearsal else step.capture()
    ms = clock.median_ms(partial(replay, padded))
    OURS_MS[name] = min(OURS_MS[name], ms)
    yield row("  as one CUDA graph, padded", ms, "ms", note="copies of the batch included")
    yield row("  as one CUDA graph, against eager PyTorch", eager_ms / ms, "x", 10)


def _rerun(step: Step, data: Data) -> None:
    step.data.copy_(data)
    step.run(True)


def _on(step: Step, data: Data) -> Step:
    other = copy(step)
    other.data = data
    return other


def against_compiled(clock: Clock) -> Iterator[Row]:
    """The same steps with torch.compile, about a minute per shape; last, because it tests none of our code."""
    for name, shape in step_shapes(clock).items():
        step = Step(shape, make_data(shape, clock.device), clock.device, dtype_of(clock))
        ours_ms = OURS_MS.get(name) or clock.median_ms(partial(step.run, True))
        if not clock.rehearsal:
            step.compile()
        compiled_ms = clock.median_ms(partial(step.run, False), repeats=1)
        note = f"{name.split(' (')[0]}: compiled {compiled_ms:.2f} ms, ours {ours_ms:.2f}"
        yield row("step against torch.compile, padded", compiled_ms / ours_ms, "x", 4, note)
