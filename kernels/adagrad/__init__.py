"""Row-wise Adagrad: one accumulator per table row, and only touched rows cost anything.

Source: Adagrad, Duchi et al., JMLR 2011, with the mean of a row's squared gradient as its only state, as embedding
tables of recommenders use it (Mudigere et al., ISCA 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.adagrad import reference
from kernels.adagrad.dither import MOST_ROWS, Dither
from kernels.backend import choose
from kernels.dispatch import load

__all__ = ["Dither", "rowwise_adagrad_"]

_FLOATS = (torch.float32, torch.bfloat16, torch.float64)
_HALVES = (torch.bfloat16, torch.float16)


@torch.no_grad()
def rowwise_adagrad_(
    weight_VD: Tensor,
    state_V: Tensor,
    rows_N: Tensor,
    grad_ND: Tensor,
    *,
    lr: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    distinct: bool = False,
    dither: Dither | None = None,
    backend: str = "auto",
) -> None:
    """Update the touched rows of a table in place.

    ``weight_VD`` (V, D) float32, bfloat16 or float16; ``state_V`` (V,) float32; ``rows_N`` (N,) int64, a row may
    repeat, -1 is skipped; ``grad_ND`` (N, D) float32 or bfloat16. For each touched row, with g the sum of its
    gradients in the order of N (so the result does not depend on threads) plus ``weight_decay`` × weight::

        state += mean(g²);  weight -= lr · g / (sqrt(state) + eps)

    ``distinct``: no row repeats, which is not checked; a GPU then need not sort them. ``dither``: round weights of 16
    bits stochastically, up to 2^31 rows of the whole table; without it, to nearest.

    Raises ValueError (shapes, dtypes), IndexError (a row outside the table), `KernelUnavailable`.
    """
    _check(weight_VD, state_V, rows_N, grad_ND)
    if not (lr >= 0 and eps >= 0 and weight_decay >= 0):
        raise ValueError(f"lr, eps, weight_decay: expected 0 or above, got {lr}, {eps}, {weight_decay}")
    if dither is not None:
        _check_dither(weight_VD, dither)
    chosen = choose(backend, weight_VD.device)
    if rows_N.numel() and not rows_N.is_cuda:
        least, most = (int(x) for x in torch.aminmax(rows_N))
        if least < -1 or most >= weight_VD.shape[0]:
            raise IndexError(f"rows_N: expected rows -1 to {weight_VD.shape[0] - 1}, got {least} to {most}")
    ops = reference if chosen == "reference" else load("adagrad", chosen)
    known = {"distinct": True} if distinct and chosen == "triton" else {}
    rates = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
    ops.rowwise_adagrad_(weight_VD, state_V, rows_N, grad_ND, **rates, dither=dither, **known)


def _check_dither(weight_VD: Tensor, dither: Dither) -> None:
    if weight_VD.dtype not in _HALVES:
        raise ValueError(f"weight_VD: expected bfloat16 or float16 to round stochastically, got {weight_VD.dtype}")
    if dither.stride < 1 or dither.first < 0 or len(weight_VD) * dither.stride + dither.first > MOST_ROWS:
        raise ValueError(f"dither: expected rows of the whole table below 2^31, got {len(weight_VD)} and {dither}")


def _check(weight_VD: Tensor, state_V: Tensor, rows_N: Tensor, grad_ND: Tensor) -> None:
    if weight_VD.dim() != 2 or weight_VD.dtype not in (*_FLOATS, *_HALVES) or not weight_VD.is_contiguous():
        raise ValueError(
            f"weight_VD: expected contiguous (V, D) float32, bfloat16 or float16, got {weight_VD.dtype} "
            f"{tuple(weight_VD.shape)}"
        )
    state_dtype = torch.float64 if weight_VD.dtype == torch.float64 else torch.float32
    if tuple(state_V.shape) != (weight_VD.shape[0],) or state_V.dtype != state_dtype or not state_V.is_contiguous():
        raise ValueError(
            f"state_V: expected contiguous ({weight_VD.shape[0]},) {state_dtype}, got {state_V.dtype} "
            f"{tuple(state_V.shape)}"
        )
    if rows_N.dim() != 1 or rows_N.dtype != torch.int64:
        raise ValueError(f"rows_N: expected (N,) int64, got {rows_N.dtype} {tuple(rows_N.shape)}")
    if tuple(grad_ND.shape) != (rows_N.shape[0], weight_VD.shape[1]) or grad_ND.dtype not in _FLOATS:
        raise ValueError(
            f"grad_ND: expected ({rows_N.shape[0]}, {weight_VD.shape[1]}) float32 or bfloat16, got {grad_ND.dtype} "
            f"{tuple(grad_ND.shape)}"
        )
    devices = {x.device for x in (weight_VD, state_V, rows_N, grad_ND)}
    if len(devices) > 1:
        raise ValueError(f"weight_VD, state_V, rows_N, grad_ND: expected on one device, got {devices}")
