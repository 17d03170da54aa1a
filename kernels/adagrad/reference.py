"""The definition of row-wise Adagrad in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.adagrad.dither import Dither, dithered, random_bits


def rowwise_adagrad_(
    weight_VD: Tensor,
    state_V: Tensor,
    rows_N: Tensor,
    grad_ND: Tensor,
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    dither: Dither | None,
) -> None:
    """See `kernels.rowwise_adagrad_`."""
    compute = torch.float64 if weight_VD.dtype == torch.float64 else torch.float32
    keep_N = rows_N >= 0
    rows_U, place_N = torch.unique(rows_N[keep_N], return_inverse=True)
    grad_UD = torch.zeros(len(rows_U), weight_VD.shape[1], dtype=compute, device=weight_VD.device)
    grad_UD.index_add_(0, place_N, grad_ND[keep_N].to(compute))
    weight_UD = weight_VD[rows_U].to(compute)
    grad_UD += weight_decay * weight_UD
    state_U = state_V[rows_U] + (grad_UD * grad_UD).mean(1)
    state_V[rows_U] = state_U
    weight_UD -= lr * grad_UD / (state_U.sqrt() + eps)[:, None]
    if dither is not None:
        random_UD = random_bits(dither, rows_U, weight_VD.shape[1])
        weight_UD = dithered(weight_UD, random_UD, weight_VD.dtype)
    weight_VD[rows_U] = weight_UD.to(weight_VD.dtype)
