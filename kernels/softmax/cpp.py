"""The softmax ops in C++, with the same signatures as their references."""

from __future__ import annotations

from torch import Tensor

from kernels.softmax.cpp_best import rank_of_target, top_k
from kernels.softmax.cpp_loss import loss
from kernels.softmax.cpp_loss import loss as sampled_softmax

CHECKS_LISTS = True
"""Lists of negatives are checked while they are read: a separate pass would cost a tenth of the loss's time."""

__all__ = ["full_softmax", "rank_of_target", "sampled_softmax", "top_k"]


def full_softmax(
    query_RD: Tensor,
    table_VD: Tensor,
    target_R: Tensor,
    *,
    temperature: float,
    normalize: bool,
    eps: float,
    valid_V: Tensor | None,
) -> Tensor:
    """See `kernels.full_softmax`."""
    return loss(
        query_RD, table_VD, target_R, None, temperature=temperature, normalize=normalize, eps=eps, valid_V=valid_V
    )
