# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: SIM102 (a kernel's compile-time conditions stand one in another)
"""rab^p and rab^t of one tile of scores, halved (SiLU takes s / 2), and added to the product of queries and keys.

rab^p is Toeplitz: entry (i, j) depends on i - j. Tables are looked up directly in the layout of the product's result: a
tile of bias that is loaded the usual way goes through shared memory, with a barrier at each step; and one that the
product is accumulated onto makes its instructions wait for each other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_shared import look_up, saturating_sum

MARGIN = 256
"""Entries added at both ends of a position table: a tile may extend beyond it by its height and width."""


@triton.jit
def position_table_kernel(bias_ptr, table_ptr, num_positions, bias_stride, BLOCK: tl.constexpr):
    """table[y] = bias[y - MARGIN] / 2, with the index clamped."""
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
def position_tile(positions, num_positions, head, m0, n0, y, x, BN: tl.constexpr):
    """rab^p / 2 for queries m0 + ``y`` and keys n0 + ``x``, one of them a column of the tile; 0 without a bias.

    A tile beyond an end of the table is moved back into the margin, which repeats that end's value: no branch.
    """
    value = 0.0
    if positions.table is not None:
        first = tl.minimum(tl.maximum(m0 - n0 + 257 - BN, 0), num_positions + 256)
        # Counted from the last key, and in 64 bits, an offset is the sum of a part per thread and a constant per entry:
        # all of a thread's entries then share one address register, and those on one diagonal share one load.
        offset = y.to(tl.int64) + (BN - 1 - x).to(tl.int64)
        row = positions.grouped * head * (num_positions + 512)
        value = look_up(positions.table + row + first + offset)
    return value


@triton.jit
def range_at(row, place):
    """An entry of the ranges of `kernels.attention.triton_times`; ``place`` may be beyond either end."""
    return look_up(row + tl.minimum(tl.maximum(place, 0), 511))


@triton.jit
def bucket_range(times, m0, n0, BN: tl.constexpr):
    """Least bucket + largest bucket · 2^16 that can occur between the block of queries around m0 and keys n0…."""
    place = 2 * (m0 // 128) + 2 - n0 // 64
    row = times.ranges + (m0 // 128).to(tl.int64) * 512
    both = range_at(row, place)
    if BN == 128:
        later = range_at(row, place - 1)
        both = tl.minimum(both & 65535, later & 65535) | tl.maximum(both & -65536, later & -65536)
    return both


@triton.jit
def is_near(m0, n0):
    """Whether the near table has these keys for these queries."""
    return (n0 >= m0 // 128 * 128 - 128) & (n0 < m0 // 128 * 128 + 128)


@triton.jit
def range_ahead(times, m0, n0, BN: tl.constexpr):
    """`bucket_range`, to be loaded two tiles ahead of its use."""
    both = m0 * 0
    if times.bias is not None:
        both = bucket_range(times, m0, n0, BN)
    return both


@triton.jit
def near_buckets(times, m0, n0, y, x, BN: tl.constexpr):
    """Buckets of a near tile: queries m0 + ``y``, keys n0 + ``x``, shaped to broadcast."""
    tile_ptr = times.near + tl.cast(m0, tl.int64) * 256 + (m0 // 128 * 128 + 128 - BN - n0)
    return look_up(tile_ptr + (y.to(tl.int64) * 256 + (BN - 1 - x).to(tl.int64)))


@triton.jit
def bounds_of(times, k, m0, num_tokens):
    """Addresses of the bounds of queries m0… for threshold k; rows are padded to a whole block of queries."""
    return times.bounds + tl.cast(k, tl.int64) * ((num_tokens + 127) // 128 * 128) + m0


@triton.jit
def beyond(times, k, m0, n0, y, x, num_tokens, SORTED: tl.constexpr):
    """Whether keys n0 + ``x`` are at least threshold k away from queries m0 + ``y``; shaped to broadcast."""
    if SORTED:
        result = x < look_up(bounds_of(times, k, m0, num_tokens) + y) - n0
    else:
        query_time = tl.load(times.query_time + m0 + y, mask=y < num_tokens - m0, other=0)
        key_time = tl.load(times.key_time + n0 + x, mask=x < num_tokens - n0, other=0)
        result = query_time - key_time >= tl.load(times.thresholds + k)
    return result


@triton.jit
def time_row(times, num_thresholds, head):
    """A head's row of rab^t."""
    return times.bias + times.grouped * head * (num_thresholds + 1)


@triton.jit
def bounds_ahead(times, num_thresholds, both, m0, num_tokens, BM: tl.constexpr, SORTED: tl.constexpr):
    """Bounds (BM,) of a tile's first threshold, if it has one and there are bounds."""
    row = tl.arange(0, BM)
    bound = row * 0
    if times.bias is not None:
        if SORTED:
            k = tl.minimum(both & 65535, tl.maximum(num_thresholds - 1, 0))
            bound = look_up(bounds_of(times, k, m0, num_tokens) + row)
    return bound


@triton.jit
def time_bias_ahead(
    times, num_thresholds, both, head, m0, n0, num_tokens, BM: tl.constexpr, SORTED: tl.constexpr,
    BOUNDS: tl.constexpr = True,
):  # fmt: skip
    """A tile's range (0 if it is near), rab^t of its least bucket and of the next, and the bounds (BM,) between them.

    To be loaded one tile ahead; nothing may be computed from it before that tile, which would wait for the loads. If
    times are not in order, there are no bounds.
    """
    first = 0.0
    second = 0.0
    bound = tl.arange(0, BM) * 0
    if times.bias is not None:
        both = tl.where(is_near(m0, n0), 0, both)
        least = both & 65535
        bias = time_row(times, num_thresholds, head)
        first = look_up(bias + least)
        if SORTED:
            second = look_up(bias + tl.minimum(least + 1, num_thresholds))
        if BOUNDS:
            bound = bounds_ahead(times, num_thresholds, both, m0, num_tokens, BM, SORTED)
    return both, first, second, bound


@triton.jit
def left_of(bound, x):
    """1 where x < bound, else 0, as float32: two operations that need no predicate register, which are scarce."""
    return saturating_sum(bound.to(tl.float32), -x.to(tl.float32))


@triton.jit
def bias_ahead(position, times, both, first, second, bound, m0, n0, x, SORTED: tl.constexpr):
    """The part of the halved bias known before the product: rab^p (``position``), and what `time_bias_ahead` loaded of
    rab^t."""
    ahead = position
    if times.bias is not None:
        ahead += tl.where(is_near(m0, n0), 0.0, 0.5 * first)
        if SORTED:
            step = tl.where((both & 65535) < (both >> 16), 0.5 * (second - first), 0.0)
            ahead += step * left_of(bound - n0, x)
    return ahead


@triton.jit
def add_time_bias(
    half, times, num_thresholds, both, head, m0, n0, y, x, num_tokens, BN: tl.constexpr, SORTED: tl.constexpr
):
    """Halved scores plus what `bias_ahead` leaves out: a near tile's buckets, a far tile's further thresholds.

    The branch and the loop carry the scores, rather than a tile of bias, because scores have the product's layout.
    """
    bias = time_row(times, num_thresholds, head)
    if is_near(m0, n0):
        half += 0.5 * look_up(bias + near_buckets(times, m0, n0, y, x, BN).to(tl.uint32))
    next_one = (both & 65535) + SORTED
    if next_one < (both >> 16):  # an inner loop outside of a branch keeps Triton from pipelining the outer loop
        for k in range(next_one, both >> 16):
            step = 0.5 * (tl.load(bias + k + 1) - tl.load(bias + k))
            far = beyond(times, k, m0, n0, y, x, num_tokens, SORTED)
            half = tl.where(far, half + step, half)
    return half
