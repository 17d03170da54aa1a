"""The C++ kernels on one core, side by side with their peers."""

from __future__ import annotations

import torch

from bench import kernels_attention, kernels_losses, kernels_step
from bench.timing import Row, copy_rate, gemm_rate, one_thread, row


def limits() -> list[Row]:
    """The limits of this core: arithmetic and memory."""
    return [
        row("this core's fp32 GEMM", gemm_rate(torch.float32) / 1e9, "GFLOP/s", None, "1024 x 1024 x 1024, PyTorch"),
        row("this core's bf16 GEMM", gemm_rate(torch.bfloat16) / 1e9, "GFLOP/s", None, "1024 x 1024 x 1024, PyTorch"),
        row("this core's copy", copy_rate() / 1e9, "GB/s", None, "read and written"),
    ]


def run(quick: bool = False) -> list[Row]:
    """All rows, on one thread."""
    with one_thread():
        return [
            *limits(),
            *kernels_attention.rows(quick),
            *kernels_step.rows(quick),
            *kernels_losses.run(quick),
        ]
