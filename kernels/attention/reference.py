"""The definition of HSTU attention: plain PyTorch, one user at a time, differentiable, any float dtype."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import silu

from kernels.attention.buckets import TimeBuckets


def visible(length: int, num_context: int, num_targets: int, device: torch.device) -> Tensor:
    """(length, length) bool: which key (column) a query (row) sees.

    Every token sees itself and those before it; the first ``num_context`` tokens also see each other in both
    directions; the last ``num_targets`` tokens see the history and themselves, but not each other.
    """
    query = torch.arange(length, device=device)[:, None]
    key = torch.arange(length, device=device)[None, :]
    allowed = (key <= query) | ((query < num_context) & (key < num_context))
    return allowed & ((key < length - num_targets) | (key == query))


def pair_bias(
    query_position: Tensor,
    key_position: Tensor,
    pos_bias_GP: Tensor | None,
    time_bias_GK: Tensor | None,
    time_buckets: TimeBuckets | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
) -> Tensor | float:
    """(G, queries, keys) bias of one user: rab^p[min(i-j, P-1)] (i-j < 0 uses index 0) + rab^t[bucket(tq_i - tk_j)]."""
    bias: Tensor | float = 0.0
    if pos_bias_GP is not None:
        distance = query_position[:, None] - key_position[None, :]
        bias = bias + pos_bias_GP[:, distance.clamp(0, pos_bias_GP.shape[1] - 1)]
    if time_bias_GK is not None:
        assert time_buckets is not None
        assert query_time is not None
        assert key_time is not None
        bias = bias + time_bias_GK[:, time_buckets.bucket(query_time[:, None] - key_time[None, :])]
    return bias


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float, allowed: Tensor, norm_len: float) -> Tensor:
    """(queries, H, E) of one user from (queries, H, D), (keys, H, D), (keys, H, E), bias and visibility."""
    scores = torch.einsum("ihd,jhd->hij", q, k) + bias
    weights = silu(scores) / norm_len
    return torch.einsum("hij,jhe->ihe", weights.masked_fill(~allowed, 0.0).to(v.dtype), v)


def attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THE: Tensor,
    offsets_B1: Tensor,
    *,
    norm_len: float,
    pos_bias_GP: Tensor | None = None,
    time_bias_GK: Tensor | None = None,
    time_buckets: TimeBuckets | None = None,
    query_time_T: Tensor | None = None,
    key_time_T: Tensor | None = None,
    num_context_B: Tensor | None = None,
    num_targets_B: Tensor | None = None,
) -> Tensor:
    """`kernels.hstu_attention`, computed literally."""
    bounds = offsets_B1.tolist()
    num_context = num_context_B.tolist() if num_context_B is not None else [0] * (len(bounds) - 1)
    num_targets = num_targets_B.tolist() if num_targets_B is not None else [0] * (len(bounds) - 1)
    outputs = [v_THE[:0]]
    for user, (start, stop) in enumerate(pairwise(bounds)):
        position = torch.arange(stop - start, device=q_THD.device)
        query_time = query_time_T[start:stop] if query_time_T is not None else None
        key_time = key_time_T[start:stop] if key_time_T is not None else None
        bias = pair_bias(position, position, pos_bias_GP, time_bias_GK, time_buckets, query_time, key_time)
        allowed = visible(stop - start, num_context[user], num_targets[user], q_THD.device)
        outputs.append(attend(q_THD[start:stop], k_THD[start:stop], v_THE[start:stop], bias, allowed, norm_len))
    return torch.cat(outputs)
