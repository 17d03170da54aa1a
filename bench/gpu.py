"""Everything that is promised of the GPU kernels, in one run under ten minutes: `python -m bench gpu --out DIR`.

Ceilings are measured first, each op is checked before it is timed, and results are on disk after every section.
``--rehearse`` walks the same path at tiny shapes on the CPU in Triton's interpreter; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

BUDGET_S = 540.0


def facts(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    import platform
    import subprocess

    import torch
    import triton

    command = ["git", "describe", "--always", "--dirty=+"]
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    name = torch.cuda.get_device_name(0) if device == "cuda" else "CPU, interpreted: a rehearsal"
    return {
        "machine": name, "commit": described.stdout.strip() or "unknown", "torch": torch.__version__,
        "triton": triton.__version__, "python": platform.python_version(), "dtype": "bfloat16",
    }  # fmt: skip


def measure(device: str, folder: Path | None, budget_s: float = BUDGET_S) -> dict[str, Any]:
    """All sections, the most important first."""
    from bench import gpu_attention, gpu_ops, gpu_step, gpu_tiles
    from bench.gpu_report import Clock, Report

    clock = Clock(device, budget_s)
    report = Report(clock, folder, facts(device))
    gpu_step.build_library(wait=False)
    report.section("ceilings", gpu_attention.ceilings, 10)
    report.section("attention, long users", gpu_attention.long_users, 40)
    report.section("attention, short users", gpu_attention.short_users, 20)
    report.section("sampled softmax", gpu_ops.softmax, 20)
    report.section("row-wise Adagrad", gpu_ops.adagrad, 10)
    report.section("layers", gpu_step.layer_share, 20)
    report.section("training step", gpu_step.against_eager, 60)
    report.section("single pass", gpu_step.single_pass, 60)
    report.section("other ops", gpu_ops.others, 20)
    report.section("tiles", gpu_tiles.sweep, 60)
    return report.as_json()


def run(quick: bool = False) -> list[dict[str, Any]]:
    """The rows alone; needs a GPU."""
    rows: list[dict[str, Any]] = measure("cuda", None, 60.0 if quick else BUDGET_S)["rows"]
    return rows


def command(argv: list[str] | None = None) -> int:
    """The command; its last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description="Measures the kernels on a GPU.")
    parser.add_argument("--out", type=Path, default=None, help="folder for gpu.json, written as results come")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU, in Triton's interpreter")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds after which no section starts")
    parser.add_argument("--quick", action="store_true", help="what fits a minute")
    arguments = parser.parse_args(argv)
    budget_s = min(arguments.budget_s, 60.0) if arguments.quick else arguments.budget_s
    if arguments.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    else:
        import torch

        if not torch.cuda.is_available():
            print("bench gpu: expected an NVIDIA GPU, found none; rehearse with --rehearse", file=sys.stderr)
            return 2
    result = measure("cpu" if arguments.rehearse else "cuda", arguments.out, budget_s)
    print(json.dumps(result))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(command())
