"""Validation of attention's inputs: what was expected, what came, what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention.buckets import TimeBuckets


def check_offsets(offsets_B1: Tensor, num_tokens: int, name: str = "offsets_B1") -> None:
    """Check jagged offsets: int64, from 0 to the number of tokens, not decreasing."""
    if offsets_B1.dtype != torch.int64 or offsets_B1.dim() != 1 or len(offsets_B1) < 1:
        raise ValueError(f"{name}: expected a (B+1,) int64 tensor, got {tuple(offsets_B1.shape)} {offsets_B1.dtype}")
    if offsets_B1.device.type != "cpu":
        return  # reading them would stall the GPU
    offsets = offsets_B1.numpy()
    if offsets[0] != 0 or offsets[-1] != num_tokens or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(
            f"{name}: expected offsets that start at 0, do not decrease and end at {num_tokens} tokens, got "
            f"{int(offsets_B1[0])}…{int(offsets_B1[-1])}; pass the cumulative sum of the users' lengths"
        )


def check_heads(q_THD: Tensor, k_THD: Tensor, v_THE: Tensor) -> None:
    """Check shapes and dtypes of queries, keys and values."""
    for name, tensor in (("q", q_THD), ("k", k_THD), ("v", v_THE)):
        if tensor.dim() != 3:
            raise ValueError(f"{name}: expected (tokens, heads, width), got {tuple(tensor.shape)}")
        if tensor.dtype != q_THD.dtype or tensor.device != q_THD.device:
            raise ValueError(
                f"{name}: expected {q_THD.dtype} on {q_THD.device} as q has, got {tensor.dtype} on {tensor.device}"
            )
    if q_THD.shape[1:] != k_THD.shape[1:] or k_THD.shape[:2] != v_THE.shape[:2]:
        raise ValueError(
            "q, k, v: expected (·, H, D), (T, H, D), (T, H, E), got "
            f"{tuple(q_THD.shape)}, {tuple(k_THD.shape)}, {tuple(v_THE.shape)}"
        )


def check_bias(bias: Tensor | None, num_heads: int, name: str) -> None:
    """Check a bias table: (1 or H, at least one entry)."""
    if bias is None:
        return
    if bias.dim() != 2 or bias.shape[0] not in (1, num_heads) or bias.shape[1] < 1 or not bias.is_floating_point():
        raise ValueError(
            f"{name}: expected a float tensor (1 or {num_heads} heads, at least 1 entry), got "
            f"{tuple(bias.shape)} {bias.dtype}"
        )


def check_times(
    time_bias_GK: Tensor | None,
    time_buckets: TimeBuckets | None,
    query_time: Tensor | None,
    key_time: Tensor | None,
    num_queries: int,
    num_keys: int,
) -> None:
    """Check that a time bias comes with its buckets and with both times, which are int64."""
    if time_bias_GK is None:
        return
    if time_buckets is None or query_time is None or key_time is None:
        raise ValueError(
            "time_bias_GK: expected time_buckets, query times and key times with it, got only some; pass all or none"
        )
    if time_bias_GK.shape[1] != time_buckets.num_buckets:
        raise ValueError(
            f"time_bias_GK: expected {time_buckets.num_buckets} columns (time_buckets.num_buckets), got "
            f"{time_bias_GK.shape[1]}"
        )
    for name, times, count in (("query_time", query_time, num_queries), ("key_time", key_time, num_keys)):
        if times.dtype != torch.int64 or times.shape != (count,):
            raise ValueError(f"{name}: expected ({count},) int64, got {tuple(times.shape)} {times.dtype}")


def check_counts(counts_B: Tensor | None, offsets_B1: Tensor, name: str) -> None:
    """Check numbers of context or target tokens: int64, one per user, within the user's length."""
    if counts_B is None:
        return
    if counts_B.dtype != torch.int64 or counts_B.shape != (len(offsets_B1) - 1,):
        raise ValueError(
            f"{name}: expected ({len(offsets_B1) - 1},) int64, got {tuple(counts_B.shape)} {counts_B.dtype}"
        )
    if counts_B.device.type != "cpu":
        return
    counts, offsets = counts_B.numpy(), offsets_B1.numpy()
    if ((counts < 0) | (counts > offsets[1:] - offsets[:-1])).any():
        raise ValueError(f"{name}: expected counts from 0 to each user's length, got one outside")


def check_norm(norm_len: float) -> None:
    """Check the divisor of attention's weights."""
    if not norm_len > 0:
        raise ValueError(f"norm_len: expected a positive constant of the configuration, got {norm_len}")
