"""Measuring on a shared machine: contenders take turns in one process, and processor time counts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

Row = dict[str, Any]
Work = Callable[[], object]


def take_turns(contenders: dict[str, Work], rounds: int, repeats: dict[str, int] | None = None) -> dict[str, float]:
    """Each contender's median processor seconds. They run one after the other in every round; a first round warms up.

    ``repeats``: how many times a quick contender runs in its turn. Work that returns a float has measured itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            for _ in range((repeats or {}).get(name, 1)):
                began = time.process_time()
                reported = work()
                elapsed = reported if isinstance(reported, float) else time.process_time() - began
                if turn:
                    seconds[name].append(elapsed)
    return {name: median(values) for name, values in seconds.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block, torch computes on one thread, from a fixed seed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def kernel_share(work: Work) -> float:
    """The operating system's share of one run's processor time, mostly spent on clearing fresh memory.

    It varies with the machine (a virtual machine's pages may be created twice), and is largest for the eager peers.
    """
    before = os.times()
    work()
    after = os.times()
    user_s, system_s = after.user - before.user, after.system - before.system
    return system_s / max(user_s + system_s, 1e-9)


ARITHMETIC: dict[str, tuple[torch.dtype, str]] = {
    "fp32": (torch.float32, "highest"),
    "fp32 high": (torch.float32, "high"),
    "bf16": (torch.bfloat16, "highest"),
}
"""The dtype and `torch.set_float32_matmul_precision` of our contenders; peers run at PyTorch's default, "highest".

"fp32 high" may use two bfloat16 terms, about 16 bits."""


def at_precision(precision: str, work: Work) -> Work:
    """The same work at this precision, which is restored afterwards."""

    def run() -> object:
        torch.set_float32_matmul_precision(precision)
        try:
            return work()
        finally:
            torch.set_float32_matmul_precision("highest")

    return run


def row(
    name: str, value: float | None, unit: str, target: float | None = None, note: str = "", *, most: bool = False
) -> Row:
    """One line of the report. ``most``: the target is an upper bound. Without a value, the note says why."""
    met = None if target is None or value is None else (value <= target if most else value >= target)
    shown = None if value is None else round(value, 4)
    return {"name": name, "value": shown, "unit": unit, "target": target, "met": met, "note": note}


def gemm_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product on the threads in use, which is the machine's limit."""
    left, right = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    return float(2 * 1024**3 / take_turns({"gemm": lambda: left @ right}, 7)["gemm"])


def copy_rate() -> float:
    """Bytes/s of a copy, read and written."""
    source = torch.randn(16 << 20)
    target = torch.empty_like(source)
    return float(2 * source.nbytes / take_turns({"copy": lambda: target.copy_(source)}, 5)["copy"])
