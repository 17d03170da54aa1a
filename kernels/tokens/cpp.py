"""The tokens in C++: forward, and backward into gradients that the caller owns."""

from __future__ import annotations

import ctypes
from dataclasses import fields

import torch
from torch import Tensor

from kernels.library import address, function, num_threads
from kernels.row_types import type_of
from kernels.tokens.params import TokenParams

_WEIGHTS = tuple(each.name for each in fields(TokenParams))


class _Call(ctypes.Structure):
    """``TokensCall`` of csrc/level/tokens.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num", "width", "model", "kinds", "table_type", "num_threads")),
        *((name, ctypes.c_void_p) for name in ("table_VD", "place_n", "kinds_nK", "value_n", "side_nM")),
        *((name, ctypes.c_void_p) for name in _WEIGHTS),
        *((name, ctypes.c_void_p) for name in ("tokens_TM", "grad_TM", "d_table_VD", "d_side_nM")),
        *((f"d_{name}", ctypes.c_void_p) for name in _WEIGHTS),
    )


def _call(
    table_VD: Tensor, place_n: Tensor, kinds_nK: Tensor, value_n: Tensor | None, side_nM: Tensor | None,
    params: TokenParams, tokens_TM: Tensor,
) -> _Call:  # fmt: skip
    call = _Call(
        num=len(place_n), width=table_VD.shape[1], model=params.action_M.shape[0], kinds=kinds_nK.shape[1],
        table_type=type_of(table_VD), num_threads=num_threads(), table_VD=table_VD.data_ptr(),
        place_n=place_n.data_ptr(),
        kinds_nK=kinds_nK.data_ptr(), value_n=address(value_n), side_nM=address(side_nM),
        tokens_TM=tokens_TM.data_ptr(),
    )  # fmt: skip
    for name in _WEIGHTS:
        setattr(call, name, address(getattr(params, name)))
    return call


def _run(name: str, call: _Call) -> None:
    if function(name)(ctypes.byref(call)):
        raise MemoryError(f"{name}: no memory for its scratch; use smaller batches or fewer threads")


def tokens(
    table_VD: Tensor, place_n: Tensor, kinds_nK: Tensor, value_n: Tensor | None, side_nM: Tensor | None,
    params: TokenParams,
) -> Tensor:  # fmt: skip
    """See `kernels.tokens.tokens`."""
    tokens_TM = torch.empty((2 * len(place_n), params.action_M.shape[0]))
    _run("tokens_forward", _call(table_VD, place_n, kinds_nK, value_n, side_nM, params, tokens_TM))
    return tokens_TM


def token_gradients(
    grad_TM: Tensor, tokens_TM: Tensor, table_VD: Tensor, place_n: Tensor, kinds_nK: Tensor, value_n: Tensor | None,
    params: TokenParams, gradients: TokenParams, d_table_VD: Tensor, d_side_nM: Tensor | None,
) -> None:  # fmt: skip
    """See `kernels.tokens.token_gradients`."""
    call = _call(table_VD, place_n, kinds_nK, value_n, None, params, tokens_TM)
    call.grad_TM, call.d_table_VD, call.d_side_nM = grad_TM.data_ptr(), d_table_VD.data_ptr(), address(d_side_nM)
    for name in _WEIGHTS:
        setattr(call, f"d_{name}", address(getattr(gradients, name)))
    _run("tokens_backward", call)
