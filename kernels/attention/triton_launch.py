"""HSTU attention on a GPU: which kernels to launch with which arguments, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.triton_arguments import Positions, Times, Tokens, operand
from kernels.attention.triton_backward import key_gradient_kernel, query_gradient_kernel
from kernels.attention.triton_bias_launch import bias_sums, position_gradient, time_gradient
from kernels.attention.triton_forward import attention_forward_kernel
from kernels.attention.triton_plan import BLOCK, Plan, make_plan
from kernels.attention.triton_tile import Shape, Tile, forward_tile, key_gradient_tile, query_gradient_tile
from kernels.attention.triton_times import TimeTables, make_time_tables
from kernels.triton_shared import INTERPRETED, architecture, dot_precision, fast_math, next_power, num_processors


@dataclass(frozen=True, eq=False)
class Batch:
    """What attention needs to know of its batch besides queries, keys, values and biases; the same for every layer."""

    plan: Plan
    times: TimeTables | None
    has_context: bool
    has_targets: bool
    orders: tuple[bool, ...]
    """Which versions are launched: for times in order, or not; both if the host does not know."""
    mean_length: int
    """Average number of tokens of a user."""


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
    """The batch's tables, from the cache if they were made from the same inputs."""
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
        # For layers that share a cache, reading the flag from the device once pays off; a single call launches both
        # versions instead, and the one that does not apply returns at once.
        known = cache.in_order if cache is not None else None
        if known is None and cache is not None:
            known = int(times.unsorted_1) == 0
        orders = (True, False) if known is None else (known,)
    mean_length = num_tokens // max(1, len(offsets_B1) - 1)
    batch = Batch(plan, times, num_context_B is not None, num_targets_B is not None, orders, mean_length)
    if cache is not None:
        cache.key, cache.value, cache.inputs = key, batch, (*inputs, time_buckets)
    return batch


def _identity(tensor: Tensor | None) -> tuple[int, int] | None:
    """Identifies a tensor's values: its address, and how often it was changed in place."""
    if tensor is None:
        return None
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version  # noqa: SLF001


def strides(*tensors: Tensor) -> list[int]:
    """Strides of tokens, then of heads."""
    return [x.stride(0) for x in tensors] + [x.stride(1) for x in tensors]


def _tokens(batch: Batch, order: Tensor) -> Tokens:
    plan = batch.plan
    return Tokens(
        plan.start_T, plan.stop_T, plan.context_T if batch.has_context else None,
        plan.history_T if batch.has_targets else None, order,
    )  # fmt: skip


def _positions(table: Tensor | None) -> Positions:
    return Positions(table, table is not None and table.shape[0] > 1)


def _times(time_bias_GK: Tensor | None, times: TimeTables | None) -> Times:
    if time_bias_GK is None or times is None:
        return Times(None, False, None, None, None, None, None, None, None)
    bias = time_bias_GK.to(torch.float32).contiguous()
    return Times(
        bias, bias.shape[0] > 1, times.near, times.ranges, times.bounds, times.unsorted_1, times.thresholds_K1,
        times.query_time_T, times.key_time_T,
    )  # fmt: skip


def _num_thresholds(time_bias_GK: Tensor | None) -> int:
    return 0 if time_bias_GK is None else time_bias_GK.shape[1] - 1


def _shape(q: Tensor, v: Tensor, time_bias_GK: Tensor | None, batch: Batch) -> Shape:
    width = max(q.shape[2], v.shape[2])
    return Shape(q.dtype, width, time_bias_GK is not None, architecture(q), batch.mean_length)


def _options(q: Tensor, v: Tensor, tile: Tile) -> dict[str, Any]:
    return {
        "D": q.shape[2], "E": v.shape[2], "WIDTH_D": next_power(q.shape[2]), "WIDTH_E": next_power(v.shape[2]),
        "BM": tile.queries, "BN": tile.keys, "FAST": fast_math(q.dtype), "PRECISION": dot_precision(q.dtype),
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
        **({} if tile.max_registers is None or INTERPRETED else {"maxnreg": tile.max_registers}),
    }  # fmt: skip


MANY_TOKENS = 8192
"""From this size on, the launch time on the host does not matter, and the copy engine's descriptors pay off."""
LEAST_WIDTH = 64
"""The narrowest head that the copy engine is used for: 128 bytes a row."""


def _rows(first: Tensor, second: Tensor, num_rows: int) -> tuple[TensorDescriptor | None, TensorDescriptor | None]:
    """Descriptors of both tensors' tiles for Hopper's copy engine, or two Nones if it cannot read them."""
    pair = first, second
    if len(first) < MANY_TOKENS or architecture(first) < 90 or not all(map(_is_described, pair)):
        return None, None
    described = [
        TensorDescriptor(
            x, [x.shape[0], (x.shape[1] - 1) * x.stride(1) + x.shape[2]], [x.stride(0), 1], [num_rows, x.shape[2]]
        )
        for x in pair
    ]
    return described[0], described[1]


def _is_described(x: Tensor) -> bool:
    """Whether the tensor is bfloat16, its width a power of two, and everything aligned to 16 bytes. (In the interpreter
    there is no bfloat16.)"""
    return (
        (x.dtype == torch.bfloat16 or INTERPRETED)
        and x.shape[2] >= LEAST_WIDTH and x.shape[2] == next_power(x.shape[2]) and x.stride(2) == 1
        and x.stride(0) % 8 == 0 and x.stride(1) % 8 == 0 and x.data_ptr() % 16 == 0
    )  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, norm_len: float, position_table: Tensor | None, num_positions: int,
    time_bias_GK: Tensor | None, tile: Tile | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(T, H, E), in ``out`` if given. ``position_table``: from `make_position_table`."""
    num_tokens, num_heads = q.shape[:2]
    if out is None:
        out = torch.empty(num_tokens, num_heads, v.shape[2], dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    tile = tile or forward_tile(_shape(q, v, time_bias_GK, batch))
    tokens = _tokens(batch, batch.plan.query_order)
    positions, times = _positions(position_table), _times(time_bias_GK, batch.times)
    grid = (triton.cdiv(num_tokens, BLOCK) * (BLOCK // tile.queries) * num_heads,)
    for in_order in batch.orders if time_bias_GK is not None else (True,):
        attention_forward_kernel[grid](
            operand(q), operand(k), operand(v), operand(out), *_rows(k, v, tile.keys), tokens, positions, times,
            num_tokens, num_positions, _num_thresholds(time_bias_GK), num_heads, 1.0 / norm_len, SORTED=in_order,
            **_options(q, v, tile),
        )  # fmt: skip
    return out


def backward_queries(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, batch: Batch, norm_len: float, position_table: Tensor | None,
    pos_bias_GP: Tensor | None, time_bias_GK: Tensor | None, q_grad: Tensor, tile: Tile | None = None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Write dQ (T, H, D); returns the gradients of the biases."""
    num_tokens, num_heads = q.shape[:2]
    tile = tile or query_gradient_tile(_shape(q, v, time_bias_GK, batch))
    num_tiles = triton.cdiv(num_tokens, BLOCK) * (BLOCK // tile.queries)
    num_programs = num_heads * max(1, min(num_tiles, num_processors(q) * 8 // (tile.num_warps * num_heads)))
    tokens = _tokens(batch, batch.plan.query_order)
    num_positions = pos_bias_GP.shape[1] if pos_bias_GP is not None else 0
    positions, times = _positions(position_table), _times(time_bias_GK, batch.times)
    sums, sums_stride = bias_sums(q, num_programs, pos_bias_GP, time_bias_GK, tile)
    for in_order in batch.orders if time_bias_GK is not None else (True,):
        query_gradient_kernel[(num_programs,)](
            operand(q), operand(k), operand(v), operand(grad), operand(q_grad), *_rows(k, v, tile.keys), tokens,
            positions, times, sums, sums_stride, num_tiles, num_tokens, num_positions, _num_thresholds(time_bias_GK),
            num_heads, 1.0 / norm_len, SORTED=in_order, **_options(q, v, tile),
        )  # fmt: skip
    pos_grad = time_grad = None
    if pos_bias_GP is not None:
        pos_grad = position_gradient(sums.diagonals, pos_bias_GP, num_heads, tile, 0.5 / norm_len)
    if time_bias_GK is not None:
        time_grad = time_gradient(sums.levels, time_bias_GK, num_heads, times.unsorted, 0.5 / norm_len)
    return pos_grad, time_grad


def backward_keys(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, batch: Batch, norm_len: float, position_table: Tensor | None,
    num_positions: int, time_bias_GK: Tensor | None, k_grad: Tensor, v_grad: Tensor, tile: Tile | None = None,
) -> None:  # fmt: skip
    """Write dK (T, H, D) and dV (T, H, E). ``position_table``: from `make_position_table`."""
    num_tokens, num_heads = q.shape[:2]
    tile = tile or key_gradient_tile(_shape(q, v, time_bias_GK, batch))
    tokens = _tokens(batch, batch.plan.key_order)
    positions, times = _positions(position_table), _times(time_bias_GK, batch.times)
    grid = (triton.cdiv(num_tokens, BLOCK) * (BLOCK // tile.keys) * num_heads,)
    for in_order in batch.orders if time_bias_GK is not None else (True,):
        key_gradient_kernel[grid](
            operand(q), operand(k), operand(v), operand(grad), operand(k_grad), operand(v_grad),
            *_rows(q, grad, tile.queries), tokens, positions, times, num_tokens, num_positions,
            _num_thresholds(time_bias_GK), num_heads, 1.0 / norm_len, SORTED=in_order, **_options(q, v, tile),
        )  # fmt: skip


def dense_rows(x: Tensor) -> Tensor:
    """The tensor, copied only if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, batch: Batch, norm_len: float, pos_bias_GP: Tensor | None,
    time_bias_GK: Tensor | None, table: Tensor | None,
    q_grad: Tensor, k_grad: Tensor, v_grad: Tensor,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Write the gradients of q, k, v; returns those of both biases. ``table``: from `make_position_table`."""
    num_positions = pos_bias_GP.shape[1] if pos_bias_GP is not None else 0
    backward_keys(q, k, v, grad, batch, norm_len, table, num_positions, time_bias_GK, k_grad, v_grad)
    return backward_queries(q, k, v, grad, batch, norm_len, table, pos_bias_GP, time_bias_GK, q_grad)
