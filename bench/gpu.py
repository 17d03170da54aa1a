"""All measurements of the GPU kernels, in one run of less than five minutes: `python -m bench.gpu --out DIR`.

Ceilings are measured first, each op is checked before it is timed, and rows are written to disk as they are measured.
Each section runs in its own process: one that breaks the GPU's context, crashes or hangs costs only its own rows.
``--rehearse`` takes the same path at tiny shapes on the CPU, in Triton's interpreter; its numbers mean nothing. Needs
only torch, Triton and NumPy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.on_gpu.supervisor import RESULT, Section, supervise, work

BUDGET_S = 255.0
SECTIONS = (
    Section("ceilings", "bench.on_gpu.attention:ceilings", 10, 60),
    Section("live step", "bench.on_gpu.single_pass:live_steps", 20, 90),
    Section("single pass", "bench.on_gpu.single_pass:single_pass", 30, 110),
    Section("attention, long users", "bench.on_gpu.attention:long_users", 15, 60),
    Section("attention, short users", "bench.on_gpu.attention:short_users", 10, 60),
    Section("sampled softmax", "bench.on_gpu.ops:softmax", 10, 60),
    Section("row-wise Adagrad", "bench.on_gpu.ops:adagrad", 5, 40),
    Section("layers", "bench.on_gpu.step:layer_share", 10, 60),
    Section("attention by length", "bench.on_gpu.lengths:by_length", 10, 60),
    Section("training step", "bench.on_gpu.step:against_eager", 20, 60),
    Section("other ops", "bench.on_gpu.ops:others", 5, 30),
    Section("tiles", "bench.on_gpu.tiles:sweep", 10, 40),
    Section("torch.compile", "bench.on_gpu.step:against_compiled", 40, 120),
)
"""First what decides switches (graphs, the memory's group) and was never measured; the rest by importance."""


def measure(
    rehearse: bool, folder: Path | None, budget_s: float = BUDGET_S, only: Collection[str] = ()
) -> dict[str, Any]:
    """All sections, or ``only`` these; the results, even if some sections failed."""
    slow = 10 if rehearse else 1  # the interpreter, on a machine that others use too
    chosen = [
        replace(section, limit_s=slow * section.limit_s) for section in SECTIONS if not only or section.name in only
    ]
    with tempfile.TemporaryDirectory() as scratch:
        return supervise(chosen, folder or Path(scratch), rehearse, time.time() + budget_s)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """The rows alone; needs a GPU."""
    rows: list[dict[str, Any]] = measure(False, None, 60.0 if quick else BUDGET_S)["rows"]
    return rows


def command(argv: list[str] | None = None) -> int:
    """The command; its last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Measures the kernels on a GPU.")
    parser.add_argument("--out", type=Path, default=None, help=f"folder for {RESULT}, written as results come")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU, in Triton's interpreter")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds after which no section starts")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=[each.name for each in SECTIONS], help="these sections"
    )
    parser.add_argument("--quick", action="store_true", help="what fits a minute")
    parser.add_argument("--work", type=json.loads, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    if arguments.work is not None:
        return work(arguments.work, arguments.out, arguments.rehearse)
    if not arguments.rehearse:
        import torch

        if not torch.cuda.is_available():
            print("bench gpu: expected an NVIDIA GPU, found none; rehearse with --rehearse", file=sys.stderr)
            return 2
    budget_s = min(arguments.budget_s, 60.0) if arguments.quick else arguments.budget_s
    result = measure(arguments.rehearse, arguments.out, budget_s, arguments.only)
    print(json.dumps(result))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(command())
