"""Delta attention on CUDA tensors: attention among the new tokens, plus the part from the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.attention import triton_launch
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.triton_bias import make_position_table
from kernels.attention.triton_bias_launch import add_programs, fold_positions
from kernels.attention.triton_launch import Batch, dense_rows
from kernels.delta.triton_cache import add_parts_kernel, cache_forward_kernel, cache_gradient_kernel
from kernels.triton_shared import INTERPRETED, dot_precision, fast_math, next_power, num_processors, require_device

KEYS = 64


@dataclass(frozen=True, eq=False)
class Cache:
    """Cached keys and values, each user's range of rows, and their times."""

    k: Tensor
    v: Tensor
    start_B: Tensor
    len_B: Tensor
    offsets_B1: Tensor
    time_buckets: TimeBuckets | None
    query_time: Tensor | None
    key_time: Tensor | None

    def arguments(self, tiles_B: Tensor) -> tuple[Tensor, ...]:
        """The kernels' arguments that distribute the work."""
        return (tiles_B, self.offsets_B1, self.start_B, self.len_B)


def _rows(num_tokens: int, num_users: int) -> int:
    """Rows of a tile: 16 for a few new events per user, more for many candidates."""
    return 16 if INTERPRETED or num_tokens <= 32 * num_users else 64


def _tiles(offsets_B1: Tensor, rows: int) -> Tensor:
    return ((offsets_B1.diff() + (rows - 1)) // rows).cumsum(0)


def _options(q: Tensor, v: Tensor, rows: int, pos_bias: Any, time_bias: Any) -> dict[str, Any]:
    keys = 32 if INTERPRETED or q.dtype == torch.float32 else KEYS
    return {
        "D": q.shape[2], "E": v.shape[2], "WIDTH_D": next_power(q.shape[2]), "WIDTH_E": next_power(v.shape[2]),
        "BM": rows, "BN": keys, "HAS_POSITION": pos_bias is not None, "HAS_TIME": time_bias is not None,
        "FAST": fast_math(q.dtype), "PRECISION": dot_precision(q.dtype), "num_warps": 4, "num_stages": 2,
    }  # fmt: skip


def _group_stride(bias: Tensor | None) -> int:
    """The stride from one head's row of a bias to the next; 0 if all heads share one."""
    return 0 if bias is None or bias.shape[0] == 1 else bias.stride(0)


def _time_arguments(time_bias: Tensor | None, cache: Cache) -> tuple[Any, ...]:
    if time_bias is None or cache.time_buckets is None:
        return (None, 0, None, None, None)
    thresholds = cache.time_buckets.on(time_bias.device)
    return (time_bias, _group_stride(time_bias), thresholds, cache.query_time, cache.key_time)


class DeltaAttention(torch.autograd.Function):
    """No gradient flows into the cache."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pos_bias: Tensor | None, time_bias: Tensor | None,
        batch: Batch, cache: Cache, norm_len: float,
    ) -> Tensor:  # fmt: skip
        """The output; saves what the gradients need."""
        q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
        pos_bias = pos_bias.contiguous() if pos_bias is not None else None
        time_bias = time_bias.contiguous() if time_bias is not None else None
        table = make_position_table(pos_bias) if pos_bias is not None else None
        ctx.save_for_backward(q, k, v, pos_bias, time_bias, table)
        ctx.batch, ctx.cache, ctx.norm_len = batch, cache, norm_len
        num_tokens, num_heads = q.shape[:2]
        rows = _rows(num_tokens, len(cache.len_B))
        tiles = triton.cdiv(num_tokens, rows) + len(cache.len_B)
        splits = max(1, min(16, 2 * num_processors(q) // (tiles * num_heads)))
        parts = torch.empty(splits + 1, num_tokens, num_heads, v.shape[2], dtype=torch.float32, device=q.device)
        num_positions = pos_bias.shape[1] if pos_bias is not None else 0
        triton_launch.forward(q, k, v, batch, norm_len, table, num_positions, time_bias, out=parts[0])
        time = _time_arguments(time_bias, cache)
        num_thresholds = time_bias.shape[1] - 1 if time_bias is not None else 0
        cache_forward_kernel[(tiles, num_heads, splits)](
            q, cache.k, cache.v, parts, *triton_launch.strides(q, cache.k, cache.v),
            *cache.arguments(_tiles(cache.offsets_B1, rows)), pos_bias, _group_stride(pos_bias), num_positions,
            *time, num_thresholds, num_thresholds.bit_length(),
            len(cache.len_B), len(cache.len_B).bit_length(), num_tokens, num_heads, 1.0 / norm_len,
            **_options(q, v, rows, pos_bias, time_bias),
        )  # fmt: skip
        out = torch.empty(num_tokens, num_heads, v.shape[2], dtype=q.dtype, device=q.device)
        add_parts_kernel[(triton.cdiv(out.numel(), 1024),)](parts, out, splits + 1, out.numel(), BLOCK=1024)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the order of the inputs."""
        q, k, v, pos_bias, time_bias, table = ctx.saved_tensors
        grad, batch, cache, norm_len = dense_rows(grad), ctx.batch, ctx.cache, ctx.norm_len
        own_grad = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        q_grad = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        k_grad, v_grad = torch.empty(k.shape, dtype=k.dtype, device=k.device), torch.empty_like(v).contiguous()
        own = triton_launch.backward(
            q, k, v, grad, batch, norm_len, pos_bias, time_bias, table, own_grad, k_grad, v_grad
        )
        cached = _cache_gradient(q, v, grad, own_grad, q_grad, pos_bias, time_bias, cache, norm_len)
        biases = [a + b if a is not None and b is not None else None for a, b in zip(own, cached, strict=True)]
        return (q_grad, k_grad, v_grad, *biases, None, None, None)


def _cache_gradient(
    q: Tensor, v: Tensor, grad: Tensor, own_grad: Tensor, q_grad: Tensor, pos_bias: Tensor | None,
    time_bias: Tensor | None, cache: Cache, norm_len: float,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Write q_grad; returns the cache's part of the biases' gradients."""
    num_tokens, num_heads = q.shape[:2]
    rows, num_users = _rows(num_tokens, len(cache.len_B)), len(cache.len_B)
    num_tiles = triton.cdiv(num_tokens, rows) + num_users
    num_programs = num_heads * max(1, min(num_tiles, num_processors(q) * 2 // num_heads))
    num_positions = pos_bias.shape[1] if pos_bias is not None else 0
    num_buckets = time_bias.shape[1] if time_bias is not None else 1
    width = next_power(num_buckets)
    position_sums = torch.zeros(num_programs, num_positions + 512, dtype=torch.float32, device=q.device)
    time_sums = torch.empty(num_programs, width, dtype=torch.float32, device=q.device)
    time = _time_arguments(time_bias, cache)
    cache_gradient_kernel[(num_programs,)](
        q, cache.k, cache.v, grad, own_grad, q_grad, *triton_launch.strides(q, cache.k, cache.v, grad, q_grad),
        *cache.arguments(_tiles(cache.offsets_B1, rows)), pos_bias, _group_stride(pos_bias), num_positions,
        position_sums, num_positions + 512, *time, time_sums, num_buckets - 1, (num_buckets - 1).bit_length(),
        num_users, num_users.bit_length(), num_heads, num_tiles, 1.0 / norm_len, WIDTH_K=width,
        **_options(q, v, rows, pos_bias, time_bias),
    )  # fmt: skip
    pos_grad = time_grad = None
    if pos_bias is not None:
        pos_grad = fold_positions(add_programs(position_sums, pos_bias.shape[0], num_heads, 0.5 / norm_len), pos_bias)
    if time_bias is not None:
        total = add_programs(time_sums, time_bias.shape[0], num_heads, 0.5 / norm_len)
        time_grad = total[:, :num_buckets].to(time_bias.dtype)
    return pos_grad, time_grad


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
) -> Tensor:
    """`kernels.delta_attention` on a GPU (or any tensors in Triton's interpreter)."""
    require_device(q_SHD, "delta_attention")
    if q_SHD.shape[0] == 0:
        return v_SHE.new_empty(v_SHE.shape)
    if time_bias_GK is None:
        time_buckets = query_time_S = key_time_S = cache_time_C = None
    batch = triton_launch.prepare(
        delta_offsets_B1, q_SHD.shape[0], time_buckets, query_time_S, key_time_S, None, num_targets_B, bucket_cache
    )
    cache = Cache(
        dense_rows(cache_k_CHD.detach()), dense_rows(cache_v_CHE.detach()), cache_start_B.contiguous(),
        cache_len_B.contiguous(), delta_offsets_B1.contiguous(), time_buckets,
        query_time_S.contiguous() if query_time_S is not None else None,
        cache_time_C.contiguous() if cache_time_C is not None else None,
    )  # fmt: skip
    result: Tensor = DeltaAttention.apply(q_SHD, k_SHD, v_SHE, pos_bias_GP, time_bias_GK, batch, cache, norm_len)
    return result
