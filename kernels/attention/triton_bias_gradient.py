# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Gradients of rab^p and rab^t: the sums that each dQ program keeps while it has a tile's slopes, and their reduction.

Each program has its sums in private memory, where each number is always added to by the same thread; the last kernels
below add the programs in a fixed order. `tl.atomic_add` is used as an addition in the L2 cache that no thread waits
for. Repeated runs agree to the bit.

A user's keys are in the order of time, so the keys at least a threshold away from a query are those before a bound, and
their slopes sum to the query's running sum at that bound: the threshold's *level*. A program notes each level once per
query and threshold, instead of summing each bucket in each tile; a bucket is the difference of two levels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.triton_bias import beyond, bounds_of, bucket_range, is_near, left_of, near_buckets
from kernels.triton_shared import add_to, look_up, store_in_layout


@triton.jit
def diagonals_of_blocks(DTYPE: tl.constexpr):
    """(64, 16): which entry of an 8 x 8 block is on which of its diagonals; the last column is empty."""
    entry = tl.arange(0, 64)[:, None]
    return (entry // 8 - entry % 8 + 7 == tl.arange(0, 16)[None, :]).to(tl.float32).to(DTYPE)


@triton.jit
def add_diagonals(
    sums_ptr, slope, selector, m0, n0, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Add a tile's sums by distance to those of its program.

    The matrix units sum the diagonals of its 8 x 8 blocks, in the dtype of dQ's product; `unfold_kernel` assigns them
    to distances.
    """
    STEP: tl.constexpr = min(BM, BN)
    BLOCKS: tl.constexpr = BM * BN // 64
    blocks = slope.to(selector.dtype).reshape(BM // 8, 8, BN // 8, 8).permute(0, 2, 1, 3).reshape(BLOCKS, 64)
    part = tl.dot(blocks, selector, input_precision=PRECISION)
    place = sums_ptr + ((m0 - n0 + BM) // STEP) * (BLOCKS * 16)
    add_to(place + tl.arange(0, BLOCKS)[:, None] * 16 + tl.arange(0, 16)[None, :], part)


@triton.jit
def add_ends(sums_ptr, before_start, beyond_end, BM: tl.constexpr):
    """Add a query tile's sums (BM,) over tiles wholly beyond an end of the table: a single distance for each end."""
    place = sums_ptr + tl.arange(0, BM)
    tl.atomic_add(place, before_start, sem="relaxed")
    tl.atomic_add(place + BM, beyond_end, sem="relaxed")


@triton.jit
def note_level(notes_ptr, k, slope, total, bound, n0, x, BM: tl.constexpr, BN: tl.constexpr):
    """Note threshold k's level, for the queries whose bound (BM,) is in this tile."""
    bound = bound - n0
    level = total + tl.sum(slope * left_of(bound[:, None], x), 1)
    store_in_layout(notes_ptr + (256 + k) * BM + tl.arange(0, BM), level, (bound >= 0) & (bound <= BN))


@triton.jit
def earlier_keys(N: tl.constexpr, DTYPE: tl.constexpr):
    """(N, N): which keys come before which, for sums over a tile's keys before each of them."""
    return (tl.arange(0, N)[:, None] < tl.arange(0, N)[None, :]).to(tl.float32).to(DTYPE)


@triton.jit
def note_levels(
    notes_ptr, times, slope, total, both, bound, last_least, earlier, m0, n0, y, x, num_tokens,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Note the levels that a tile determines; ``total`` (BM,): its queries' sums over the tiles before.

    A far tile has the bounds of a threshold or two (``bound``: of the first), and of those between it and the previous
    tile (``last_least``: that one's least bucket): their levels are noted. A near tile has too many: its running sums
    at all places are noted, for `add_levels` to choose from. The matrix units compute them, as in `add_diagonals`.
    """
    near = is_near(m0, n0)
    if near:
        place = notes_ptr + (y * 256 + (n0 - m0 // 128 * 128 + 128) + x)
        before = tl.dot(slope.to(earlier.dtype), earlier, input_precision=PRECISION)
        tl.store(place, before + total[:, None])
    least = both & 65535
    stop = tl.where(near, 0, tl.maximum(both >> 16, last_least))
    if least < stop:
        note_level(notes_ptr, least, slope, total, bound, n0, x, BM, BN)
        if least + 1 < stop:
            for k in range(least + 1, stop):
                later = look_up(bounds_of(times, k, m0, num_tokens) + tl.arange(0, BM))
                note_level(notes_ptr, k, slope, total, later, n0, x, BM, BN)


@triton.jit
def add_levels(
    sums_ptr, notes_ptr, times, num_thresholds, total, start, m0, end, num_tokens, BM: tl.constexpr,
    LEVELS: tl.constexpr,
):  # fmt: skip
    """Add a query tile's levels to those of its program, once all keys before ``end`` are done.

    ``total`` (BM,): the queries' sums over all keys, which is the first level; ``start`` (BM,): no key below it is
    seen. Many levels at once, because the time goes into waiting for loads.
    """
    row = tl.arange(0, BM)[None, :]
    begin = m0 // 128 * 128 - 128
    tl.debug_barrier()  # the notes were written by other threads
    for first in range(0, num_thresholds + 1, LEVELS):
        level = first + tl.arange(0, LEVELS)[:, None]
        k = level - 1
        wanted = (row < num_tokens - m0) & (k < num_thresholds) & (k >= 0)
        bound = tl.load(bounds_of(times, k, m0, num_tokens) + row, mask=wanted, other=2147483647)
        near = (bound >= begin) & (bound < begin + 256)
        place = notes_ptr + tl.where(near, row * 256 + (bound - begin), (256 + k) * BM + row)
        seen = (bound > start[None, :]) & (bound < end)
        value = tl.load(place, mask=wanted & seen, other=0.0)
        value = tl.where((bound >= end) & (k < num_thresholds), total[None, :], value)
        level = first + tl.arange(0, LEVELS)
        tl.atomic_add(sums_ptr + level, tl.sum(value, 1), mask=level <= num_thresholds, sem="relaxed")
    tl.debug_barrier()  # before the next tile overwrites them


@triton.jit
def add_buckets(
    sums_ptr, times, slope, m0, n0, y, x, num_tokens, BN: tl.constexpr
):  # fmt: skip
    """Without bounds, because times are out of order: add a tile's sums by bucket, slowly."""
    both = bucket_range(times, m0, n0, BN)
    if is_near(m0, n0):
        bucket = near_buckets(times, m0, n0, y, x, BN)
        for k in range(both & 65535, (both >> 16) + 1):
            tl.atomic_add(sums_ptr + k, tl.sum(tl.where(bucket == k, slope, 0.0)), sem="relaxed")
    else:
        rest = tl.sum(slope)
        for k in range(both & 65535, both >> 16):
            far = beyond(times, k, m0, n0, y, x, num_tokens, False)
            farther = tl.sum(tl.where(far, slope, 0.0))
            tl.atomic_add(sums_ptr + k, rest - farther, sem="relaxed")
            rest = farther
        tl.atomic_add(sums_ptr + (both >> 16), rest, sem="relaxed")


@triton.jit(do_not_specialize=["stride", "num_buckets", "num_programs", "step", "grad_stride"])
def time_gradient_kernel(
    sums_ptr, unsorted_ptr, grad_ptr, stride, num_buckets, num_programs, step, grad_stride, scale,
    PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients by bucket, from the sums of programs group, group + step, …: a bucket is its level minus the next one.

    If times are out of order, the sums already are by bucket.
    """
    group = tl.program_id(1)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    num_levels = tl.where(tl.load(unsorted_ptr) == 0, num_buckets, 0)
    total = tl.zeros([BLOCK], tl.float32)
    for p0 in range(group, num_programs, PROGRAMS * step):
        program = p0 + tl.arange(0, PROGRAMS)[:, None] * step
        there = (program < num_programs) & (k < num_buckets)
        place = sums_ptr + program.to(tl.int64) * stride + k
        next_one = there & (k + 1 < num_levels)
        total += tl.sum(tl.load(place, mask=there, other=0.0) - tl.load(place + 1, mask=next_one, other=0.0), 0)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = grad_ptr + group * grad_stride + k
    tl.store(place, (total * scale).to(grad_ptr.dtype.element_ty), mask=k < num_buckets)


@triton.jit(do_not_specialize=["num_programs"])
def bias_gradient_kernel(
    sums_ptr, grad_ptr, sums_stride, width, num_programs, num_heads, grad_stride, scale,
    GROUPED: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the programs' private sums, in the order of programs; with groups, only those of the group's head."""
    group = tl.program_id(1)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for p0 in range(0, num_programs, PROGRAMS):
        program = p0 + tl.arange(0, PROGRAMS)
        wanted = program < num_programs
        if GROUPED:
            wanted = wanted & (program % num_heads == group)
        place = sums_ptr + program.to(tl.int64)[:, None] * sums_stride + column[None, :]
        total += tl.sum(tl.load(place, mask=wanted[:, None] & (column < width)[None, :], other=0.0), 0)
    tl.store(grad_ptr + group * grad_stride + column, total * scale, mask=column < width)


@triton.jit(do_not_specialize=["num_tiles"])
def unfold_kernel(
    diagonals_ptr, sums_ptr, num_positions, num_tiles, BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Sums by distance, for `fold_positions_kernel`, from those of `add_diagonals` of ``num_tiles`` tiles.

    Diagonal e (from 0) of block (i, j) of the tile at m0 - n0 has the distance m0 - n0 + 8 (i - j) + e - 7.
    """
    STEP: tl.constexpr = min(BM, BN)
    BLOCKS: tl.constexpr = BM * BN // 64
    group = tl.program_id(1)
    diagonals = diagonals_ptr + group.to(tl.int64) * num_tiles * (BLOCKS * 16)
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    block = tl.arange(0, BLOCKS)
    shift = (block // (BN // 8) - block % (BN // 8)) * 8
    total = tl.zeros([BLOCK], tl.float32)
    for half in tl.static_range(2):
        diagonal = ((entry - 256 + 7) & 7) + 8 * half
        tile = (entry - 256 + 7 - diagonal)[:, None] - shift[None, :] + BM
        there = (tile & (STEP - 1) == 0) & (tile >= STEP) & (tile < num_tiles * STEP)
        place = diagonals + (tile // STEP * BLOCKS + block[None, :]) * 16 + diagonal[:, None]
        total += tl.sum(tl.load(place, mask=there, other=0.0), 1)
    ends = tl.arange(0, BM)
    total += tl.where(entry == 0, tl.sum(tl.load(diagonals + ends)), 0.0)
    total += tl.where(entry == num_positions + 511, tl.sum(tl.load(diagonals + BM + ends)), 0.0)
    tl.store(sums_ptr + group * (num_positions + 512) + entry, total, mask=entry < num_positions + 512)


@triton.jit
def fold_positions_kernel(sums_ptr, grad_ptr, num_positions, BLOCK: tl.constexpr):
    """Sums by distance (512 longer than the bias) to the bias's gradient: distances outside belong to its ends."""
    group = tl.program_id(1)
    sums = sums_ptr + group * (num_positions + 512)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    margin = tl.arange(0, 256)
    total = tl.load(sums + 256 + column, mask=column < num_positions, other=0.0)
    total += tl.where(column == 0, tl.sum(tl.load(sums + margin)), 0.0)
    total += tl.where(column == num_positions - 1, tl.sum(tl.load(sums + 256 + num_positions + margin)), 0.0)
    place = grad_ptr + group * num_positions + column
    tl.store(place, total.to(grad_ptr.dtype.element_ty), mask=column < num_positions)
