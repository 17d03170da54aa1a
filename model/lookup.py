"""Rows of a table by their places, whose gradients are added up in an order that is not left to chance.

On a GPU `index_add_` adds atomically, and beyond `FEW` places so may the gradient of PyTorch's embedding. The gradient
of an index is sorted instead, without waiting for the device.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

FEW = 3072
"""Up to this many places, PyTorch's gradient of an embedding is one launch that adds them in order."""


def rows_at(place: Tensor, rows_UD: Tensor) -> Tensor:
    """(…, D) the rows at places (…) from 0 to U - 1."""
    return rows_UD[place] if rows_UD.is_cuda and place.numel() > FEW else F.embedding(place, rows_UD)


def added_at(place_n: Tensor, grad_nD: Tensor, num_rows: int) -> Tensor:
    """(rows, D) the gradient of ``rows_at(place_n, …)``: the sums of each row's."""
    if grad_nD.is_cuda and len(place_n) <= FEW:
        return cast("Tensor", torch.ops.aten.embedding_dense_backward(grad_nD, place_n, num_rows, -1, False))
    total_UD = grad_nD.new_zeros(num_rows, grad_nD.shape[1])
    if not grad_nD.is_cuda:
        return total_UD.index_add_(0, place_n, grad_nD)
    # `index_put_` itself would read the largest place from the device first.
    accumulate = unsafe = True
    return cast("Tensor", torch.ops.aten._index_put_impl_(total_UD, [place_n], grad_nD, accumulate, unsafe))
