"""Softmax over items: sampled and full cross entropy, ranks and best rows; logits never exist in memory.

Scores are ``cos(query, row)`` (``normalize=True``, ``x / max(|x|, eps)``) or the plain inner product. Cross entropy
divides them by ``temperature`` and, if it is sampled, subtracts ``log_q``, the log of a row's expected number of draws
(logQ correction: Bengio & Senecal 2008; Yi et al., RecSys 2019).
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from kernels.backend import choose
from kernels.dispatch import load
from kernels.softmax import reference
from kernels.softmax.check import check_range

_FLOATS = (torch.float32, torch.bfloat16, torch.float64)


def sampled_softmax(
    query_RD: Tensor,
    table_UD: Tensor,
    target_R: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 0.05,
    normalize: bool = True,
    eps: float = 1e-6,
    log_q_target_R: Tensor | None = None,
    log_q_negatives: Tensor | None = None,
    mask_hits: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Cross entropy of each row's target against the target and its negatives.

    ``query_RD`` (R, D) and ``table_UD`` (U, D): float32 or bfloat16, same dtype; gradients flow to both (the table's
    is dense, (U, D): for a large table, pass only the distinct rows needed). ``target_R`` (R,) int64 rows of the table.
    ``negatives`` int64: (S,) shared by all queries, or (R, S), a list per query; ``target_R`` itself for in-batch
    negatives; -1 is an empty slot. ``log_q_target_R`` (R,) and ``log_q_negatives`` (the shape of ``negatives``)
    float32, both or neither. ``mask_hits``: a negative equal to the query's target does not compete. Returns (R,)
    losses, float32, 0 if nothing competes.

    Raises ValueError (shapes, dtypes), IndexError (a row outside the table), `KernelUnavailable`.
    """
    _check_pair(query_RD, table_UD, "table_UD")
    _check_rows(target_R, (query_RD.shape[0],), "target_R", query_RD.device)
    if negatives.dim() not in (1, 2) or (negatives.dim() == 2 and negatives.shape[0] != query_RD.shape[0]):
        raise ValueError(
            f"negatives: expected (S,) or (R, S) with R = {query_RD.shape[0]}, got {tuple(negatives.shape)}"
        )
    _check_rows(negatives, tuple(negatives.shape), "negatives", query_RD.device)
    if (log_q_target_R is None) != (log_q_negatives is None):
        raise ValueError("log_q_target_R and log_q_negatives: expected both or neither, got one; pass the other too")
    if log_q_target_R is not None and log_q_negatives is not None:
        _check_shape(log_q_target_R, tuple(target_R.shape), "log_q_target_R")
        _check_shape(log_q_negatives, tuple(negatives.shape), "log_q_negatives")
    _check_scale(temperature, eps)
    ops = _version(backend, query_RD)
    check_range(target_R, table_UD.shape[0], "target_R", lowest=0)
    if negatives.dim() == 1 or not getattr(ops, "CHECKS_LISTS", False):
        check_range(negatives, table_UD.shape[0], "negatives", lowest=-1)
    loss_R: Tensor = ops.sampled_softmax(
        query_RD,
        table_UD,
        target_R,
        negatives,
        temperature=temperature,
        normalize=normalize,
        eps=eps,
        log_q_target_R=log_q_target_R,
        log_q_negatives=log_q_negatives,
        mask_hits=mask_hits,
    )
    return loss_R


def full_softmax(
    query_RD: Tensor,
    table_VD: Tensor,
    target_R: Tensor,
    *,
    temperature: float = 0.05,
    normalize: bool = True,
    eps: float = 1e-6,
    valid_V: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Exact cross entropy over the whole table, gradients to ``query_RD`` (R, D) and ``table_VD`` (V, D).

    ``target_R`` (R,) int64. ``valid_V`` (V,) bool: rows that compete (None: all); the target always does.
    Returns (R,) float32 losses. Errors as `sampled_softmax`.
    """
    _check_pair(query_RD, table_VD, "table_VD")
    _check_rows(target_R, (query_RD.shape[0],), "target_R", query_RD.device)
    _check_valid(valid_V, table_VD)
    _check_scale(temperature, eps)
    ops = _version(backend, query_RD)
    check_range(target_R, table_VD.shape[0], "target_R", lowest=0)
    loss_R: Tensor = ops.full_softmax(
        query_RD, table_VD, target_R, temperature=temperature, normalize=normalize, eps=eps, valid_V=valid_V
    )
    return loss_R


def rank_of_target(
    query_RD: Tensor,
    table_VD: Tensor,
    target_R: Tensor,
    *,
    normalize: bool = True,
    eps: float = 1e-6,
    valid_V: Tensor | None = None,
    exclude_rows: Tensor | None = None,
    exclude_offsets_R1: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The rank of each query's target among the rows that compete: (R,) int64, 1 is best. No gradient.

    Rows compete if valid (``valid_V`` (V,) bool; None: all) and not among the query's excluded rows:
    ``exclude_rows[exclude_offsets_R1[r]:exclude_offsets_R1[r + 1]]`` (int64, repeats allowed). The target is ranked
    even if invalid or excluded. Rows whose score equals the target's count half, rounded up, so a scorer that gives all
    rows the same score gets the middle rank, not the first. A NaN does not compete, and ranks a target last.
    """
    _check_pair(query_RD, table_VD, "table_VD")
    _check_rows(target_R, (query_RD.shape[0],), "target_R", query_RD.device)
    _check_valid(valid_V, table_VD)
    _check_excluded(exclude_rows, exclude_offsets_R1, query_RD, table_VD)
    ops = _version(backend, query_RD)
    check_range(target_R, table_VD.shape[0], "target_R", lowest=0)
    with torch.no_grad():
        rank_R: Tensor = ops.rank_of_target(
            query_RD,
            table_VD,
            target_R,
            normalize=normalize,
            eps=eps,
            valid_V=valid_V,
            exclude_rows=exclude_rows,
            exclude_offsets_R1=exclude_offsets_R1,
        )
    return rank_R


def top_k(
    query_RD: Tensor,
    table_VD: Tensor,
    k: int,
    *,
    normalize: bool = True,
    eps: float = 1e-6,
    valid_V: Tensor | None = None,
    exclude_rows: Tensor | None = None,
    exclude_offsets_R1: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The best rows for each query: (R, k) float32 scores and (R, k) int64 rows, best first. No gradient.

    Rows with equal scores are in row order. ``valid_V`` and the excluded rows as in `rank_of_target`. If fewer than k
    rows compete, the rest is score -inf, row -1. k must not exceed the number of rows.
    """
    _check_pair(query_RD, table_VD, "table_VD")
    _check_valid(valid_V, table_VD)
    _check_excluded(exclude_rows, exclude_offsets_R1, query_RD, table_VD)
    if not 1 <= k <= table_VD.shape[0]:
        raise ValueError(f"k: expected 1 to the table's {table_VD.shape[0]} rows, got {k}")
    ops = _version(backend, query_RD)
    with torch.no_grad():
        score_Rk, row_Rk = ops.top_k(
            query_RD,
            table_VD,
            k,
            normalize=normalize,
            eps=eps,
            valid_V=valid_V,
            exclude_rows=exclude_rows,
            exclude_offsets_R1=exclude_offsets_R1,
        )
    return score_Rk, row_Rk


def _version(backend: str, query_RD: Tensor) -> ModuleType:
    chosen = choose(backend, query_RD.device)
    return reference if chosen == "reference" else load("softmax", chosen)


def _check_pair(query_RD: Tensor, table_UD: Tensor, name: str) -> None:
    if query_RD.dim() != 2 or table_UD.dim() != 2 or query_RD.shape[1] != table_UD.shape[1]:
        raise ValueError(
            f"query_RD and {name}: expected (R, D) and (rows, D), "
            f"got {tuple(query_RD.shape)} and {tuple(table_UD.shape)}"
        )
    if query_RD.shape[1] == 0:
        raise ValueError("query_RD: expected D of 1 or more, got 0")
    if query_RD.dtype not in _FLOATS or query_RD.dtype != table_UD.dtype:
        raise ValueError(
            f"query_RD and {name}: expected the same dtype, float32 or bfloat16, "
            f"got {query_RD.dtype} and {table_UD.dtype}"
        )
    if query_RD.device != table_UD.device:
        raise ValueError(f"{name}: expected the device of query_RD, {query_RD.device}, got {table_UD.device}")


def _check_rows(rows: Tensor, shape: tuple[int, ...], name: str, device: torch.device) -> None:
    _check_shape(rows, shape, name)
    if rows.dtype != torch.int64:
        raise ValueError(f"{name}: expected int64, got {rows.dtype}")
    if rows.device != device:
        raise ValueError(f"{name}: expected the device of query_RD, {device}, got {rows.device}")


def _check_shape(x: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")


def _check_scale(temperature: float, eps: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature: expected above 0, got {temperature}")
    if not eps > 0:
        raise ValueError(f"eps: expected above 0, got {eps}")


def _check_valid(valid_V: Tensor | None, table_VD: Tensor) -> None:
    if valid_V is not None and (valid_V.dtype != torch.bool or tuple(valid_V.shape) != (table_VD.shape[0],)):
        raise ValueError(
            f"valid_V: expected bool of shape ({table_VD.shape[0]},), got {valid_V.dtype} {tuple(valid_V.shape)}"
        )


def _check_excluded(rows: Tensor | None, offsets_R1: Tensor | None, query_RD: Tensor, table_VD: Tensor) -> None:
    if (rows is None) != (offsets_R1 is None):
        raise ValueError("exclude_rows and exclude_offsets_R1: expected both or neither, got one; pass the other too")
    if rows is None or offsets_R1 is None:
        return
    _check_rows(offsets_R1, (query_RD.shape[0] + 1,), "exclude_offsets_R1", query_RD.device)
    _check_rows(rows, (rows.numel(),), "exclude_rows", query_RD.device)
    if rows.is_cuda:  # reading values would wait for the device; the kernel ignores rows outside the table
        return
    check_range(rows, table_VD.shape[0], "exclude_rows", lowest=0)
    if int(offsets_R1[0]) != 0 or int(offsets_R1[-1]) != rows.numel() or bool((offsets_R1.diff() < 0).any()):
        raise ValueError(
            f"exclude_offsets_R1: expected offsets rising from 0 to {rows.numel()} (the length of exclude_rows), "
            f"got {int(offsets_R1[0])} to {int(offsets_R1[-1])}"
        )
