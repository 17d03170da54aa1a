"""Which version of an op runs: never silently a different one than was asked for."""

from __future__ import annotations

import torch

from kernels.compiled import KernelUnavailable

__all__ = ["BACKENDS", "KernelUnavailable", "choose"]
BACKENDS = ("auto", "reference", "cpp", "triton")


def choose(backend: str, device: torch.device) -> str:
    """``auto`` → ``cpp`` for CPU tensors, ``triton`` for CUDA tensors; impossible combinations are refused."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto":
        return "triton" if device.type == "cuda" else "cpp"
    if backend == "cpp" and device.type != "cpu":
        raise KernelUnavailable(f"backend='cpp' needs tensors on the CPU, got {device}; move them, or use 'triton'")
    return backend
