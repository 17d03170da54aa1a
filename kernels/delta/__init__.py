"""Delta attention: new tokens against a cache of older keys and values, and against themselves.

Serving a user whose history has grown by a few events, or scoring candidates, needs attention only for the new rows
(M-FALCON in Zhai et al., ICML 2024); the cache is read in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.check import check_bias, check_counts, check_heads, check_norm, check_offsets, check_times
from kernels.backend import choose
from kernels.delta import reference
from kernels.dispatch import load

__all__ = ["delta_attention"]


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
    bucket_cache: BucketCache | None = None,
    backend: str = "auto",
) -> Tensor:
    """HSTU attention of the new tokens only: the rows of `kernels.hstu_attention` over cache + new, for the new tokens.

    ``q_SHD``, ``k_SHD`` (S, H, D), ``v_SHE`` (S, H, E): the new tokens of all users, ``delta_offsets_B1`` (B+1,)
    int64. User b's cache is rows cache_start_B[b] … + cache_len_B[b] of ``cache_k_CHD``, ``cache_v_CHE`` (users may
    share rows); new token s has position cache_len_B[b] + s. Times (S,) and (C,) int64. ``num_targets_B``: how many of
    a user's last new tokens see the history and themselves, but not each other. ``bucket_cache``: one per batch, shared
    by its layers; C++ keeps buckets there, Triton its tables of the new tokens. Gradients: q, k, v and the biases, but
    not the cache. Returns (S, H, E) in q's dtype.

    Raises ValueError (shapes, dtypes, offsets, a cache range outside the cache), `KernelUnavailable`.
    """
    check_heads(q_SHD, k_SHD, v_SHE)
    check_heads(q_SHD, cache_k_CHD, cache_v_CHE)
    check_offsets(delta_offsets_B1, q_SHD.shape[0], "delta_offsets_B1")
    check_norm(norm_len)
    check_bias(pos_bias_GP, q_SHD.shape[1], "pos_bias_GP")
    check_bias(time_bias_GK, q_SHD.shape[1], "time_bias_GK")
    check_times(time_bias_GK, time_buckets, query_time_S, key_time_S, q_SHD.shape[0], k_SHD.shape[0])
    check_times(time_bias_GK, time_buckets, cache_time_C, cache_time_C, cache_k_CHD.shape[0], cache_k_CHD.shape[0])
    check_counts(num_targets_B, delta_offsets_B1, "num_targets_B")
    _check_cache(cache_start_B, cache_len_B, len(delta_offsets_B1) - 1, cache_k_CHD.shape[0])
    chosen = choose(backend, q_SHD.device)
    shared = {} if chosen == "reference" else {"bucket_cache": bucket_cache}
    implementation = reference if chosen == "reference" else load("delta", chosen)
    out: Tensor = implementation.delta_attention(
        q_SHD,
        k_SHD,
        v_SHE,
        delta_offsets_B1,
        cache_k_CHD,
        cache_v_CHE,
        cache_start_B,
        cache_len_B,
        norm_len=norm_len,
        pos_bias_GP=pos_bias_GP,
        time_bias_GK=time_bias_GK,
        time_buckets=time_buckets,
        query_time_S=query_time_S,
        key_time_S=key_time_S,
        cache_time_C=cache_time_C,
        num_targets_B=num_targets_B,
        **shared,
    )
    return out


def _check_cache(cache_start_B: Tensor, cache_len_B: Tensor, num_users: int, num_cached: int) -> None:
    for name, tensor in (("cache_start_B", cache_start_B), ("cache_len_B", cache_len_B)):
        if tensor.dtype != torch.int64 or tensor.shape != (num_users,):
            raise ValueError(f"{name}: expected ({num_users},) int64, got {tuple(tensor.shape)} {tensor.dtype}")
    if cache_start_B.device.type != "cpu":
        return  # reading them would stall the GPU
    outside = (cache_len_B < 0) | (cache_start_B < 0) | (cache_start_B + cache_len_B > num_cached)
    if bool(outside.any()):
        raise ValueError(
            f"cache_start_B, cache_len_B: expected ranges within the {num_cached} cached rows, got one outside"
        )
