"""Ranks and best rows in C++."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels.backend import KernelUnavailable
from kernels.library import address, function, num_threads

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_POINTERS = ("target_R", "valid_V", "exclude_rows", "exclude_offsets_R1", "rank_R", "row_Rk", "score_Rk")


class _Call(ctypes.Structure):
    """RankCall of csrc/level/softmax_rank.cpp."""

    _fields_ = (
        ("query_RD", ctypes.c_void_p),
        ("table_VD", ctypes.c_void_p),
        ("num_queries", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("k", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("eps", ctypes.c_float),
        ("type", ctypes.c_int32),
        ("normalize", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


def _run(
    name: str, query_RD: Tensor, table_VD: Tensor, *, k: int, normalize: bool, eps: float, **tensors: Tensor | None
) -> None:
    if query_RD.dtype not in _TYPES:
        raise KernelUnavailable(
            f"{name} in C++ takes float32 and bfloat16, got {query_RD.dtype}; convert, or ask for backend='reference'"
        )
    if len(table_VD) >= 2**31 - 1:
        raise KernelUnavailable(f"{name} in C++ takes fewer than 2^31 - 1 rows, got {len(table_VD)}; split the table")
    query_RD, table_VD = query_RD.detach().contiguous(), table_VD.detach().contiguous()
    kept = {key: None if x is None else x.contiguous() for key, x in tensors.items()}
    call = _Call(
        query_RD=address(query_RD),
        table_VD=address(table_VD),
        num_queries=len(query_RD),
        num_rows=len(table_VD),
        width=query_RD.shape[1],
        k=k,
        eps=eps,
        type=_TYPES[query_RD.dtype],
        normalize=int(normalize),
        num_threads=num_threads(),
        **{key: address(x) for key, x in kept.items()},
    )
    if function(f"softmax_{name}")(ctypes.byref(call)):
        raise MemoryError(f"softmax_{name}: no memory for temporary buffers; use fewer queries at a time")


def _sorted_lists(rows: Tensor | None, offsets_R1: Tensor | None, num_rows: int) -> Tensor | None:
    """Each query's excluded rows in ascending order."""
    if rows is None or offsets_R1 is None or rows.numel() == 0:
        return None
    query = torch.arange(len(offsets_R1) - 1).repeat_interleave(offsets_R1.diff())
    return torch.sort(query * num_rows + rows).values - query * num_rows


def rank_of_target(
    query_RD: Tensor,
    table_VD: Tensor,
    target_R: Tensor,
    *,
    normalize: bool,
    eps: float,
    valid_V: Tensor | None,
    exclude_rows: Tensor | None,
    exclude_offsets_R1: Tensor | None,
) -> Tensor:
    """See `kernels.rank_of_target`."""
    rank_R = torch.empty(len(query_RD), dtype=torch.int64)
    _run(
        "rank",
        query_RD,
        table_VD,
        k=0,
        normalize=normalize,
        eps=eps,
        target_R=target_R,
        valid_V=valid_V,
        exclude_rows=_sorted_lists(exclude_rows, exclude_offsets_R1, len(table_VD)),
        exclude_offsets_R1=exclude_offsets_R1,
        rank_R=rank_R,
    )
    return rank_R


def top_k(
    query_RD: Tensor,
    table_VD: Tensor,
    k: int,
    *,
    normalize: bool,
    eps: float,
    valid_V: Tensor | None,
    exclude_rows: Tensor | None,
    exclude_offsets_R1: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `kernels.top_k`."""
    score_Rk = torch.empty(len(query_RD), k, dtype=torch.float32)
    row_Rk = torch.empty(len(query_RD), k, dtype=torch.int64)
    _run(
        "best",
        query_RD,
        table_VD,
        k=k,
        normalize=normalize,
        eps=eps,
        valid_V=valid_V,
        exclude_rows=_sorted_lists(exclude_rows, exclude_offsets_R1, len(table_VD)),
        exclude_offsets_R1=exclude_offsets_R1,
        score_Rk=score_Rk,
        row_Rk=row_Rk,
    )
    return score_Rk, row_Rk
