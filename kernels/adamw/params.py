"""The vectors that AdamW updates, and its settings."""

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
    """``clip_norm``: the largest norm of the gradient, which is scaled down to it; 0: no limit."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float
