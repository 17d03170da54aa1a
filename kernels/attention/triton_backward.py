# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: SIM102 (a kernel's compile-time conditions stand one in another)
"""HSTU attention's backward pass: gradients of queries and biases in one kernel, of keys and values in another.

Each tile's gradients are summed by the program that owns the tile; those of the biases as in `triton_bias_gradient`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.triton_bias import (
    add_time_bias,
    bias_ahead,
    bounds_ahead,
    is_near,
    position_tile,
    range_ahead,
    time_bias_ahead,
)
from kernels.attention.triton_bias_gradient import (
    add_buckets,
    add_diagonals,
    add_ends,
    add_levels,
    diagonals_of_blocks,
    earlier_keys,
    note_levels,
)
from kernels.attention.triton_forward import (
    VARYING,
    at_head,
    load_rows,
    load_tile,
    other_order,
    seen_by,
    store_tile,
    visible,
)
from kernels.triton_shared import tanh, through_silu


@triton.jit
def alternating_tile(place, num_tiles, stride):
    """The tile for a program in one turn: turns alternate in direction, because a user's tiles have less and less work.

    The program with the most work in one turn has the least in the next.
    """
    turn = place // stride
    back = (turn % 2 == 1) & ((turn + 1) * stride <= num_tiles)
    return tl.where(back, (2 * turn + 1) * stride - 1 - place, place)


@triton.jit(do_not_specialize=["num_tiles", *VARYING])
def query_gradient_kernel(
    q, k, v, grad, q_grad, k_rows, v_rows, tokens, positions, times, sums, sums_stride, num_tiles, num_tokens,
    num_positions, num_thresholds, num_heads, inverse_norm,
    D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SORTED: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ, and each program's private sums for the biases. Each program keeps to one head and strides over its tiles."""
    if other_order(times, SORTED):
        return
    program = tl.program_id(0).to(tl.int64)
    head = tl.program_id(0) % num_heads
    if positions.table is not None:
        diagonals = sums.diagonals + program * sums_stride
        selector = diagonals_of_blocks(q.pointer.dtype.element_ty)
    if times.bias is not None:
        levels = sums.levels + program * sums_stride
        notes = sums.notes + program * (BM * (257 + num_thresholds))
        if SORTED:
            earlier = earlier_keys(BN, q.pointer.dtype.element_ty)
    y = tl.arange(0, BM)[:, None]
    x = tl.arange(0, BN)[None, :]
    stride = tl.num_programs(0) // num_heads
    for place in range(tl.program_id(0) // num_heads, num_tiles, stride):
        tile = alternating_tile(place, num_tiles, stride)
        m0 = tl.load(tokens.order + tile // (128 // BM)) * 128 + tile % (128 // BM) * BM
        m0 = tl.multiple_of(m0, BM)
        start, context, history, first, stop, unmasked_from, unmasked_to = seen_by(tokens, num_tokens, m0, BM, BN)
        query = load_tile(at_head(q, head), m0, q.stride, num_tokens, D, BM, WIDTH_D)
        outer = load_tile(at_head(grad, head), m0, grad.stride, num_tokens, E, BM, WIDTH_E)
        acc = tl.zeros([BM, WIDTH_D], tl.float32)
        total = tl.zeros([BM], tl.float32)
        before_start = tl.zeros([BM], tl.float32)
        beyond_end = tl.zeros([BM], tl.float32)
        last_least = m0 * 0
        both, nearer, farther, bound = time_bias_ahead(
            times, num_thresholds, range_ahead(times, m0, first, BN), head, m0, first, num_tokens, BM, SORTED
        )
        next_range = range_ahead(times, m0, first + BN, BN)
        for n0 in range(first, stop, BN):
            n0 = tl.multiple_of(n0, BN)
            position = position_tile(positions, num_positions, head, m0, n0, y, x, BN)
            range_after = range_ahead(times, m0, n0 + 2 * BN, BN)
            next_both, next_nearer, next_farther, next_bound = time_bias_ahead(
                times, num_thresholds, next_range, head, m0, n0 + BN, num_tokens, BM, SORTED
            )
            key = load_rows(k_rows, k, head, n0, num_tokens, D, BN, WIDTH_D)
            value = load_rows(v_rows, v, head, n0, num_tokens, E, BN, WIDTH_E)
            ahead = bias_ahead(position, times, both, nearer, farther, bound[:, None], m0, n0, x, SORTED)
            half = 0.5 * tl.dot(query, tl.trans(key), input_precision=PRECISION) + ahead
            if times.bias is not None:
                half = add_time_bias(half, times, num_thresholds, both, head, m0, n0, y, x, num_tokens, BN, SORTED)
            slope = through_silu(tl.dot(outer, tl.trans(value), input_precision=PRECISION), half, tanh(half, FAST))
            if (n0 < unmasked_from) | (n0 + BN > unmasked_to):
                slope = tl.where(visible(tokens, m0, n0, y, x, start, context, history), slope, 0.0)
            acc = tl.dot(slope.to(key.dtype), key, acc=acc, input_precision=PRECISION)
            rows = tl.sum(slope, 1)
            if positions.table is not None:
                is_beyond = m0 - n0 - BN + 2 >= num_positions
                beyond_end += tl.where(is_beyond, rows, 0.0)
                if tokens.context is not None:
                    before_start += tl.where((n0 >= m0 + BM) & (is_beyond == 0), rows, 0.0)
                if (n0 < m0 + BM) & (is_beyond == 0):
                    add_diagonals(diagonals, slope, selector, m0, n0, BM, BN, PRECISION)
            if times.bias is not None:
                if SORTED:
                    note_levels(
                        notes, times, slope, total, both, bound, last_least, earlier, m0, n0, y, x, num_tokens, BM, BN,
                        PRECISION,
                    )  # fmt: skip
                    total += rows
                    last_least = tl.where(is_near(m0, n0), 0, both & 65535)
                else:
                    add_buckets(levels, times, slope, m0, n0, y, x, num_tokens, BN)
            both, nearer, farther, bound = next_both, next_nearer, next_farther, next_bound
            next_range = range_after
        store_tile(at_head(q_grad, head), acc * (0.5 * inverse_norm), m0, q_grad.stride, num_tokens, D, BM, WIDTH_D)
        if positions.table is not None:
            add_ends(diagonals, before_start, beyond_end, BM)
        if times.bias is not None:
            if SORTED:
                end = first + tl.cdiv(tl.maximum(stop - first, 0), BN) * BN
                add_levels(
                    levels, notes, times, num_thresholds, total, tl.reshape(start, [BM]), m0, end, num_tokens, BM,
                    64,
                )  # fmt: skip


@triton.jit
def seen_from(tokens, num_tokens, n0, BM: tl.constexpr, BN: tl.constexpr):
    """For keys n0…: (start, end, context, history) (BN, 1), the range of queries that see any, and that see all."""
    key = n0 + tl.arange(0, BN)
    inside = key < num_tokens
    start = tl.load(tokens.start + key, mask=inside, other=2147483647)
    end = tl.load(tokens.stop + key, mask=inside, other=0)
    context = start
    history = end
    first = n0
    unmasked_to = tl.min(end, 0)
    if tokens.context is not None:
        context = tl.load(tokens.context + key, mask=inside, other=0)
        first = tl.minimum(first, tl.min(tl.where(key < context, start, 2147483647), 0))
    if tokens.history is not None:
        history = tl.load(tokens.history + key, mask=inside, other=0)
        unmasked_to = tl.where(n0 + BN <= tl.min(history, 0), unmasked_to, 0)
    return (
        start[:, None], end[:, None], context[:, None], history[:, None], first // BM * BM, tl.max(end, 0),
        n0 + BN - 1, unmasked_to,
    )  # fmt: skip


@triton.jit
def visible_to(tokens, m0, n0, y, x, start, end, context, history):
    """Which queries m0 + ``y`` see keys n0 + ``x``; ``start`` to ``history`` belong to the keys."""
    seen = (x - y <= m0 - n0) & (y < end - m0)
    if tokens.context is not None:
        both = (x < context - n0) & (y < context - m0)
        seen = seen | (both & (y >= start - m0))
    if tokens.history is not None:
        seen = seen & ((x < history - n0) | (x - y == m0 - n0))
    return seen


@triton.jit(do_not_specialize=VARYING)
def key_gradient_kernel(
    q, k, v, grad, k_grad, v_grad, q_rows, grad_rows, tokens, positions, times, num_tokens, num_positions,
    num_thresholds, num_heads, inverse_norm,
    D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SORTED: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys of one head; with transposed scores, which can feed the products from registers."""
    if other_order(times, SORTED):
        return
    head = tl.program_id(0) % num_heads
    tile = tl.program_id(0) // num_heads
    n0 = tl.load(tokens.order + tile // (128 // BN)) * 128 + tile % (128 // BN) * BN
    if n0 >= num_tokens:
        return
    n0 = tl.multiple_of(n0, BN)
    x = tl.arange(0, BN)[:, None]
    y = tl.arange(0, BM)[None, :]
    start, end, context, history, first, last, unmasked_from, unmasked_to = seen_from(tokens, num_tokens, n0, BM, BN)
    key = load_tile(at_head(k, head), n0, k.stride, num_tokens, D, BN, WIDTH_D)
    value = load_tile(at_head(v, head), n0, v.stride, num_tokens, E, BN, WIDTH_E)
    k_acc = tl.zeros([BN, WIDTH_D], tl.float32)
    v_acc = tl.zeros([BN, WIDTH_E], tl.float32)
    both, nearer, farther, bound = time_bias_ahead(
        times, num_thresholds, range_ahead(times, first, n0, BN), head, first, n0, num_tokens, BM, SORTED, BM < 64
    )
    end_tile = tl.maximum(last - 1, first) // BM * BM
    next_range = range_ahead(times, tl.minimum(first + BM, end_tile), n0, BN)
    for m0 in range(first, last, BM):
        m0 = tl.multiple_of(m0, BM)
        next_m0 = tl.multiple_of(tl.minimum(m0 + BM, end_tile), BM)
        position = position_tile(positions, num_positions, head, m0, n0, y, x, BN)
        range_after = range_ahead(times, tl.minimum(m0 + 2 * BM, end_tile), n0, BN)
        next_both, next_nearer, next_farther, next_bound = time_bias_ahead(
            times, num_thresholds, next_range, head, next_m0, n0, num_tokens, BM, SORTED, BM < 64
        )
        if BM >= 64:
            bound = bounds_ahead(times, num_thresholds, both, m0, num_tokens, BM, SORTED)
        query = load_rows(q_rows, q, head, m0, num_tokens, D, BM, WIDTH_D)
        outer = load_rows(grad_rows, grad, head, m0, num_tokens, E, BM, WIDTH_E)
        ahead = bias_ahead(position, times, both, nearer, farther, bound[None, :], m0, n0, x, SORTED)
        half = 0.5 * tl.dot(key, tl.trans(query), input_precision=PRECISION) + ahead
        if times.bias is not None:
            half = add_time_bias(half, times, num_thresholds, both, head, m0, n0, y, x, num_tokens, BN, SORTED)
        tanh_half = tanh(half, FAST)
        weight = half + half * tanh_half
        slope = through_silu(tl.dot(value, tl.trans(outer), input_precision=PRECISION), half, tanh_half)
        if (m0 < unmasked_from) | (m0 + BM > unmasked_to):
            seen = visible_to(tokens, m0, n0, y, x, start, end, context, history)
            weight = tl.where(seen, weight, 0.0)
            slope = tl.where(seen, slope, 0.0)
        v_acc = tl.dot(weight.to(outer.dtype), outer, acc=v_acc, input_precision=PRECISION)
        k_acc = tl.dot(slope.to(query.dtype), query, acc=k_acc, input_precision=PRECISION)
        both, nearer, farther, bound = next_both, next_nearer, next_farther, next_bound
        next_range = range_after
    store_tile(at_head(k_grad, head), k_acc * (0.5 * inverse_norm), n0, k_grad.stride, num_tokens, D, BN, WIDTH_D)
    store_tile(at_head(v_grad, head), v_acc * inverse_norm, n0, v_grad.stride, num_tokens, E, BN, WIDTH_E)
