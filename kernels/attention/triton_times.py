# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Buckets of time differences, prepared once per batch so that they cost few operations for each tile of scores.

Three tables, all exact for any int64 times:

* near: the bucket itself, as a byte, for a query and the 256 keys of its own and the preceding block of 128, last
  first;
* range: for a block of queries and a block of 64 keys, the least and largest bucket that can occur; old history has one
  or two buckets, so a far tile needs a constant and at most a few comparisons. The first entry of a row stands for all
  blocks after the queries' own, the last for all that are farther back than the row: any bucket;
* bound: for a query and a threshold, the first key of its user that is nearer than the threshold. Times of a user's
  keys never decrease, so "at least this far away" means "left of this key": only column indices are compared.

If some user's key times do decrease, a flag on the device sends the work to kernels that compare the times themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention.triton_plan import BLOCK, Plan
from kernels.triton_shared import count_at_most, empty_rows

KEY_BLOCK = 64
NUM_RANGES = 512
"""Entries per query block; key blocks that are farther back check every threshold."""
NEAR = 2 * BLOCK


@dataclass(frozen=True, eq=False)
class TimeTables:
    """See the module; also ``unsorted_1`` (1,) int32 on the device, ``thresholds`` and the times themselves."""

    near: Tensor
    ranges: Tensor
    bounds: Tensor
    unsorted_1: Tensor
    thresholds_K1: Tensor
    query_time_T: Tensor
    key_time_T: Tensor


@triton.jit
def saturating_difference(a, b):
    """a - b of int64, saturating: tiles span users, whose times may be arbitrary."""
    d = a - b
    overflow = ((a ^ b) & (a ^ d)) < 0
    end = tl.where(a < 0, -9223372036854775807, 9223372036854775807)
    return tl.where(overflow, end, d)


@triton.jit(do_not_specialize=["num_tokens", "num_blocks"])
def extremes_kernel(
    query_time_ptr,
    key_time_ptr,
    start_ptr,
    query_ends_ptr,
    key_ends_ptr,
    unsorted_ptr,
    num_tokens,
    num_blocks,
    BLOCK: tl.constexpr,
):
    """Least and largest time of a half block of queries and of keys; and whether some user's key times decrease."""
    block = tl.program_id(0)
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_tokens
    largest: tl.constexpr = 9223372036854775807
    query = tl.load(query_time_ptr + token, mask=inside, other=0)
    key = tl.load(key_time_ptr + token, mask=inside, other=0)
    tl.store(query_ends_ptr + block, tl.min(tl.where(inside, query, largest), 0))
    tl.store(query_ends_ptr + num_blocks + block, tl.max(tl.where(inside, query, -largest), 0))
    tl.store(key_ends_ptr + block, tl.min(tl.where(inside, key, largest), 0))
    tl.store(key_ends_ptr + num_blocks + block, tl.max(tl.where(inside, key, -largest), 0))
    start = tl.load(start_ptr + token, mask=inside, other=0)
    follows = inside & (token > start)
    before = tl.load(key_time_ptr + token - 1, mask=follows, other=0)
    if tl.max((follows & (before > key)).to(tl.int32), 0) > 0:
        tl.store(unsorted_ptr, 1)


@triton.jit(do_not_specialize=["num_half_blocks", "num_thresholds", "num_steps"])
def ranges_kernel(
    query_ends_ptr,
    key_ends_ptr,
    thresholds_ptr,
    ranges_ptr,
    num_half_blocks,
    num_thresholds,
    num_steps,
    NUM_RANGES: tl.constexpr,
):
    """(row block, distance + 1): least bucket + largest bucket · 2^16 of a block of 128 queries and one of 64 keys."""
    block = tl.program_id(0)
    second = tl.minimum(2 * block + 1, num_half_blocks - 1)
    least_query = tl.minimum(tl.load(query_ends_ptr + 2 * block), tl.load(query_ends_ptr + second))
    most_query = tl.maximum(
        tl.load(query_ends_ptr + num_half_blocks + 2 * block), tl.load(query_ends_ptr + num_half_blocks + second)
    )
    place = tl.arange(0, NUM_RANGES)
    column = 2 * block + 2 - place
    exists = (column >= 0) & (column < num_half_blocks)
    least_key = tl.load(key_ends_ptr + column, mask=exists, other=0)
    most_key = tl.load(key_ends_ptr + num_half_blocks + column, mask=exists, other=0)
    low = count_at_most(thresholds_ptr, num_thresholds, saturating_difference(least_query, most_key), num_steps)
    high = count_at_most(thresholds_ptr, num_thresholds, saturating_difference(most_query, least_key), num_steps)
    known = (place > 0) & (place < NUM_RANGES - 1)
    both = tl.where(known, low | (high << 16), num_thresholds << 16)
    tl.store(ranges_ptr + block.to(tl.int64) * NUM_RANGES + place, both)


@triton.jit(do_not_specialize=["num_tokens", "num_thresholds", "num_steps"])
def near_kernel(
    query_time_ptr,
    key_time_ptr,
    start_ptr,
    thresholds_ptr,
    near_ptr,
    num_tokens,
    num_thresholds,
    num_steps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    NEAR: tl.constexpr,
):
    """(query, last near key - key): the bucket, for keys of the query's block and of the preceding one."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    slot = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    after = (tl.program_id(0) * ROWS) // BLOCK * BLOCK + BLOCK
    key = after - 1 - slot
    start = tl.load(start_ptr + row, mask=row < num_tokens, other=2147483647)
    if after - tl.program_id(1) * COLUMNS <= tl.min(start, 0):
        return
    query_time = tl.load(query_time_ptr + row, mask=row < num_tokens, other=0)
    key_time = tl.load(key_time_ptr + key, mask=(key >= 0) & (key < num_tokens), other=0)
    bucket = count_at_most(thresholds_ptr, num_thresholds, query_time[:, None] - key_time[None, :], num_steps)
    place = near_ptr + row[:, None].to(tl.int64) * NEAR + slot[None, :]
    tl.store(place, bucket.to(near_ptr.dtype.element_ty), mask=(row < num_tokens)[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def bounds_kernel(
    query_time_ptr,
    key_time_ptr,
    start_ptr,
    stop_ptr,
    thresholds_ptr,
    bounds_ptr,
    num_tokens,
    BLOCK: tl.constexpr,
):
    """(threshold, query): the first key of the query's user that is nearer in time than the threshold."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_tokens
    threshold = tl.load(thresholds_ptr + tl.program_id(1))
    low = tl.load(start_ptr + row, mask=inside, other=0)
    high = tl.load(stop_ptr + row, mask=inside, other=0)
    query_time = tl.load(query_time_ptr + row, mask=inside, other=0)
    width = tl.max(high - low, 0)
    while width > 0:
        middle = (low + high) >> 1
        open_ = low < high
        distant = query_time - tl.load(key_time_ptr + middle, mask=open_, other=0) >= threshold
        low = tl.where(open_ & distant, middle + 1, low)
        high = tl.where(open_ & (distant == 0), middle, high)
        width = width >> 1
    tl.store(bounds_ptr + tl.program_id(1).to(tl.int64) * tl.num_programs(0) * BLOCK + row, low)


def make_time_tables(thresholds_K1: Tensor, query_time_T: Tensor, key_time_T: Tensor, plan: Plan) -> TimeTables:
    """The tables, by four small kernels; all layers of a model share them."""
    device, num_tokens, num_thresholds = query_time_T.device, len(query_time_T), len(thresholds_K1)
    num_blocks, num_half_blocks = triton.cdiv(num_tokens, BLOCK), triton.cdiv(num_tokens, KEY_BLOCK)
    steps = num_thresholds.bit_length()
    query_ends, key_ends = empty_rows(2, 2 * num_half_blocks, torch.int64, device)
    ranges = torch.empty(num_blocks, NUM_RANGES, dtype=torch.int32, device=device)
    near_dtype = torch.uint8 if num_thresholds < 256 else torch.int16
    # Zeros: entries that no user needs, up to the last tile's end, are read too (and masked), so must be valid buckets.
    near = torch.zeros(num_blocks * BLOCK, NEAR, dtype=near_dtype, device=device)
    bounds = torch.empty(max(num_thresholds, 1), num_blocks * BLOCK, dtype=torch.int32, device=device)
    unsorted_1 = torch.zeros(1, dtype=torch.int32, device=device)
    extremes_kernel[(num_half_blocks,)](
        query_time_T, key_time_T, plan.start_T, query_ends, key_ends, unsorted_1, num_tokens, num_half_blocks,
        BLOCK=KEY_BLOCK,
    )  # fmt: skip
    ranges_kernel[(num_blocks,)](
        query_ends, key_ends, thresholds_K1, ranges, num_half_blocks, num_thresholds, steps, NUM_RANGES=NUM_RANGES
    )
    near_kernel[(triton.cdiv(num_tokens, 32), NEAR // 64)](
        query_time_T, key_time_T, plan.start_T, thresholds_K1, near, num_tokens, num_thresholds, steps,
        ROWS=32, BLOCK=BLOCK, COLUMNS=64, NEAR=NEAR,
    )  # fmt: skip
    if num_thresholds:
        bounds_kernel[(num_blocks, num_thresholds)](
            query_time_T, key_time_T, plan.start_T, plan.stop_T, thresholds_K1, bounds, num_tokens, BLOCK=BLOCK
        )
    return TimeTables(near, ranges, bounds, unsorted_1, thresholds_K1, query_time_T, key_time_T)
