"""Row-wise Adagrad in C++, registered as a torch operator."""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p, cast

import torch
from torch import Tensor

from kernels import registration
from kernels.adagrad.dither import Dither
from kernels.backend import KernelUnavailable
from kernels.library import address, baseline, function, num_threads
from kernels.row_types import ROW_TYPES

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_NEAREST = Dither(0, stride=0)
"""Stands for no dither, since an operator takes only numbers."""


class _Dither(Structure):
    """``Dither`` of csrc/dither.h."""

    _fields_ = (("key", c_int64), ("stride", c_int64), ("first", c_int64))


def _update(
    weight_VD: Tensor,
    state_V: Tensor,
    rows_N: Tensor,
    grad_ND: Tensor,
    lr: float,
    eps: float,
    weight_decay: float,
    key: int,
    stride: int,
    first: int,
) -> None:
    """See `kernels.rowwise_adagrad_`."""
    if weight_VD.dtype not in ROW_TYPES or grad_ND.dtype not in _TYPES:
        raise KernelUnavailable(
            f"rowwise_adagrad_ in C++ takes float32 and bfloat16 (weights of float16 too), got {weight_VD.dtype} and "
            f"{grad_ND.dtype}; convert, or ask for backend='reference'"
        )
    rows_N, grad_ND = rows_N.contiguous(), grad_ND.contiguous()
    failed = baseline("adagrad")(
        cast(function("adagrad_update"), c_void_p),
        c_void_p(address(weight_VD)),
        c_int(ROW_TYPES[weight_VD.dtype]),
        c_void_p(address(state_V)),
        c_int64(weight_VD.shape[0]),
        c_int64(weight_VD.shape[1]),
        c_void_p(address(rows_N)),
        c_int64(rows_N.shape[0]),
        c_void_p(address(grad_ND)),
        c_int(_TYPES[grad_ND.dtype]),
        c_float(lr),
        c_float(eps),
        c_float(weight_decay),
        byref(_Dither(key, stride, first)) if stride else POINTER(_Dither)(),
        c_int(num_threads()),
    )
    if failed:
        raise MemoryError(f"rowwise_adagrad_: no memory to sort {rows_N.shape[0]} rows")


adagrad_operator = registration.register(
    _update, name="rowwise_adagrad_", fake=lambda *_: None, mutates_args=("weight_VD", "state_V")
)


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
    bits = dither or _NEAREST
    adagrad_operator(weight_VD, state_V, rows_N, grad_ND, lr, eps, weight_decay, bits.key, bits.stride, bits.first)
