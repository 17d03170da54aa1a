"""How far from float64 a result is, and the instruction sets to be forced."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.library import LEVELS, machine_level


def relative_error(result: Tensor, reference: Tensor) -> float:
    """|result - reference| / |reference| in float64; a NaN anywhere is infinitely far."""
    result, reference = result.double(), reference.double()
    if not bool(torch.isfinite(result).all()):
        return float("inf")
    return float((result - reference).norm() / reference.norm())


def levels() -> list[str]:
    """Every instruction set that this machine can run."""
    return list(LEVELS[: LEVELS.index(machine_level()) + 1])
