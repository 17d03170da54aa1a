# mypy: allow-untyped-calls
"""Whole training steps on the GPU: against the padded model, eager and compiled; where time goes; the single pass."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from bench.gpu_attention import dtype_of
from bench.gpu_model import Shape, Step, make_data
from bench.gpu_report import Clock, Row, row

ATTENTION = ("attention_forward_kernel", "query_gradient_kernel", "key_gradient_kernel", "bias_gradient_kernel",
             "fold_positions_kernel", "position_table_kernel")  # fmt: skip
TABLES = ("plan_kernel", "extremes_kernel", "ranges_kernel", "near_kernel", "bounds_kernel")
GEMM = ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitK", "gemv")
OURS = ("shared_", "loss_kernel", "finish_kernel", "add_slots", "adagrad", "norm", "gate", "silu", "residual",
        "add_programs", "count_kernel", "rank_kernel", "key_kernel")  # fmt: skip


def kind_of(kernel: str) -> str:
    """What a kernel's time is booked under."""
    for kind, words in (("attention", ATTENTION), ("tables", TABLES), ("GEMM", GEMM), ("our other kernels", OURS)):
        if any(word in kernel for word in words):
            return kind
    return "copies" if "mem" in kernel.lower() else "other"


def shares(clock: Clock, run: Callable[[], Any]) -> tuple[dict[str, float], float, list[tuple[str, float]]]:
    """(device milliseconds by kind, wall milliseconds, the ten longest kernels), of one profiled run."""
    if clock.rehearsal:
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
    """Shares in words."""
    total = sum(by_kind.values()) or 1.0
    return ", ".join(f"{kind} {ms / total:.0%}" for kind, ms in sorted(by_kind.items(), key=lambda pair: -pair[1]))


def long_tail(users: int, longest: int) -> tuple[int, ...]:
    """Lengths from a power law, the longest among them."""
    generator = np.random.Generator(np.random.Philox(1))
    lengths = (longest / 16 * (1 + generator.pareto(1.2, users))).astype(int).clip(8, longest)
    lengths[0] = longest
    return tuple(int(length) for length in lengths)


def layer_share(clock: Clock) -> list[Row]:
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
    rows = [row("layers d512 x 8: all but GEMM and attention", rest, "%", 8, note, at_most=True)]
    return rows + [row(f"  {name}", ms, "ms") for name, ms in longest]


def check_step(shape: Shape, clock: Clock) -> str:
    """The first loss of both versions on a small batch; raises if they differ."""
    small = replace(shape, lengths=tuple(min(each, 64) for each in shape.lengths[:4]), layers=min(shape.layers, 2))
    step = Step(small, make_data(small, clock.device), clock.device, torch.float32)
    ours, eager = float(step.loss(True)[0].detach()), float(step.loss(False)[0].detach())
    if not abs(ours - eager) < 2e-3 * abs(eager):
        raise ArithmeticError(f"the step is off: loss {ours}, eager {eager}")
    return f"loss {ours:.4f} = {eager:.4f}"


def against_eager(clock: Clock) -> list[Row]:
    """Whole steps; every number is a median of whole steps, launches included."""
    shapes = {
        "ML-1M large (8 layers, d 50, 2 heads, 128 users of up to 200)": Shape(
            8, 50, 2, tuple(int(n) for n in np.random.Generator(np.random.Philox(2)).integers(60, 201, 128)), 3706, 128
        ),
        "N 1024 long tail (8 layers, d 256, 4 heads, 64 users)": Shape(8, 256, 4, long_tail(64, 1024), 20_000, 512),
    }
    if clock.rehearsal:
        shapes = dict.fromkeys(shapes, Shape(1, 16, 1, (12, 7), 16, 8, 4))
    rows: list[Row] = []
    for name, shape in shapes.items():
        note = check_step(shape, clock)
        step = Step(shape, make_data(shape, clock.device), clock.device, dtype_of(clock))
        ours_ms = clock.median_ms(partial(step.run, True))
        by_kind, _, _ = shares(clock, partial(step.run, True))
        busy = sum(by_kind.values())
        eager_ms = clock.median_ms(partial(step.run, False), repeats=5)
        tokens = sum(shape.lengths)
        ours_note = f"{tokens / ours_ms * 1e3:,.0f} tokens/s; {described(by_kind)}; {note}"
        rows += [
            row(f"step, {name}", ours_ms, "ms", note=ours_note),
            row("  GPU idle share", 100 * max(0.0, 1 - busy / ours_ms), "%", note=f"device {busy:.2f} ms"),
            row("  against eager PyTorch, padded", eager_ms / ours_ms, "x", 10, f"eager {eager_ms:.2f} ms"),
        ]
        compiled_ms = _compiled_ms(step, clock)
        compiled_note = "compile did not run" if compiled_ms is None else f"compiled {compiled_ms:.2f} ms"
        rows.append(
            row("  against torch.compile", compiled_ms / ours_ms if compiled_ms else None, "x", 4, compiled_note)
        )
    return rows


def _compiled_ms(step: Step, clock: Clock) -> float | None:
    if clock.left_s < 90 and not clock.rehearsal:
        return None
    if not clock.rehearsal:  # compiling takes a minute or so, and rehearses nothing of ours
        step.compile()
    return clock.median_ms(lambda: step.run(False), repeats=5)


def synthetic_examples(
    num_users: int, num_items: int, mean_length: int, max_context: int, num_new: int, longest: int
) -> Iterator[Any]:
    """Users' histories in chunks of ``num_new``, users taking turns, as a single pass over a file sees them."""
    from state.example import Example, Interactions

    generator = np.random.Generator(np.random.Philox(3))
    lengths = np.minimum((mean_length * generator.lognormal(-0.3, 0.8, num_users)).astype(int) + 4, longest)

    def interactions(user: int, start: int, stop: int) -> Interactions:
        own = np.random.Generator(np.random.Philox(key=[user, 9]))
        item = (num_items ** own.random(int(lengths[user]))).astype(np.int64) * 7919 + 1
        gap = (10 ** (own.random(int(lengths[user])) * 7)).astype(np.int64)
        bits = own.integers(1, 8, int(lengths[user])).astype(np.uint32)
        count = stop - start
        return Interactions(
            item[start:stop], bits[start:stop], 10**12 + np.cumsum(gap)[start:stop], np.zeros(count, np.int64),
            np.full(count, np.nan, np.float32), np.zeros((count, 0), np.int64),
        )  # fmt: skip

    number = 0
    nothing = np.zeros(0, np.int64)
    for start in range(0, int(lengths.max()), num_new):
        for user in np.flatnonzero(lengths > start).tolist():
            stop = min(start + num_new, int(lengths[user]))
            held = interactions(user, max(0, start - max_context), stop)
            newest = int(held.timestamp_ms[-1])
            yield Example(
                user=str(user), partition=0, writer_epoch=1, number=number, interactions=held, num_new=stop - start,
                first_new_index=start, open_interactions=interactions(user, 0, 0), open_first_offsets=nothing,
                recent_ids=nothing, user_feature_hash=nothing, user_offset=number, applied_offset=number,
                replay_from_offset=number + 1, clock_ms=newest, newest_event_ms=newest, newest_record_ms=newest,
            )  # fmt: skip
            number += 1


_BUILD: list[subprocess.Popen[bytes]] = []


def build_library(*, wait: bool) -> None:
    """The trainer's id map is C++: where it is not compiled yet, that happens beside the other sections."""
    from kernels import build

    if not _BUILD and (wait or build.LIBRARY_PATH.exists()):
        return
    if not _BUILD:
        _BUILD.append(subprocess.Popen([sys.executable, "-m", "kernels.build"]))
    if wait:
        _BUILD[0].wait(timeout=180)


def single_pass(clock: Clock) -> list[Row]:
    """The trainer's own step (predict, count, learn) over synthetic users, without Kafka."""
    build_library(wait=True)
    from trainer.config import ModelConfig, TrainerConfig
    from trainer.step import Learner

    plans = {
        "MovieLens-sized (6,040 users, 3,706 items, 2 layers, d 64)": (
            (6040, 3706, 165, 200, 32, 2000), ModelConfig(), 64, 300
        ),
        "long users (256 users of up to 4,096, 100,000 items, 4 layers, d 256)": (
            (256, 100_000, 2000, 2048, 256, 4096),
            ModelConfig(num_layers=4, model_width=256, num_heads=4, qk_width=64, value_width=64, item_width=128,
                        max_context=2048, num_positions=4096, norm_len=1024.0), 16, 60,
        ),
    }  # fmt: skip
    if clock.rehearsal:
        tiny = ModelConfig(num_layers=1, model_width=16, num_heads=1, qk_width=16, value_width=16, item_width=16,
                           num_positions=32, num_time_buckets=8, max_context=8)  # fmt: skip
        plans = dict.fromkeys(plans, ((3, 20, 8, 8, 4, 12), tiny, 2, 2))
    rows: list[Row] = []
    for name, (world, model, batch, most) in plans.items():
        config = TrainerConfig(device=clock.device, metric_share=0.1, exclude_seen=False)
        rows += _pass(clock, name, Learner(model, config, clock.device), synthetic_examples(*world), batch, most)
    return rows


def _pass(clock: Clock, name: str, learner: Any, examples: Iterator[Any], batch: int, most: int) -> list[Row]:
    batches: list[list[Any]] = []
    while len(batches) < most + 6:
        taken = [example for _, example in zip(range(batch), examples, strict=False)]
        if not taken:
            break
        batches.append(taken)
    warm = min(3, len(batches) - 1)
    for each in batches[:warm]:
        learner.step(each)
    _synchronize(clock)
    began, events, tokens, steps = time.perf_counter(), 0, 0, 0
    deadline = began + max(5.0, min(45.0, clock.left_s / 3))
    for each in batches[warm:-3] if len(batches) > 6 else batches[warm:]:
        report = learner.step(each)
        events, tokens, steps = events + report.num_targets, tokens + report.num_tokens, steps + 1
        if time.perf_counter() > deadline:
            break
    _synchronize(clock)
    seconds = time.perf_counter() - began
    last = batches[-1]
    by_kind, _, longest = shares(clock, lambda: learner.step(last))
    step_ms = seconds / max(1, steps) * 1e3
    idle = 100 * max(0.0, 1 - sum(by_kind.values()) / step_ms)
    note = f"{steps} steps, {tokens / seconds:,.0f} tokens/s, {step_ms:.1f} ms a step"
    kernels = "; ".join(f"{kernel} {ms:.2f}" for kernel, ms in longest[:5])
    return [
        row(f"single pass, {name}", events / seconds, "events/s", note=note),
        row("  GPU idle share", idle, "%", note=f"{described(by_kind)}; longest (ms): {kernels}"),
    ]


def _synchronize(clock: Clock) -> None:
    if not clock.rehearsal:
        torch.cuda.synchronize()
