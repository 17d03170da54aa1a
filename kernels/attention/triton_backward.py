# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: SIM102 (a load may stand only inside the compile-time branch that has its pointer)
"""HSTU attention's backward pass: queries' and biases' gradients in one kernel, keys' and values' in another.

Each tile's gradients are summed by the program that owns it. The biases' are summed in memory of a program's own, each
number by one thread, always the same, until `bias_gradient_kernel` adds them in a fixed order: `tl.atomic_add` is an
addition in the L2 cache there, which nobody waits for. Repeated runs agree to the bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.triton_bias import (
    add_time_bias,
    beyond,
    bucket_range,
    is_near,
    near_buckets,
    position_tile,
    time_tile,
)
from kernels.attention.triton_forward import load_tile, seen_by, store_tile, visible
from kernels.triton_shared import tanh, through_silu


@triton.jit
def diagonals_of_blocks(DTYPE: tl.constexpr):
    """(64, 16): which entry of an 8 x 8 block lies on which of its diagonals; the last column is empty."""
    entry = tl.arange(0, 64)[:, None]
    return (entry // 8 - entry % 8 + 7 == tl.arange(0, 16)[None, :]).to(tl.float32).to(DTYPE)


@triton.jit
def add_diagonals(
    sums_ptr, slope, rows, selector, m0, n0, num_positions,
    BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a tile's sums by distance to those of its program; ``rows`` are its sums by query.

    The matrix units sum the diagonals of its blocks of 8 x 8, in the dtype of dQ's product; `unfold_kernel` knows which
    distance they are. Beyond the table's ends, all of the tile is one distance.
    """
    STEP: tl.constexpr = min(BM, BN)
    BLOCKS: tl.constexpr = BM * BN // 64
    beyond_end = m0 - n0 - BN + 2 >= num_positions
    if (n0 >= m0 + BM) | beyond_end:
        tl.atomic_add(sums_ptr + tl.where(beyond_end, BM, 0) + tl.arange(0, BM), rows, sem="relaxed")
    else:
        blocks = slope.to(selector.dtype).reshape(BM // 8, 8, BN // 8, 8).permute(0, 2, 1, 3).reshape(BLOCKS, 64)
        part = tl.dot(blocks, selector, input_precision=PRECISION)
        place = sums_ptr + ((m0 - n0 + BM) // STEP) * (BLOCKS * 16)
        tl.atomic_add(place + tl.arange(0, BLOCKS)[:, None] * 16 + tl.arange(0, 16)[None, :], part, sem="relaxed")


@triton.jit
def add_buckets(
    sums_ptr, slope, rows, near_ptr, ranges_ptr, bounds_ptr, thresholds_ptr, query_time_ptr, key_time_ptr,
    m0, n0, y, x, num_tokens, num_thresholds, BM: tl.constexpr, BN: tl.constexpr, SORTED: tl.constexpr,
):  # fmt: skip
    """Add a tile's sums by query and bucket to those of its program; ``rows`` are its sums by query alone."""
    place = sums_ptr + tl.arange(0, BM)
    low, high = bucket_range(ranges_ptr, m0, n0, num_thresholds, BN)
    if is_near(m0, n0):
        bucket = near_buckets(near_ptr, m0, n0, y, x, BN)
        for k in range(low, high + 1):
            tl.atomic_add(place + k * BM, tl.sum(tl.where(bucket == k, slope, 0.0), 1), sem="relaxed")
    else:
        for k in range(low, high):
            far = beyond(
                k, m0, n0, y, x, bounds_ptr, thresholds_ptr, query_time_ptr, key_time_ptr, num_tokens, SORTED
            )  # fmt: skip
            farther = tl.sum(tl.where(far, slope, 0.0), 1)
            tl.atomic_add(place + k * BM, rows - farther, sem="relaxed")
            rows = farther
        tl.atomic_add(place + high * BM, rows, sem="relaxed")


@triton.jit(do_not_specialize=["time_group", "num_positions", "num_thresholds", "num_tokens", "num_heads", "num_tiles"])
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, q_grad_ptr,
    q_stride, k_stride, v_stride, grad_stride, q_grad_stride, q_head, k_head, v_head, grad_head, q_grad_head,
    start_ptr, context_ptr, history_ptr, order_ptr,
    position_ptr, position_group, num_positions, position_sums_ptr, position_sums_stride,
    time_ptr, time_group, near_ptr, ranges_ptr, bounds_ptr, unsorted_ptr, thresholds_ptr, query_time_ptr, key_time_ptr,
    time_sums_ptr, time_sums_stride, num_thresholds, num_tokens, num_heads, num_tiles, inverse_norm,
    D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, SORTED: tl.constexpr,
    HAS_CONTEXT: tl.constexpr, HAS_TARGETS: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ, and each program's own sums for the biases. Programs keep to one head and stride over its tiles, to and fro.

    A user's tiles follow each other with less and less work: who had the most in one turn has the least in the next.
    """
    if HAS_TIME:
        if (tl.load(unsorted_ptr) == 0) != SORTED:
            return
    head = tl.program_id(0) % num_heads
    k_base = k_ptr + head.to(tl.int64) * k_head
    v_base = v_ptr + head.to(tl.int64) * v_head
    if HAS_POSITION:
        position_sums = position_sums_ptr + tl.program_id(0).to(tl.int64) * position_sums_stride
        selector = diagonals_of_blocks(q_ptr.dtype.element_ty)
    if HAS_TIME:
        time_sums = time_sums_ptr + tl.program_id(0).to(tl.int64) * time_sums_stride
    y = tl.arange(0, BM)[:, None]
    x = tl.arange(0, BN)[None, :]
    stride = tl.num_programs(0) // num_heads
    for place in range(tl.program_id(0) // num_heads, num_tiles, stride):
        turn = place // stride
        back = (turn % 2 == 1) & ((turn + 1) * stride <= num_tiles)
        tile = tl.where(back, (2 * turn + 1) * stride - 1 - place, place)
        m0 = tl.load(order_ptr + tile // (128 // BM)) * 128 + tile % (128 // BM) * BM
        m0 = tl.multiple_of(m0, BM)
        start, context, history, first, stop, unmasked_from, unmasked_to = seen_by(
            m0, start_ptr, context_ptr, history_ptr, num_tokens, BM, BN, HAS_CONTEXT, HAS_TARGETS
        )
        q = load_tile(q_ptr + head.to(tl.int64) * q_head, m0, q_stride, num_tokens, D, BM, WIDTH_D)
        q = (q * 0.5).to(q_ptr.dtype.element_ty)
        grad = load_tile(grad_ptr + head.to(tl.int64) * grad_head, m0, grad_stride, num_tokens, E, BM, WIDTH_E)
        acc = tl.zeros([BM, WIDTH_D], tl.float32)
        for n0 in range(first, stop, BN):
            n0 = tl.multiple_of(n0, BN)
            k = load_tile(k_base, n0, k_stride, num_tokens, D, BN, WIDTH_D)
            v = load_tile(v_base, n0, v_stride, num_tokens, E, BN, WIDTH_E)
            half = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if HAS_POSITION:
                half += position_tile(
                    position_ptr + head * position_group, num_positions, m0, n0, y, x, BM, BN, BM, BN
                )  # fmt: skip
            if HAS_TIME:
                half = add_time_bias(
                    half, time_ptr + head * time_group, near_ptr, ranges_ptr, bounds_ptr, thresholds_ptr,
                    query_time_ptr, key_time_ptr, m0, n0, y, x, num_tokens, num_thresholds, BN, SORTED,
                )  # fmt: skip
            slope = through_silu(tl.dot(grad, tl.trans(v), input_precision=PRECISION), half, tanh(half, FAST))
            if (n0 < unmasked_from) | (n0 + BN > unmasked_to):
                seen = visible(m0, n0, y, x, start, context, history, HAS_CONTEXT, HAS_TARGETS)
                slope = tl.where(seen, slope, 0.0)
            acc = tl.dot(slope.to(k.dtype), k, acc=acc, input_precision=PRECISION)
            if HAS_POSITION | HAS_TIME:
                rows = tl.sum(slope, 1)
            if HAS_POSITION:
                add_diagonals(position_sums, slope, rows, selector, m0, n0, num_positions, BM, BN, PRECISION)
            if HAS_TIME:
                add_buckets(
                    time_sums, slope, rows, near_ptr, ranges_ptr, bounds_ptr, thresholds_ptr, query_time_ptr,
                    key_time_ptr, m0, n0, y, x, num_tokens, num_thresholds, BM, BN, SORTED,
                )  # fmt: skip
        q_grad_base = q_grad_ptr + head.to(tl.int64) * q_grad_head
        store_tile(q_grad_base, acc * (0.5 * inverse_norm), m0, q_grad_stride, num_tokens, D, BM, WIDTH_D)


@triton.jit(do_not_specialize=["time_group", "num_positions", "num_thresholds", "num_tokens", "num_heads"])
def key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, k_grad_ptr, v_grad_ptr,
    q_stride, k_stride, v_stride, grad_stride, k_grad_stride, v_grad_stride,
    q_head, k_head, v_head, grad_head, k_grad_head, v_grad_head,
    start_ptr, stop_ptr, context_ptr, history_ptr, order_ptr,
    position_ptr, position_group, num_positions,
    time_ptr, time_group, near_ptr, ranges_ptr, bounds_ptr, unsorted_ptr, thresholds_ptr, query_time_ptr, key_time_ptr,
    num_thresholds, num_tokens, num_heads, inverse_norm,
    D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, SORTED: tl.constexpr,
    HAS_CONTEXT: tl.constexpr, HAS_TARGETS: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys of one head; scores transposed, so that they feed the products from registers."""
    if HAS_TIME:
        if (tl.load(unsorted_ptr) == 0) != SORTED:
            return
    head = tl.program_id(0) % num_heads
    tile = tl.program_id(0) // num_heads
    n0 = tl.load(order_ptr + tile // (128 // BN)) * 128 + tile % (128 // BN) * BN
    if n0 >= num_tokens:
        return
    n0 = tl.multiple_of(n0, BN)
    x = tl.arange(0, BN)[:, None]
    y = tl.arange(0, BM)[None, :]
    key = n0 + tl.arange(0, BN)
    inside = key < num_tokens
    start = tl.load(start_ptr + key, mask=inside, other=2147483647)
    end = tl.load(stop_ptr + key, mask=inside, other=0)
    context = tl.load(context_ptr + key, mask=inside, other=0)
    history = tl.load(history_ptr + key, mask=inside, other=0)
    first = n0
    if HAS_CONTEXT:
        first = tl.minimum(first, tl.min(tl.where(key < context, start, 2147483647), 0))
    first = first // BM * BM
    last = tl.max(end, 0)
    unmasked_from = n0 + BN - 1
    unmasked_to = tl.min(end, 0)
    if HAS_TARGETS:
        unmasked_to = tl.where(n0 + BN <= tl.min(history, 0), unmasked_to, 0)
    k = load_tile(k_ptr + head.to(tl.int64) * k_head, n0, k_stride, num_tokens, D, BN, WIDTH_D)
    k = (k * 0.5).to(k_ptr.dtype.element_ty)
    v = load_tile(v_ptr + head.to(tl.int64) * v_head, n0, v_stride, num_tokens, E, BN, WIDTH_E)
    q_base = q_ptr + head.to(tl.int64) * q_head
    grad_base = grad_ptr + head.to(tl.int64) * grad_head
    k_acc = tl.zeros([BN, WIDTH_D], tl.float32)
    v_acc = tl.zeros([BN, WIDTH_E], tl.float32)
    for m0 in range(first, last, BM):
        m0 = tl.multiple_of(m0, BM)
        q = load_tile(q_base, m0, q_stride, num_tokens, D, BM, WIDTH_D)
        grad = load_tile(grad_base, m0, grad_stride, num_tokens, E, BM, WIDTH_E)
        half = tl.zeros([BN, BM], tl.float32)
        if HAS_POSITION:
            half += position_tile(
                position_ptr + head * position_group, num_positions, m0, n0, y, x, BN, BM, BM, BN
            )  # fmt: skip
        if HAS_TIME:
            half += time_tile(
                time_ptr + head * time_group, near_ptr, ranges_ptr, bounds_ptr, thresholds_ptr, query_time_ptr,
                key_time_ptr, m0, n0, y, x, num_tokens, num_thresholds, BN, BM, BN, SORTED,
            )  # fmt: skip
        half = tl.dot(k, tl.trans(q), acc=half, input_precision=PRECISION)
        tanh_half = tanh(half, FAST)
        weight = half + half * tanh_half
        slope = through_silu(tl.dot(v, tl.trans(grad), input_precision=PRECISION), half, tanh_half)
        if (m0 < unmasked_from) | (m0 + BM > unmasked_to):
            seen = (x - y <= m0 - n0) & (y < end[:, None] - m0)
            if HAS_CONTEXT:
                both = (x < context[:, None] - n0) & (y < context[:, None] - m0)
                seen = seen | (both & (y >= start[:, None] - m0))
            if HAS_TARGETS:
                seen = seen & ((x < history[:, None] - n0) | (x - y == m0 - n0))
            weight = tl.where(seen, weight, 0.0)
            slope = tl.where(seen, slope, 0.0)
        v_acc = tl.dot(weight.to(grad.dtype), grad, acc=v_acc, input_precision=PRECISION)
        k_acc = tl.dot(slope.to(q.dtype), q, acc=k_acc, input_precision=PRECISION)
    k_grad_base = k_grad_ptr + head.to(tl.int64) * k_grad_head
    v_grad_base = v_grad_ptr + head.to(tl.int64) * v_grad_head
    store_tile(k_grad_base, k_acc * (0.5 * inverse_norm), n0, k_grad_stride, num_tokens, D, BN, WIDTH_D)
    store_tile(v_grad_base, v_acc * inverse_norm, n0, v_grad_stride, num_tokens, E, BN, WIDTH_E)


@triton.jit(do_not_specialize=["num_programs"])
def bias_gradient_kernel(
    sums_ptr, grad_ptr, sums_stride, width, num_programs, num_heads, grad_stride, scale,
    GROUPED: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the programs' private sums, in the order of programs; with groups, only those of the group's head."""
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
    """Sums by distance, as `fold_positions_kernel` takes them, from those of `add_diagonals`, ``num_tiles`` tiles long.

    Block (i, j) of the tile m0 - n0 has its diagonal e, from 0, at distance m0 - n0 + 8 (i - j) + e - 7.
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
    """Sums by distance (512 longer than the bias) to the bias's gradient: what lies outside belongs to the ends."""
    group = tl.program_id(1)
    sums = sums_ptr + group * (num_positions + 512)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    margin = tl.arange(0, 256)
    total = tl.load(sums + 256 + column, mask=column < num_positions, other=0.0)
    total += tl.where(column == 0, tl.sum(tl.load(sums + margin)), 0.0)
    total += tl.where(column == num_positions - 1, tl.sum(tl.load(sums + 256 + num_positions + margin)), 0.0)
    place = grad_ptr + group * num_positions + column
    tl.store(place, total.to(grad_ptr.dtype.element_ty), mask=column < num_positions)
