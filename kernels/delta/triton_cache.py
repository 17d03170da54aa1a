# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""New queries against cached keys and values: the part of delta attention that plain attention does not have.

A work item is a tile of one user's new tokens; its key blocks are distributed over ``num_splits`` programs, whose
results can simply be added, because there is no softmax. All cached keys are visible to all of their user's new tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.triton_forward import load_tile
from kernels.triton_shared import count_at_most, silu_of_half, tanh, through_silu

VARYING = ("time_group", "num_thresholds", "threshold_steps")
"""A server's request has as many buckets as its user has tokens, which must not cause another compilation."""


@triton.jit
def find_work(tile, tiles_ptr, offsets_ptr, num_users, num_steps, BM: tl.constexpr):
    """(user, first row, end of its rows) of a tile; ``tiles`` (B,): how many tiles users up to b have. User B: none."""
    user = count_at_most(tiles_ptr, num_users, tl.zeros([1], tl.int64) + tile, num_steps)
    user = tl.max(user, 0)
    safe = tl.minimum(user, num_users - 1)
    before = tl.load(tiles_ptr + safe - 1, mask=safe > 0, other=0)
    start = tl.load(offsets_ptr + safe)
    stop = tl.load(offsets_ptr + safe + 1)
    first = start + (tile - before) * BM
    return user, start.to(tl.int32), first.to(tl.int32), stop.to(tl.int32)


@triton.jit
def cache_bias(
    position_ptr, position_start, time_ptr, time_start, thresholds_ptr, query_time, key_time, distance, num_positions,
    num_thresholds, num_steps,
    BM: tl.constexpr, BN: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr,
):  # fmt: skip
    """The halved bias of a tile, and its buckets (zeros without a time bias)."""
    half = tl.zeros([BM, BN], tl.float32)
    bucket = tl.zeros([BM, BN], tl.int32)
    if HAS_POSITION:
        index = tl.minimum(tl.maximum(distance, 0), num_positions - 1)
        half += 0.5 * tl.load(position_ptr + position_start + index).to(tl.float32)
    if HAS_TIME:
        bucket = count_at_most(thresholds_ptr, num_thresholds, query_time[:, None] - key_time[None, :], num_steps)
        half += 0.5 * tl.load(time_ptr + time_start + bucket).to(tl.float32)
    return half, bucket


@triton.jit(do_not_specialize=["num_users", "num_steps", "num_tokens", "num_heads", "num_positions", *VARYING])
def cache_forward_kernel(
    q_ptr, k_ptr, v_ptr, parts_ptr, q_stride, k_stride, v_stride, q_head, k_head, v_head,
    tiles_ptr, offsets_ptr, cache_start_ptr, cache_len_ptr, position_ptr, position_group, num_positions,
    time_ptr, time_group, thresholds_ptr, query_time_ptr, key_time_ptr, num_thresholds, threshold_steps,
    num_users, num_steps, num_tokens, num_heads, inverse_norm,
    D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """parts[1 + split, token, head]: float32 sums over this split's key blocks."""
    head = tl.program_id(1)
    split = tl.program_id(2)
    user, start, first, stop = find_work(tl.program_id(0), tiles_ptr, offsets_ptr, num_users, num_steps, BM)
    if user >= num_users:
        return
    row = first + tl.arange(0, BM)
    q = load_tile(q_ptr + head.to(tl.int64) * q_head, first, q_stride, stop, D, BM, WIDTH_D)
    q = (q * 0.5).to(q_ptr.dtype.element_ty)
    cache_len = tl.load(cache_len_ptr + user).to(tl.int32)
    cache_start = tl.load(cache_start_ptr + user)
    k_base = k_ptr + cache_start * k_stride + head.to(tl.int64) * k_head
    v_base = v_ptr + cache_start * v_stride + head.to(tl.int64) * v_head
    query_time = row.to(tl.int64)
    if HAS_TIME:
        query_time = tl.load(query_time_ptr + row, mask=row < stop, other=0)
    acc = tl.zeros([BM, WIDTH_E], tl.float32)
    for n0 in range(split * BN, cache_len, tl.num_programs(2) * BN):
        column = n0 + tl.arange(0, BN)
        k = load_tile(k_base, n0, k_stride, cache_len, D, BN, WIDTH_D)
        v = load_tile(v_base, n0, v_stride, cache_len, E, BN, WIDTH_E)
        key_time = column.to(tl.int64)
        if HAS_TIME:
            key_time = tl.load(key_time_ptr + cache_start + column, mask=column < cache_len, other=0)
        distance = cache_len + (row - start)[:, None] - column[None, :]
        half, _ = cache_bias(
            position_ptr, head * position_group, time_ptr, head * time_group, thresholds_ptr, query_time, key_time,
            distance, num_positions, num_thresholds, threshold_steps, BM, BN, HAS_POSITION, HAS_TIME,
        )  # fmt: skip
        half = tl.dot(q, tl.trans(k), acc=half, input_precision=PRECISION)
        weight = tl.where((column < cache_len)[None, :], silu_of_half(half, FAST), 0.0)
        acc = tl.dot(weight.to(v.dtype), v, acc=acc, input_precision=PRECISION)
    column = tl.arange(0, WIDTH_E)
    place = ((split + 1).to(tl.int64) * num_tokens + row)[:, None] * num_heads + head
    keep = (row < stop)[:, None] & (column < E)[None, :]
    tl.store(parts_ptr + place * E + column[None, :], acc * inverse_norm, mask=keep)


@triton.jit
def add_diagonals(buffer_ptr, slope, m0, n0, num_positions, BM: tl.constexpr, BN: tl.constexpr):
    """Add the sums of a tile's diagonals to a private row of sums by distance (entry 256 is distance 0).

    Row y of the skewed tile has the entries with (row - column) mod BM = y: distance m0 - n0 + y, and BM less for each
    further fold. In the next tile an entry belongs to another thread: a barrier separates them.
    """
    if m0 - n0 - BN + 2 >= num_positions:
        entry = buffer_ptr + num_positions + 511
        tl.debug_barrier()
        tl.store(entry, tl.load(entry) + tl.sum(slope))
    else:
        y = tl.arange(0, BM)
        source = y[:, None] + tl.arange(0, BN)[None, :]
        skewed = tl.gather(slope, source % BM, axis=0)
        place = buffer_ptr + 256 + m0 - n0 + y
        tl.debug_barrier()
        for fold in tl.static_range((BM + BN - 2) // BM + 1):
            part = tl.sum(tl.where(source // BM == fold, skewed, 0.0), 1)
            tl.store(place - fold * BM, tl.load(place - fold * BM) + part)


@triton.jit(do_not_specialize=["num_users", "num_steps", "num_heads", "num_positions", "num_tiles", *VARYING])
def cache_gradient_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, own_grad_ptr, q_grad_ptr, q_stride, k_stride, v_stride, grad_stride, q_grad_stride,
    q_head, k_head, v_head, grad_head, q_grad_head,
    tiles_ptr, offsets_ptr, cache_start_ptr, cache_len_ptr, position_ptr, position_group, num_positions,
    position_sums_ptr, position_sums_stride,
    time_ptr, time_group, thresholds_ptr, query_time_ptr, key_time_ptr, time_sums_ptr, num_thresholds, threshold_steps,
    num_users, num_steps, num_heads, num_tiles, inverse_norm,
    D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr, WIDTH_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
    HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q_grad = own_grad (from the new keys) + the part from the cached keys; and private sums for the biases."""
    head = tl.program_id(0) % num_heads
    index = tl.arange(0, WIDTH_K)
    time_sums = tl.zeros([WIDTH_K], tl.float32)
    if HAS_POSITION:
        position_sums = position_sums_ptr + tl.program_id(0).to(tl.int64) * position_sums_stride
    for tile in range(tl.program_id(0) // num_heads, num_tiles, tl.num_programs(0) // num_heads):
        user, start, first, stop = find_work(tile, tiles_ptr, offsets_ptr, num_users, num_steps, BM)
        stop = tl.where(user < num_users, stop, 0)
        user = tl.minimum(user, num_users - 1)
        row = first + tl.arange(0, BM)
        inside = row < stop
        q = load_tile(q_ptr + head.to(tl.int64) * q_head, first, q_stride, stop, D, BM, WIDTH_D)
        q = (q * 0.5).to(q_ptr.dtype.element_ty)
        grad = load_tile(grad_ptr + head.to(tl.int64) * grad_head, first, grad_stride, stop, E, BM, WIDTH_E)
        cache_len = tl.where(tl.max(inside.to(tl.int32), 0) > 0, tl.load(cache_len_ptr + user).to(tl.int32), 0)
        cache_start = tl.load(cache_start_ptr + user)
        k_base = k_ptr + cache_start * k_stride + head.to(tl.int64) * k_head
        v_base = v_ptr + cache_start * v_stride + head.to(tl.int64) * v_head
        query_time = row.to(tl.int64)
        if HAS_TIME:
            query_time = tl.load(query_time_ptr + row, mask=inside, other=0)
        acc = tl.zeros([BM, WIDTH_D], tl.float32)
        for n0 in range(0, cache_len, BN):
            column = n0 + tl.arange(0, BN)
            k = load_tile(k_base, n0, k_stride, cache_len, D, BN, WIDTH_D)
            v = load_tile(v_base, n0, v_stride, cache_len, E, BN, WIDTH_E)
            key_time = column.to(tl.int64)
            if HAS_TIME:
                key_time = tl.load(key_time_ptr + cache_start + column, mask=column < cache_len, other=0)
            distance = cache_len + (row - start)[:, None] - column[None, :]
            half, bucket = cache_bias(
                position_ptr, head * position_group, time_ptr, head * time_group, thresholds_ptr, query_time,
                key_time, distance, num_positions, num_thresholds, threshold_steps, BM, BN, HAS_POSITION, HAS_TIME,
            )  # fmt: skip
            half = tl.dot(q, tl.trans(k), acc=half, input_precision=PRECISION)
            slope = through_silu(tl.dot(grad, tl.trans(v), input_precision=PRECISION), half, tanh(half, FAST))
            seen = inside[:, None] & (column < cache_len)[None, :]
            slope = tl.where(seen, slope, 0.0)
            acc = tl.dot(slope.to(k.dtype), k, acc=acc, input_precision=PRECISION)
            if HAS_POSITION:
                add_diagonals(position_sums, slope, cache_len + first - start, n0, num_positions, BM, BN)
            if HAS_TIME:
                low = tl.min(tl.where(seen, bucket, 2147483647))
                high = tl.max(tl.where(seen, bucket, -1))
                for b in range(low, high + 1):
                    time_sums += tl.where(index == b, tl.sum(tl.where(bucket == b, slope, 0.0)), 0.0)
        column = tl.arange(0, WIDTH_D)
        place = row.to(tl.int64)[:, None] * q_grad_stride + head.to(tl.int64) * q_grad_head + column[None, :]
        keep = inside[:, None] & (column < D)[None, :]
        total = tl.load(own_grad_ptr + place, mask=keep, other=0.0) + acc * (0.5 * inverse_norm)
        tl.store(q_grad_ptr + place, total.to(q_grad_ptr.dtype.element_ty), mask=keep)
    if HAS_TIME:
        tl.store(time_sums_ptr + tl.program_id(0) * WIDTH_K + index, time_sums)


@triton.jit(do_not_specialize=["num_parts", "num_values"])
def add_parts_kernel(parts_ptr, out_ptr, num_parts, num_values, BLOCK: tl.constexpr):
    """The sum of (parts, values) float32, in a fixed order."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(num_parts):
        total += tl.load(
            parts_ptr + part * tl.full((), num_values, tl.int64) + place, mask=place < num_values, other=0.0
        )
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=place < num_values)
