"""Delta attention in C++: the same operator as attention, with the cache read in place."""

from __future__ import annotations

from torch import Tensor

from kernels.attention.args import require_supported
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.cpp import attention_op, cached_buckets


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
    pos_bias_GP: Tensor | None,
    time_bias_GK: Tensor | None,
    time_buckets: TimeBuckets | None,
    query_time_S: Tensor | None,
    key_time_S: Tensor | None,
    cache_time_C: Tensor | None,
    num_targets_B: Tensor | None,
    bucket_cache: BucketCache | None = None,
) -> Tensor:
    """`kernels.delta_attention` on the CPU, after validation."""
    require_supported(q_SHD, "delta_attention")
    buckets = None
    if time_bias_GK is not None and time_buckets is not None and query_time_S is not None and key_time_S is not None:
        assert cache_time_C is not None
        cache = (cache_start_B, cache_len_B, cache_time_C)
        buckets = cached_buckets(bucket_cache, delta_offsets_B1, time_buckets, query_time_S, key_time_S, None, cache)
    targets = None if num_targets_B is None else num_targets_B.contiguous()
    # The cache is a constant here: no gradient flows into it.
    out: Tensor = attention_op(
        q_SHD,
        k_SHD,
        v_SHE,
        delta_offsets_B1,
        norm_len,
        pos_bias_GP,
        time_bias_GK,
        buckets,
        None,
        targets,
        cache_k_CHD.detach(),
        cache_v_CHE.detach(),
        cache_start_B,
        cache_len_B,
    )
    return out
