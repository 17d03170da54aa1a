"""The C++ kernels on one core, side by side with their peers: attention, a whole step, losses and tables."""

from __future__ import annotations

import torch

from bench.on_cpu import attention, losses, step
from bench.options import parser_of
from bench.output.report import report
from bench.timing import Row, copy_rate, gemm_rate, one_thread, row


def limits() -> list[Row]:
    """The limits of this core: arithmetic and memory."""
    return [
        row("this core's fp32 GEMM", gemm_rate(torch.float32) / 1e9, "GFLOP/s", None, "1024 x 1024 x 1024, PyTorch"),
        row("this core's bf16 GEMM", gemm_rate(torch.bfloat16) / 1e9, "GFLOP/s", None, "1024 x 1024 x 1024, PyTorch"),
        row("this core's copy", copy_rate() / 1e9, "GB/s", None, "read and written"),
    ]


PARTS = {"attention": attention.rows, "step": step.rows, "losses": losses.rows}


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("kernels", __doc__)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="may be repeated; default: all of them")
    options = parser.parse_args(arguments)
    with one_thread():
        rows = limits() + [each for part in options.part or PARTS for each in PARTS[part](options.quick)]
    return report("kernels", arguments, rows, options.out)
