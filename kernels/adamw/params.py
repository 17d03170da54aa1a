"""What AdamW moves, and how."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class AdamWState:
    """Vectors of equal length: the weights, their gradient, and the moments."""

    weight: Tensor
    gradient: Tensor
    mean: Tensor
    square: Tensor


@dataclass(frozen=True, slots=True)
class AdamWRules:
    """``clip_norm``: the most that the gradient's length may be; 0: any."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float
