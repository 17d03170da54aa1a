# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""rab^p and rab^t of one tile of scores, halved (SiLU takes s / 2), added to their product.

rab^p is Toeplitz: entry (i, j) depends on i - j. Tables are looked up straight into the layout of the product's result:
a tile of bias that is loaded the usual way passes through shared memory, with a barrier at each step of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_shared import look_up

MARGIN = 256
"""Entries beyond both ends of a position table: a tile may hang over by its height and width."""


@triton.jit
def position_table_kernel(bias_ptr, table_ptr, num_positions, bias_stride, BLOCK: tl.constexpr):
    """table[y] = bias[y - MARGIN] / 2, the index held at the ends."""
    group = tl.program_id(1)
    y = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    entry = tl.minimum(tl.maximum(y - 256, 0), num_positions - 1)
    value = 0.5 * tl.load(bias_ptr + group * bias_stride + entry).to(tl.float32)
    tl.store(table_ptr + group * (num_positions + 512) + y, value, mask=y < num_positions + 512)


def make_position_table(pos_bias_GP: Tensor) -> Tensor:
    """(G, P + 2 MARGIN) float32, halved."""
    groups, num_positions = pos_bias_GP.shape
    table = torch.empty(groups, num_positions + 2 * MARGIN, dtype=torch.float32, device=pos_bias_GP.device)
    position_table_kernel[(triton.cdiv(table.shape[1], 256), groups)](
        pos_bias_GP, table, num_positions, pos_bias_GP.stride(0), BLOCK=256
    )
    return table


@triton.jit
def position_tile(
    table_ptr, num_positions, m0, n0, y, x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLUMNS) halves of rab^p; queries m0 + ``y`` and keys n0 + ``x``, one of them a column of the tile."""
    if n0 >= m0 + BM:
        tile = tl.zeros([ROWS, COLUMNS], tl.float32) + tl.load(table_ptr)
    elif m0 - n0 - BN + 2 >= num_positions:
        tile = tl.zeros([ROWS, COLUMNS], tl.float32) + tl.load(table_ptr + num_positions + 511)
    else:
        # Counted from the last key, and in 64 bits, offsets are sums of what a thread and what an entry adds: all of a
        # thread's entries then have one address and constants beside it, and those on one diagonal one load.
        tile = look_up(table_ptr + (m0 - n0 + 257 - BN) + (y.to(tl.int64) + (BN - 1 - x).to(tl.int64)))
    return tile


@triton.jit
def bucket_range(ranges_ptr, m0, n0, num_thresholds, BN: tl.constexpr):
    """(least, largest) bucket that can occur between the block of queries around m0 and keys n0…."""
    distance = 2 * (m0 // 128) + 1 - n0 // 64
    row = ranges_ptr + (m0 // 128).to(tl.int64) * 512
    known = (distance >= 0) & (distance < 512)
    both = tl.load(row + distance, mask=known, other=0)
    low = tl.where(known, both & 65535, 0)
    high = tl.where(known, both >> 16, num_thresholds)
    if BN == 128:
        known = (distance >= 1) & (distance < 513)
        both = tl.load(row + distance - 1, mask=known, other=0)
        low = tl.minimum(low, tl.where(known, both & 65535, 0))
        high = tl.maximum(high, tl.where(known, both >> 16, num_thresholds))
    return low, high


@triton.jit
def is_near(m0, n0):
    """Whether the near table holds these keys for these queries."""
    return (n0 >= m0 // 128 * 128 - 128) & (n0 < m0 // 128 * 128 + 128)


@triton.jit
def near_buckets(near_ptr, m0, n0, y, x, BN: tl.constexpr):
    """Buckets of a near tile: queries m0 + ``y``, keys n0 + ``x``, shaped to broadcast."""
    tile_ptr = near_ptr + tl.cast(m0, tl.int64) * 256 + (m0 // 128 * 128 + 128 - BN - n0)
    return look_up(tile_ptr + (y.to(tl.int64) * 256 + (BN - 1 - x).to(tl.int64)))


@triton.jit
def beyond(
    k, m0, n0, y, x, bounds_ptr, thresholds_ptr, query_time_ptr, key_time_ptr, num_tokens, SORTED: tl.constexpr
):  # fmt: skip
    """Whether keys n0 + ``x`` are at least threshold k away from queries m0 + ``y``; shaped to broadcast."""
    if SORTED:
        place = bounds_ptr + tl.full((), k, tl.int64) * num_tokens + m0 + y
        result = x < tl.load(place, mask=y < num_tokens - m0, other=0) - n0
    else:
        query_time = tl.load(query_time_ptr + m0 + y, mask=y < num_tokens - m0, other=0)
        key_time = tl.load(key_time_ptr + n0 + x, mask=x < num_tokens - n0, other=0)
        result = query_time - key_time >= tl.load(thresholds_ptr + k)
    return result


@triton.jit
def add_time_bias(
    half, bias_ptr, near_ptr, ranges_ptr, bounds_ptr, thresholds_ptr, query_time_ptr, key_time_ptr, m0, n0, y, x,
    num_tokens, num_thresholds, BN: tl.constexpr, SORTED: tl.constexpr,
):  # fmt: skip
    """Halves of the scores with those of rab^t; queries m0 + ``y`` and keys n0 + ``x``, one a column of the tile.

    Scores go through the branches rather than a tile of bias: they bring the layout of the product with them, in which
    a thread has two queries, so that a threshold costs two loads and nothing passes through shared memory.
    """
    near = is_near(m0, n0)
    if near:
        half += 0.5 * look_up(bias_ptr + near_buckets(near_ptr, m0, n0, y, x, BN).to(tl.uint32))
    # Two branches of one condition that both change the scores are more than Triton 3.6 can pipeline.
    if near == 0:
        low, high = bucket_range(ranges_ptr, m0, n0, num_thresholds, BN)
        value = 0.5 * tl.load(bias_ptr + low)
        half += value
        for k in range(low, high):
            after = 0.5 * tl.load(bias_ptr + k + 1)
            far = beyond(
                k, m0, n0, y, x, bounds_ptr, thresholds_ptr, query_time_ptr, key_time_ptr, num_tokens, SORTED
            )  # fmt: skip
            half = tl.where(far, half + (after - value), half)
            value = after
    return half


@triton.jit
def time_tile(
    bias_ptr, near_ptr, ranges_ptr, bounds_ptr, thresholds_ptr, query_time_ptr, key_time_ptr, m0, n0, y, x,
    num_tokens, num_thresholds, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BN: tl.constexpr, SORTED: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLUMNS) halves of rab^t, to start a product with: where queries lie along a tile's rows (dK and dV)."""
    if is_near(m0, n0):
        tile = 0.5 * look_up(bias_ptr + near_buckets(near_ptr, m0, n0, y, x, BN).to(tl.uint32))
    else:
        low, high = bucket_range(ranges_ptr, m0, n0, num_thresholds, BN)
        tile = tl.zeros([ROWS, COLUMNS], tl.float32) + 0.5 * tl.load(bias_ptr + low)
        for k in range(low, high):
            far = beyond(
                k, m0, n0, y, x, bounds_ptr, thresholds_ptr, query_time_ptr, key_time_ptr, num_tokens, SORTED
            )  # fmt: skip
            tile = tl.where(far, 0.5 * tl.load(bias_ptr + k + 1), tile)
    return tile
