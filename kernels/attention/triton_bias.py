# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""rab^p and rab^t of one tile of scores, halved (SiLU takes s / 2), as the matrix product's starting value.

rab^p is Toeplitz: entry (i, j) depends on i - j. Four copies of the reversed table, each shifted by one entry, let
every row of a tile read aligned groups of four (row i uses copy i mod 4), instead of a gather a score.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MARGIN = 256
"""Entries beyond both ends of a position table: a tile may hang over by its height and width."""


def table_length(num_positions: int) -> int:
    """Entries of one copy: a multiple of 16 that holds the positions and both margins."""
    return (num_positions + 2 * MARGIN + 8 + 15) // 16 * 16


@triton.jit
def position_table_kernel(bias_ptr, rows_ptr, columns_ptr, num_positions, length, bias_stride, BLOCK: tl.constexpr):
    """rows[a, y] = bias[length - MARGIN - y + a] / 2; columns[a, y] = bias[y - MARGIN - a] / 2; indices clamped."""
    copy = tl.program_id(1)
    group = tl.program_id(2)
    y = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = (group * 4 + copy) * length + y
    bias = bias_ptr + group * bias_stride
    backward = tl.minimum(tl.maximum(length - 256 - y + copy, 0), num_positions - 1)
    forward = tl.minimum(tl.maximum(y - 256 - copy, 0), num_positions - 1)
    tl.store(rows_ptr + place, 0.5 * tl.load(bias + backward).to(tl.float32), mask=y < length)
    tl.store(columns_ptr + place, 0.5 * tl.load(bias + forward).to(tl.float32), mask=y < length)


def make_position_tables(pos_bias_GP: Tensor) -> tuple[Tensor, Tensor]:
    """((G, 4, L) for tiles of queries × keys, (G, 4, L) for tiles of keys × queries), float32, halved."""
    groups, num_positions = pos_bias_GP.shape
    length = table_length(num_positions)
    tables = torch.empty(2, groups, 4, length, dtype=torch.float32, device=pos_bias_GP.device)
    position_table_kernel[(triton.cdiv(length, 256), 4, groups)](
        pos_bias_GP, tables[0], tables[1], num_positions, length, pos_bias_GP.stride(0), BLOCK=256
    )
    return tables[0], tables[1]


@triton.jit
def position_tile(table_ptr, length, num_positions, m0, n0, BM: tl.constexpr, BN: tl.constexpr):
    """(BM, BN) halves of rab^p for queries m0… and keys n0…."""
    if n0 >= m0 + BM:
        tile = tl.zeros([BM, BN], tl.float32) + tl.load(table_ptr + length - 256)
    elif m0 - n0 - BN + 2 >= num_positions:
        tile = tl.zeros([BM, BN], tl.float32) + tl.load(table_ptr)
    else:
        row = m0 + tl.arange(0, BM)
        column = tl.arange(0, BN)
        shift = (row % 4) * length + (n0 + length - 256) - (row // 4) * 4
        tile = tl.load(table_ptr + shift[:, None] + column[None, :])
    return tile


@triton.jit
def position_tile_transposed(table_ptr, length, num_positions, m0, n0, BM: tl.constexpr, BN: tl.constexpr):
    """(BN, BM) halves of rab^p for keys n0… and queries m0…."""
    if n0 >= m0 + BM:
        tile = tl.zeros([BN, BM], tl.float32) + tl.load(table_ptr)
    elif m0 - n0 - BN + 2 >= num_positions:
        tile = tl.zeros([BN, BM], tl.float32) + tl.load(table_ptr + length - 1)
    else:
        key = n0 + tl.arange(0, BN)
        query = tl.arange(0, BM)
        shift = (key % 4) * length + (m0 + 256) - (key // 4) * 4
        tile = tl.load(table_ptr + shift[:, None] + query[None, :])
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
def near_buckets(near_ptr, m0, row, column, num_tokens):
    """Buckets of a near tile; ``row`` and ``column`` are token indices, shaped to broadcast."""
    place = near_ptr + row.to(tl.int64) * 256 + (column - (m0 // 128 * 128 - 128))
    return tl.load(place, mask=(row < num_tokens) & (column >= 0), other=0).to(tl.int32)


@triton.jit
def beyond(k, row, column, bounds_ptr, thresholds_ptr, query_time_ptr, key_time_ptr, num_tokens, SORTED: tl.constexpr):
    """Whether a key is at least threshold k away from a query; ``row`` and ``column`` shaped to broadcast."""
    if SORTED:
        bound = tl.load(bounds_ptr + tl.full((), k, tl.int64) * num_tokens + row, mask=row < num_tokens, other=0)
        result = column < bound
    else:
        query_time = tl.load(query_time_ptr + row, mask=row < num_tokens, other=0)
        key_time = tl.load(key_time_ptr + column, mask=column < num_tokens, other=0)
        result = query_time - key_time >= tl.load(thresholds_ptr + k)
    return result


@triton.jit
def time_tile(
    bias_ptr,
    near_ptr,
    ranges_ptr,
    bounds_ptr,
    thresholds_ptr,
    query_time_ptr,
    key_time_ptr,
    m0,
    n0,
    row,
    column,
    num_tokens,
    num_thresholds,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BN: tl.constexpr,
    SORTED: tl.constexpr,
):
    """(ROWS, COLUMNS) halves of rab^t; ``row`` are queries, ``column`` keys, one of them a column of the tile."""
    if is_near(m0, n0):
        tile = 0.5 * tl.load(bias_ptr + near_buckets(near_ptr, m0, row, column, num_tokens)).to(tl.float32)
    else:
        low, high = bucket_range(ranges_ptr, m0, n0, num_thresholds, BN)
        tile = tl.zeros([ROWS, COLUMNS], tl.float32) + 0.5 * tl.load(bias_ptr + low).to(tl.float32)
        for k in range(low, high):
            value = 0.5 * tl.load(bias_ptr + k + 1).to(tl.float32)
            far = beyond(
                k, row, column, bounds_ptr, thresholds_ptr, query_time_ptr, key_time_ptr, num_tokens, SORTED
            )  # fmt: skip
            tile = tl.where(far, value, tile)
    return tile
