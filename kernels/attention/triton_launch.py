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
    unfold_kernel,
)
from kernels.attention.triton_forward import attention_forward_kernel
from kernels.attention.triton_plan import BLOCK, Plan, make_plan
from kernels.attention.triton_tile import Tile, forward_tile, key_gradient_tile, query_gradient_tile
from kernels.attention.triton_times import TimeTables, make_time_tables
from kernels.triton_shared import architecture, dot_precision, fast_math, next_power, num_processors


@dataclass(frozen=True, eq=False)
class Batch:
    """What attention knows of its batch apart from queries, keys, values and biases; the same for every layer."""

    plan: Plan
    times: TimeTables | None
    has_context: bool
    has_targets: bool
    orders: tuple[bool, ...]
    """Which versions start: for times in order, for times that go back; both where the host does not know."""


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
    key = ("triton", num_tokens, id(time_buckets), *map(_identity, inputs))
    if cache is not None and cache.key == key and isinstance(cache.value, Batch):
        return cache.value
    plan = make_plan(offsets_B1.contiguous(), num_tokens, num_context_B, num_targets_B)
    times = None
    if time_buckets is not None and query_time_T is not None and key_time_T is not None:
        thresholds_K1 = time_buckets.on(query_time_T.device)
        times = make_time_tables(thresholds_K1, query_time_T.contiguous(), key_time_T.contiguous(), plan)
    orders: tuple[bool, ...] = (True,)
    if times is not None:
        # Layers that share a cache are worth one look at the device; a single call starts both versions instead, and
        # the one that does not suit ends at once.
        known = cache.in_order if cache is not None else None
        if known is None and cache is not None:
            known = int(times.unsorted_1) == 0
        orders = (True, False) if known is None else (known,)
    batch = Batch(plan, times, num_context_B is not None, num_targets_B is not None, orders)
    if cache is not None:
        cache.key, cache.value, cache.inputs = key, batch, (*inputs, time_buckets)
    return batch


def _identity(tensor: Tensor | None) -> tuple[int, int] | None:
    """Which values: where they lie, and how often they were written in place."""
    if tensor is None:
        return None
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version  # noqa: SLF001


def strides(*tensors: Tensor) -> list[int]:
    """Strides of tokens, then of heads."""
    return [x.stride(0) for x in tensors] + [x.stride(1) for x in tensors]


def group_stride(table: Tensor | None) -> int:
    """From one head's row of a bias to the next's; 0 where all heads share one."""
    return 0 if table is None or table.shape[0] == 1 else table.stride(0)


def _position_arguments(table: Tensor | None, num_positions: int) -> tuple[Any, ...]:
    return (table, group_stride(table), num_positions)


def _time_arguments(time_bias_GK: Tensor | None, times: TimeTables | None) -> tuple[Any, ...]:
    if time_bias_GK is None or times is None:
        return (None, 0, None, None, None, None, None, None, None)
    time_bias_GK = time_bias_GK.to(torch.float32)
    tables = (times.near, times.ranges, times.bounds, times.unsorted_1)
    return (
        time_bias_GK, group_stride(time_bias_GK), *tables, times.thresholds_K1, times.query_time_T, times.key_time_T
    )  # fmt: skip


def _options(q: Tensor, v: Tensor, tile: Tile, batch: Batch, position: Any, time: Any) -> dict[str, Any]:
    return {
        "D": q.shape[2], "E": v.shape[2], "WIDTH_D": next_power(q.shape[2]), "WIDTH_E": next_power(v.shape[2]),
        "BM": tile.queries, "BN": tile.keys, "HAS_POSITION": position is not None, "HAS_TIME": time is not None,
        "HAS_CONTEXT": batch.has_context, "HAS_TARGETS": batch.has_targets, "FAST": fast_math(q.dtype),
        "PRECISION": dot_precision(q.dtype), "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, norm_len: float, position_table: Tensor | None, num_positions: int,
    time_bias_GK: Tensor | None, tile: Tile | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(T, H, E), in ``out`` if given. ``position_table``: of `make_position_table`."""
    num_tokens, num_heads = q.shape[:2]
    if out is None:
        out = torch.empty(num_tokens, num_heads, v.shape[2], dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    plan, shape = batch.plan, tile or forward_tile(q.dtype, max(q.shape[2], v.shape[2]), architecture(q))
    grid = (triton.cdiv(num_tokens, BLOCK) * (BLOCK // shape.queries) * num_heads,)
    for in_order in batch.orders if time_bias_GK is not None else (True,):
        attention_forward_kernel[grid](
            q, k, v, out, *strides(q, k, v, out), plan.start_T, plan.context_T, plan.history_T, plan.query_order,
            *_position_arguments(position_table, num_positions), *_time_arguments(time_bias_GK, batch.times),
            time_bias_GK.shape[1] - 1 if time_bias_GK is not None else 0, num_tokens, num_heads, 1.0 / norm_len,
            SORTED=in_order, **_options(q, v, shape, batch, position_table, time_bias_GK),
        )  # fmt: skip
    return out


def backward_queries(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, batch: Batch, norm_len: float, position_table: Tensor | None,
    pos_bias_GP: Tensor | None, time_bias_GK: Tensor | None, q_grad: Tensor, tile: Tile | None = None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Writes dQ (T, H, D); returns the gradients of the biases."""
    num_tokens, num_heads = q.shape[:2]
    plan, shape = batch.plan, tile or query_gradient_tile(q.dtype, max(q.shape[2], v.shape[2]))
    num_blocks = triton.cdiv(num_tokens, BLOCK)
    num_programs = num_heads * max(1, min(num_blocks, num_processors(q) * 8 // (shape.num_warps * num_heads)))
    num_positions = pos_bias_GP.shape[1] if pos_bias_GP is not None else 0
    num_buckets = time_bias_GK.shape[1] if time_bias_GK is not None else 0
    # The first holds what lies beyond the table's ends.
    num_diagonals = (num_positions + shape.queries + shape.keys) // min(shape.queries, shape.keys) + 1
    diagonals = _sums(q, num_programs, num_diagonals * shape.queries * shape.keys // 4 if num_positions else 0)
    buckets = _sums(q, num_programs, num_buckets * shape.queries)
    for in_order in batch.orders if time_bias_GK is not None else (True,):
        query_gradient_kernel[(num_programs,)](
            q, k, v, grad, q_grad, *strides(q, k, v, grad, q_grad),
            plan.start_T, plan.context_T, plan.history_T, plan.query_order,
            *_position_arguments(position_table, num_positions), diagonals, diagonals.shape[1],
            *_time_arguments(time_bias_GK, batch.times), buckets, buckets.shape[1], num_buckets - 1,
            num_tokens, num_heads, num_blocks * (BLOCK // shape.queries), 1.0 / norm_len,
            SORTED=in_order, **_options(q, v, shape, batch, position_table, time_bias_GK),
        )  # fmt: skip
    pos_grad = time_grad = None
    if pos_bias_GP is not None:
        by_tile = add_programs(diagonals, pos_bias_GP.shape[0], num_heads, 0.5 / norm_len)
        by_distance = torch.empty(pos_bias_GP.shape[0], num_positions + 512, dtype=torch.float32, device=q.device)
        unfold_kernel[(triton.cdiv(by_distance.shape[1], 32), by_distance.shape[0])](
            by_tile, by_distance, num_positions, num_diagonals, BM=shape.queries, BN=shape.keys, BLOCK=32
        )
        pos_grad = fold_positions(by_distance, pos_bias_GP)
    if time_bias_GK is not None:
        by_query = add_programs(buckets, time_bias_GK.shape[0], num_heads, 0.5 / norm_len)
        time_grad = by_query.view(*time_bias_GK.shape, -1).sum(-1, dtype=time_bias_GK.dtype)
    return pos_grad, time_grad


def _sums(like: Tensor, num_programs: int, width: int) -> Tensor:
    """Zeros for each program to add to; as wide as a cache line, at least, where nobody does."""
    return torch.zeros(num_programs, max(width, 32), dtype=torch.float32, device=like.device)


def fold_positions(sums: Tensor, pos_bias_GP: Tensor) -> Tensor:
    """The position bias's gradient from sums by distance."""
    grad = torch.empty(pos_bias_GP.shape, dtype=pos_bias_GP.dtype, device=pos_bias_GP.device)
    grid = (triton.cdiv(grad.shape[1], 128), grad.shape[0])
    fold_positions_kernel[grid](sums, grad, grad.shape[1], BLOCK=128)
    return grad


def add_programs(sums: Tensor, num_groups: int, num_heads: int, scale: float) -> Tensor:
    """Private sums (programs, width) of programs that keep to one head, to (groups, width)."""
    width = sums.shape[1]
    total = torch.empty(num_groups, width, dtype=torch.float32, device=sums.device)
    bias_gradient_kernel[(triton.cdiv(width, 64), num_groups)](
        sums, total, width, width, sums.shape[0], num_heads, width, scale,
        GROUPED=num_groups > 1, PROGRAMS=32, BLOCK=64,
    )  # fmt: skip
    return total


def backward_keys(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, batch: Batch, norm_len: float, position_table: Tensor | None,
    num_positions: int, time_bias_GK: Tensor | None, k_grad: Tensor, v_grad: Tensor, tile: Tile | None = None,
) -> None:  # fmt: skip
    """Writes dK (T, H, D) and dV (T, H, E). ``position_table``: of `make_position_table`."""
    num_tokens, num_heads = q.shape[:2]
    plan, shape = batch.plan, tile or key_gradient_tile(q.dtype, max(q.shape[2], v.shape[2]), architecture(q))
    grid = (triton.cdiv(num_tokens, BLOCK) * (BLOCK // shape.keys) * num_heads,)
    for in_order in batch.orders if time_bias_GK is not None else (True,):
        key_gradient_kernel[grid](
            q, k, v, grad, k_grad, v_grad, *strides(q, k, v, grad, k_grad, v_grad),
            plan.start_T, plan.stop_T, plan.context_T, plan.history_T, plan.key_order,
            *_position_arguments(position_table, num_positions), *_time_arguments(time_bias_GK, batch.times),
            time_bias_GK.shape[1] - 1 if time_bias_GK is not None else 0, num_tokens, num_heads, 1.0 / norm_len,
            SORTED=in_order, **_options(q, v, shape, batch, position_table, time_bias_GK),
        )  # fmt: skip


def dense_rows(x: Tensor) -> Tensor:
    """The tensor, copied only where its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, batch: Batch, norm_len: float, pos_bias_GP: Tensor | None,
    time_bias_GK: Tensor | None, table: Tensor | None,
    q_grad: Tensor, k_grad: Tensor, v_grad: Tensor,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Writes the gradients of q, k, v and returns both biases'; ``table`` of `make_position_table`."""
    num_positions = pos_bias_GP.shape[1] if pos_bias_GP is not None else 0
    backward_keys(q, k, v, grad, batch, norm_len, table, num_positions, time_bias_GK, k_grad, v_grad)
    return backward_queries(q, k, v, grad, batch, norm_len, table, pos_bias_GP, time_bias_GK, q_grad)
