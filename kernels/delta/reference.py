"""The definition of delta attention: plain PyTorch, one user at a time; no gradient flows into the cache."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from kernels.attention.buckets import TimeBuckets
from kernels.attention.reference import attend, pair_bias, visible


def delta_attention(
    q_SHD: Tensor,
    k_SHD: Tensor,
    v_SHE: Tensor,
    delta_offsets_B1: Tensor,
    cache_k_CHD: Tensor,
    cache_v_CHE: Tensor,
    cache_start_B: Tensor,
    cache_len_B: Tensor,
    *,
    norm_len: float,
    pos_bias_GP: Tensor | None = None,
    time_bias_GK: Tensor | None = None,
    time_buckets: TimeBuckets | None = None,
    query_time_S: Tensor | None = None,
    key_time_S: Tensor | None = None,
    cache_time_C: Tensor | None = None,
    num_targets_B: Tensor | None = None,
) -> Tensor:
    """`kernels.delta_attention`, computed literally."""
    bounds = delta_offsets_B1.tolist()
    num_targets = num_targets_B.tolist() if num_targets_B is not None else [0] * (len(bounds) - 1)
    outputs = [v_SHE[:0]]
    for user, (start, stop) in enumerate(pairwise(bounds)):
        cached = slice(int(cache_start_B[user]), int(cache_start_B[user]) + int(cache_len_B[user]))
        length = int(cache_len_B[user]) + stop - start
        position = torch.arange(length, device=q_SHD.device)
        query_time = query_time_S[start:stop] if query_time_S is not None else None
        key_time = None
        if cache_time_C is not None and key_time_S is not None:
            key_time = torch.cat([cache_time_C[cached], key_time_S[start:stop]])
        query_position = position[int(cache_len_B[user]) :]
        bias = pair_bias(query_position, position, pos_bias_GP, time_bias_GK, time_buckets, query_time, key_time)
        allowed = visible(length, 0, num_targets[user], q_SHD.device)[int(cache_len_B[user]) :]
        keys = torch.cat([cache_k_CHD[cached].detach(), k_SHD[start:stop]])
        values = torch.cat([cache_v_CHE[cached].detach(), v_SHE[start:stop]])
        outputs.append(attend(q_SHD[start:stop], keys, values, bias, allowed, norm_len))
    return torch.cat(outputs)
