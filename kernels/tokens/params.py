"""The weights that tokens are computed with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenParams:
    """Weights, or their gradients: item rows have D columns, tokens M, and there are K kinds."""

    item_weight: Tensor
    """(D, M)"""
    action_M: Tensor
    kind_KM: Tensor
    action_item_weight: Tensor
    """(M, M)"""
    value_M: Tensor | None
    """(2, M): of having a value, and of its signed logarithm. None for a model without values."""
