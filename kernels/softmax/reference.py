"""The definition of the softmax ops in plain PyTorch: simple and differentiable, but with all logits in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the scores: float64 for float64 inputs (to compare others with), else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_rows(x_RD: Tensor, normalize: bool, eps: float) -> Tensor:
    """``x / max(|x|, eps)`` by row, or ``x`` itself; in the accumulation dtype."""
    x_RD = x_RD.to(accumulation_dtype(x_RD.dtype))
    if not normalize:
        return x_RD
    norm_R1: Tensor = torch.linalg.vector_norm(x_RD, dim=-1, keepdim=True)
    return x_RD / norm_R1.clamp(min=eps)


def sampled_softmax(
    query_RD: Tensor,
    table_UD: Tensor,
    target_R: Tensor,
    negatives: Tensor,
    *,
    temperature: float,
    normalize: bool,
    eps: float,
    log_q_target_R: Tensor | None,
    log_q_negatives: Tensor | None,
    mask_hits: bool,
) -> Tensor:
    """Cross entropy of each row's target against the target and its negatives; see `kernels.sampled_softmax`."""
    query_RD = unit_rows(query_RD, normalize, eps)
    target_RD = unit_rows(table_UD[target_R], normalize, eps)
    negative_rows = unit_rows(table_UD[negatives.clamp(min=0)], normalize, eps)
    target_score_R = (query_RD * target_RD).sum(-1) / temperature
    if negatives.dim() == 1:
        score_RS = query_RD @ negative_rows.T / temperature
    else:
        score_RS = torch.einsum("rd,rsd->rs", query_RD, negative_rows) / temperature
    if log_q_target_R is not None and log_q_negatives is not None:
        target_score_R = target_score_R - log_q_target_R
        score_RS = score_RS - log_q_negatives
    masked = negatives < 0
    if mask_hits:
        masked = masked | (negatives == target_R[:, None])
    score_RS = score_RS.masked_fill(masked, float("-inf"))
    return torch.logsumexp(torch.cat([target_score_R[:, None], score_RS], dim=1), dim=1) - target_score_R


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
    """Cross entropy of each row's target against the valid rows of the table; see `kernels.full_softmax`."""
    score_RV = unit_rows(query_RD, normalize, eps) @ unit_rows(table_VD, normalize, eps).T / temperature
    target_score_R = score_RV.gather(1, target_R[:, None])[:, 0]
    if valid_V is not None:
        competes_RV = valid_V.expand(len(target_R), -1).scatter(1, target_R[:, None], True)
        score_RV = score_RV.masked_fill(~competes_RV, float("-inf"))
    return torch.logsumexp(score_RV, dim=1) - target_score_R


def candidate_mask(
    num_queries: int,
    num_rows: int,
    valid_V: Tensor | None,
    exclude_rows: Tensor | None,
    exclude_offsets_R1: Tensor | None,
    device: torch.device,
) -> Tensor:
    """(R, V) bool: valid, and not in the query's own list of excluded rows."""
    mask_RV = torch.ones(num_queries, num_rows, dtype=torch.bool, device=device)
    if valid_V is not None:
        mask_RV &= valid_V
    if exclude_rows is not None and exclude_offsets_R1 is not None:
        query = torch.arange(num_queries, device=device).repeat_interleave(exclude_offsets_R1.diff())
        mask_RV[query, exclude_rows] = False
    return mask_RV


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
    """1 + the better competitors + half of the equal ones, rounded up; see `kernels.rank_of_target`."""
    query_RD = query_RD.to(accumulation_dtype(query_RD.dtype))
    score_RV = query_RD @ unit_rows(table_VD, normalize, eps).T
    target_score_R1 = score_RV.gather(1, target_R[:, None])
    mask_RV = candidate_mask(len(target_R), len(table_VD), valid_V, exclude_rows, exclude_offsets_R1, query_RD.device)
    mask_RV = mask_RV.scatter(1, target_R[:, None], False)
    num_better = ((score_RV > target_score_R1) & mask_RV).sum(1)
    num_equal = ((score_RV == target_score_R1) & mask_RV).sum(1)
    undefined_R = target_score_R1[:, 0].isnan()  # must not rank as the best
    return 1 + torch.where(undefined_R, mask_RV.sum(1), num_better + (num_equal + 1) // 2)


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
    """The k best rows of each query, best first, equal scores by row; see `kernels.top_k`."""
    score_RV = unit_rows(query_RD, normalize, eps) @ unit_rows(table_VD, normalize, eps).T
    mask_RV = candidate_mask(len(query_RD), len(table_VD), valid_V, exclude_rows, exclude_offsets_R1, query_RD.device)
    score_RV = score_RV.masked_fill(~mask_RV | score_RV.isnan(), float("-inf"))
    scores, rows = torch.sort(score_RV, dim=1, descending=True, stable=True)
    scores_Rk, rows_Rk = scores[:, :k], rows[:, :k]
    return scores_Rk, torch.where(scores_Rk == float("-inf"), -1, rows_Rk)
