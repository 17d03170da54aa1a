"""HSTU attention on a GPU: what to launch, with which arguments, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.triton_backward import (
    bias_gradient_kernel,
    fold_positions_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)
from kernels.attention.triton_bias import make_position_tables
from kernels.attention.triton_forward import attention_forward_kernel
from kernels.attention.triton_plan import BLOCK, Plan, make_plan
from kernels.attention.triton_tile import Tile, forward_tile, key_gradient_tile, query_gradient_tile
from kernels.attention.triton_times import TimeTables, make_time_tables
from kernels.triton_shared import fast_math, next_power, num_processors


@dataclass(frozen=True, eq=False)
class Batch:
    """What attention knows of its batch apart from queries, keys, values and biases; the same for every layer."""

    plan: Plan
    times: TimeTables | None
    has_context: bool
    has_targets: bool


def prepare(
    offsets_B1: Tensor,
    num_tokens: int,
    time_buckets: TimeBuckets | None,
    query_time_T: Tensor | None,
    key_time_T: Tensor | None,
    num_context_B: Tensor | None,
    num_targets_B: Tensor | None,
    cache: BucketCache | None,
) -> Batch:
    """The batch's tables, from the cache where it holds these very inputs."""
    inputs = (offsets_B1, query_time_T, key_time_T, num_context_B, num_targets_B)
    key = (
        "triton",
        num_tokens,
        id(time_buckets),
        *((x.data_ptr(), x._version) if x is not None else None for x in inputs),
    )
    if cache is not None and cache.key == key and isinstance(cache.value, Batch):
        return cache.value
    plan = make_plan(offsets_B1.contiguous(), num_tokens, num_context_B, num_targets_B)
    times = None
    if time_buckets is not None and query_time_T is not None and key_time_T is not None:
        thresholds_K1 = time_buckets.on(query_time_T.device)
        times = make_time_tables(thresholds_K1, query_time_T.contiguous(), key_time_T.contiguous(), plan)
    batch = Batch(plan, times, num_context_B is not None, num_targets_B is not None)
    if cache is not None:
        cache.key, cache.value, cache.inputs = key, batch, (*inputs, time_buckets)
    return batch


def _strides(*tensors: Tensor) -> list[int]:
    return [x.stride(0) for x in tensors] + [x.stride(1) for x in tensors]


def _group_stride(table: Tensor | None) -> int:
    return 0 if table is None or table.shape[0] == 1 else table.stride(0)


def _position_arguments(table: Tensor | None, num_positions: int) -> tuple[Any, ...]:
    return (table, _group_stride(table), table.shape[-1] if table is not None else 0, num_positions)


def _time_arguments(time_bias_GK: Tensor | None, times: TimeTables | None) -> tuple[Any, ...]:
    if time_bias_GK is None or times is None:
        return (None, 0, None, None, None, None, None, None, None)
    tables = (times.near, times.ranges, times.bounds, times.unsorted_1)
    return (
        time_bias_GK, _group_stride(time_bias_GK), *tables, times.thresholds_K1, times.query_time_T, times.key_time_T
    )  # fmt: skip


def _options(q: Tensor, v: Tensor, tile: Tile, batch: Batch, position: Any, time: Any) -> dict[str, Any]:
    return {
        "D": q.shape[2], "E": v.shape[2], "WIDTH_D": next_power(q.shape[2]), "WIDTH_E": next_power(v.shape[2]),
        "BM": tile.queries, "BN": tile.keys, "HAS_POSITION": position is not None, "HAS_TIME": time is not None,
        "HAS_CONTEXT": batch.has_context, "HAS_TARGETS": batch.has_targets, "FAST": fast_math(q.dtype),
        "PRECISION": "ieee", "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip


def _orders(time_bias_GK: Tensor | None) -> tuple[bool, ...]:
    # Both versions start; the one that does not suit the batch's times ends at once. Asking which would stall the GPU.
    return (True,) if time_bias_GK is None else (True, False)


def forward(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, norm_len: float, position_rows: Tensor | None, num_positions: int,
    time_bias_GK: Tensor | None, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """(T, H, E). ``position_rows``: the first of `make_position_tables`."""
    num_tokens, num_heads = q.shape[:2]
    out = torch.empty(num_tokens, num_heads, v.shape[2], dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    tile = tile or forward_tile(q.dtype, max(q.shape[2], v.shape[2]))
    grid = (triton.cdiv(num_tokens, BLOCK) * (BLOCK // tile.queries) * num_heads,)
    plan = batch.plan
    options = _options(q, v, tile, batch, position_rows, time_bias_GK)
    for in_order in _orders(time_bias_GK):
        attention_forward_kernel[grid](
            q, k, v, out, *_strides(q, k, v, out), plan.start_T, plan.context_T, plan.history_T, plan.query_order,
            *_position_arguments(position_rows, num_positions), *_time_arguments(time_bias_GK, batch.times),
            time_bias_GK.shape[1] - 1 if time_bias_GK is not None else 0, num_tokens, num_heads, 1.0 / norm_len,
            SORTED=in_order, **options,
        )  # fmt: skip
    return out


def backward_queries(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, batch: Batch, norm_len: float, position_rows: Tensor | None,
    pos_bias_GP: Tensor | None, time_bias_GK: Tensor | None, tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """dQ (T, H, D), and the gradients of the biases."""
    num_tokens, num_heads = q.shape[:2]
    tile = tile or query_gradient_tile(q.dtype, max(q.shape[2], v.shape[2]))
    q_grad = torch.empty_like(q, memory_format=torch.contiguous_format)
    num_tiles = triton.cdiv(num_tokens, BLOCK) * (BLOCK // tile.queries)
    num_programs = num_heads * max(1, min(num_tiles, num_processors(q) * 2 // num_heads))
    num_positions = pos_bias_GP.shape[1] if pos_bias_GP is not None else 0
    num_buckets = time_bias_GK.shape[1] if time_bias_GK is not None else 1
    position_sums = time_sums = None
    if pos_bias_GP is not None:
        position_sums = torch.zeros(num_programs, num_positions + 512, dtype=torch.float32, device=q.device)
    if time_bias_GK is not None:
        time_sums = torch.empty(num_programs, next_power(num_buckets), dtype=torch.float32, device=q.device)
    plan = batch.plan
    for in_order in _orders(time_bias_GK):
        query_gradient_kernel[(num_programs,)](
            q, k, v, grad, q_grad, *_strides(q, k, v, grad, q_grad),
            plan.start_T, plan.context_T, plan.history_T, plan.query_order,
            *_position_arguments(position_rows, num_positions), position_sums, num_positions + 512,
            *_time_arguments(time_bias_GK, batch.times), time_sums, num_buckets - 1, num_tokens, num_heads, num_tiles,
            1.0 / norm_len, SORTED=in_order, WIDTH_K=next_power(num_buckets),
            **_options(q, v, tile, batch, position_rows, time_bias_GK),
        )  # fmt: skip
    pos_grad = time_grad = None
    if pos_bias_GP is not None and position_sums is not None:
        sums = _add_programs(position_sums, pos_bias_GP.shape[0], num_positions + 512, num_heads, 1.0 / norm_len)
        pos_grad = torch.empty_like(pos_bias_GP, memory_format=torch.contiguous_format)
        fold_positions_kernel[(triton.cdiv(num_positions, 128), pos_grad.shape[0])](
            sums, pos_grad, num_positions, BLOCK=128
        )
    if time_bias_GK is not None and time_sums is not None:
        sums = _add_programs(time_sums, time_bias_GK.shape[0], num_buckets, num_heads, 1.0 / norm_len)
        time_grad = sums.to(time_bias_GK.dtype)
    return q_grad, pos_grad, time_grad


def _add_programs(sums: Tensor, num_groups: int, width: int, num_heads: int, scale: float) -> Tensor:
    total = torch.empty(num_groups, width, dtype=torch.float32, device=sums.device)
    bias_gradient_kernel[(triton.cdiv(width, 64), num_groups)](
        sums, total, sums.stride(0), width, 0, sums.shape[0], num_heads, width, scale,
        GROUPED=num_groups > 1, PROGRAMS=32, BLOCK=64,
    )  # fmt: skip
    return total


def backward_keys(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, batch: Batch, norm_len: float, position_columns: Tensor | None,
    num_positions: int, time_bias_GK: Tensor | None, tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dK (T, H, D), dV (T, H, E). ``position_columns``: the second of `make_position_tables`."""
    num_tokens, num_heads = q.shape[:2]
    tile = tile or key_gradient_tile(q.dtype, max(q.shape[2], v.shape[2]))
    k_grad = torch.empty_like(k, memory_format=torch.contiguous_format)
    v_grad = torch.empty_like(v, memory_format=torch.contiguous_format)
    grid = (triton.cdiv(num_tokens, BLOCK) * (BLOCK // tile.keys) * num_heads,)
    plan = batch.plan
    for in_order in _orders(time_bias_GK):
        key_gradient_kernel[grid](
            q, k, v, grad, k_grad, v_grad, *_strides(q, k, v, grad, k_grad, v_grad),
            plan.start_T, plan.stop_T, plan.context_T, plan.history_T, plan.key_order,
            *_position_arguments(position_columns, num_positions), *_time_arguments(time_bias_GK, batch.times),
            time_bias_GK.shape[1] - 1 if time_bias_GK is not None else 0, num_tokens, num_heads, 1.0 / norm_len,
            SORTED=in_order, **_options(q, v, tile, batch, position_columns, time_bias_GK),
        )  # fmt: skip
    return k_grad, v_grad


def dense_rows(x: Tensor) -> Tensor:
    """The tensor, copied only where its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


class Attention(torch.autograd.Function):
    """Saves its inputs and the batch's tables; recomputes the scores."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pos_bias_GP: Tensor | None, time_bias_GK: Tensor | None,
        batch: Batch, norm_len: float,
    ) -> Tensor:  # fmt: skip
        q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
        time_bias_GK = time_bias_GK.contiguous() if time_bias_GK is not None else None
        rows, columns = make_position_tables(dense_rows(pos_bias_GP)) if pos_bias_GP is not None else (None, None)
        ctx.save_for_backward(q, k, v, pos_bias_GP, time_bias_GK, rows, columns)
        ctx.batch, ctx.norm_len = batch, norm_len
        num_positions = pos_bias_GP.shape[1] if pos_bias_GP is not None else 0
        return forward(q, k, v, batch, norm_len, rows, num_positions, time_bias_GK)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, pos_bias_GP, time_bias_GK, rows, columns = ctx.saved_tensors
        grads = backward(q, k, v, grad, ctx.batch, ctx.norm_len, pos_bias_GP, time_bias_GK, rows, columns)
        return (*grads, None, None)


def backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, batch: Batch, norm_len: float, pos_bias_GP: Tensor | None,
    time_bias_GK: Tensor | None, rows: Tensor | None, columns: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and of both biases; ``rows``, ``columns`` of `make_position_tables`."""
    if q.shape[0] == 0:
        zeros = [torch.zeros_like(x) if x is not None else None for x in (pos_bias_GP, time_bias_GK)]
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), zeros[0], zeros[1]
    grad = dense_rows(grad)
    num_positions = pos_bias_GP.shape[1] if pos_bias_GP is not None else 0
    q_grad, pos_grad, time_grad = backward_queries(
        q, k, v, grad, batch, norm_len, rows, pos_bias_GP, time_bias_GK
    )  # fmt: skip
    k_grad, v_grad = backward_keys(q, k, v, grad, batch, norm_len, columns, num_positions, time_bias_GK)
    return q_grad, k_grad, v_grad, pos_grad, time_grad


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
) -> Tensor:
    """`kernels.hstu_attention` on a GPU (or any tensors in Triton's interpreter)."""
    num_tokens = q_THD.shape[0]
    batch = None
    if num_tokens and len(offsets_B1) > 1:
        if time_bias_GK is None:
            time_buckets = None
        batch = prepare(
            offsets_B1, num_tokens, time_buckets, query_time_T, key_time_T, num_context_B, num_targets_B, bucket_cache
        )
    result: Tensor = Attention.apply(q_THD, k_THD, v_THE, pos_bias_GP, time_bias_GK, batch, norm_len)
    return result
