"""HSTU attention over jagged users, with relative position and time biases.

Source: Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
Recommendations", ICML 2024, equation 2 (pointwise aggregated attention with rab^{p,t}; no softmax, no 1/sqrt(d)).
"""

from __future__ import annotations

from torch import Tensor

from kernels.attention import reference
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.check import check_bias, check_counts, check_heads, check_norm, check_offsets, check_times
from kernels.backend import choose
from kernels.dispatch import load

__all__ = ["BucketCache", "TimeBuckets", "hstu_attention"]


def hstu_attention(
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
    bucket_cache: BucketCache | None = None,
    backend: str = "auto",
) -> Tensor:
    """A V with A_ij = SiLU(q_i·k_j + rab^p[i-j] + rab^t[bucket(tq_i - tk_j)]) / norm_len, j ≤ i in the same user.

    ``q_THD``, ``k_THD`` (T, H, D), ``v_THE`` (T, H, E): float32 or bfloat16 (the reference also takes float64), any
    strides with the last dimension contiguous; ``offsets_B1`` (B+1,) int64. ``norm_len``: a constant of the
    configuration. ``pos_bias_GP``: distances from P-1 on share the last entry. ``time_bias_GK`` needs
    ``time_buckets`` and the times of queries and keys (T,) int64 in one unit; differences must fit 64 bits.
    ``num_context_B``: how many of a user's first tokens see each other in both directions; ``num_targets_B``: how many
    of a user's last tokens see the history and themselves, but not each other (int64, (B,)). ``bucket_cache``: one per
    batch, shared by its layers. Gradients: q, k, v and both biases. Returns (T, H, E) in q's dtype.

    Raises ValueError (shapes, dtypes, offsets), `KernelUnavailable`.
    """
    check_heads(q_THD, k_THD, v_THE)
    check_offsets(offsets_B1, q_THD.shape[0])
    check_norm(norm_len)
    check_bias(pos_bias_GP, q_THD.shape[1], "pos_bias_GP")
    check_bias(time_bias_GK, q_THD.shape[1], "time_bias_GK")
    check_times(time_bias_GK, time_buckets, query_time_T, key_time_T, q_THD.shape[0], k_THD.shape[0])
    check_counts(num_context_B, offsets_B1, "num_context_B")
    check_counts(num_targets_B, offsets_B1, "num_targets_B")
    chosen = choose(backend, q_THD.device)
    shared = {} if chosen == "reference" else {"bucket_cache": bucket_cache}
    implementation = reference if chosen == "reference" else load("attention", chosen)
    out: Tensor = implementation.attention(
        q_THD,
        k_THD,
        v_THE,
        offsets_B1,
        norm_len=norm_len,
        pos_bias_GP=pos_bias_GP,
        time_bias_GK=time_bias_GK,
        time_buckets=time_buckets,
        query_time_T=query_time_T,
        key_time_T=key_time_T,
        num_context_B=num_context_B,
        num_targets_B=num_targets_B,
        **shared,
    )
    return out
