# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

"""HSTU attention's forward pass: each program computes one tile of queries of one head, the longest users first."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.triton_bias import (
    add_time_bias,
    bias_ahead,
    position_tile,
    range_ahead,
    time_bias_ahead,
)
from kernels.triton_shared import silu_of_half

VARYING = ("num_tokens", "num_positions", "num_thresholds", "num_heads")
"""Arguments whose values must not cause another compilation."""


@triton.jit
def seen_by(tokens, num_tokens, m0, BM: tl.constexpr, BN: tl.constexpr):
    """For queries m0…: (start, context, history) (BM, 1), the range of keys that any sees, and that all see."""
    row = m0 + tl.arange(0, BM)
    inside = row < num_tokens
    start = tl.load(tokens.start + row, mask=inside, other=2147483647)
    context = start
    history = start
    first = tl.minimum(tl.min(start, 0), num_tokens) // BN * BN
    stop = tl.minimum(m0 + BM, num_tokens)
    unmasked_to = m0 + 1
    if tokens.context is not None:
        context = tl.load(tokens.context + row, mask=inside, other=0)
        stop = tl.maximum(stop, tl.max(tl.where(row < context, context, 0), 0))
    if tokens.history is not None:
        history = tl.load(tokens.history + row, mask=inside, other=2147483647)
        unmasked_to = tl.minimum(unmasked_to, tl.min(history, 0))
    return start[:, None], context[:, None], history[:, None], first, stop, tl.max(start, 0), unmasked_to


@triton.jit
def visible(tokens, m0, n0, y, x, start, context, history):
    """Which keys n0 + ``x`` queries m0 + ``y`` see; ``start``, ``context``, ``history`` belong to the queries."""
    own = x >= start - n0
    seen = own & (x - y <= m0 - n0)
    if tokens.context is not None:
        seen = seen | (own & (x < context - n0) & (y < context - m0))
    if tokens.history is not None:
        seen = seen & ((x < history - n0) | (x - y == m0 - n0))
    return seen


@triton.jit
def at_head(operand, head):
    """The address of a head's rows."""
    return operand.pointer + head.to(tl.int64) * operand.head_stride


@triton.jit
def tile_pointers(pointer, first, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Addresses of (ROWS, WIDTH) entries from row ``first`` on; the same 32-bit offsets in every tile of a loop."""
    offset = tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    return pointer + tl.cast(first, tl.int64) * stride + offset


@triton.jit
def inside_tile(first, num_rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Which of a tile's entries exist."""
    return (tl.arange(0, ROWS) < num_rows - first)[:, None] & (tl.arange(0, WIDTH) < width)[None, :]


@triton.jit
def load_tile(pointer, first, stride, num_rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """(ROWS, WIDTH) from row ``first`` on of a (rows, heads, width) tensor at one head; zero outside."""
    place = tile_pointers(pointer, first, stride, ROWS, WIDTH)
    return tl.load(place, mask=inside_tile(first, num_rows, width, ROWS, WIDTH), other=0.0)


@triton.jit
def load_rows(rows, operand, head, first, num_rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """`load_tile` of a head; by the copy engine, without addresses and masks, if ``rows`` is a tensor descriptor."""
    if rows is not None:
        tile = rows.load([first, head * operand.head_stride])
    else:
        tile = load_tile(at_head(operand, head), first, operand.stride, num_rows, width, ROWS, WIDTH)
    return tile


@triton.jit
def store_tile(pointer, tile, first, stride, num_rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The counterpart of `load_tile`."""
    place = tile_pointers(pointer, first, stride, ROWS, WIDTH)
    tl.store(place, tile.to(pointer.dtype.element_ty), mask=inside_tile(first, num_rows, width, ROWS, WIDTH))


@triton.jit
def other_order(times, SORTED: tl.constexpr):
    """Whether the batch's times are not of the kind (in order or not) that this version is for; the other version then
    does the work."""
    other = False
    if times.bias is not None:
        other = (tl.load(times.unsorted) == 0) != SORTED
    return other


@triton.jit(do_not_specialize=VARYING)
def attention_forward_kernel(
    q, k, v, out, k_rows, v_rows, tokens, positions, times, num_tokens, num_positions, num_thresholds, num_heads,
    inverse_norm,
    D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SORTED: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(T, H, E); see the module.

    The scores are halved instead of the queries: scaled queries would be in registers, for which the matrix unit waits,
    instead of in shared memory.
    """
    if other_order(times, SORTED):
        return
    head = tl.program_id(0) % num_heads
    tile = tl.program_id(0) // num_heads
    m0 = tl.load(tokens.order + tile // (128 // BM)) * 128 + tile % (128 // BM) * BM
    if m0 >= num_tokens:
        return
    m0 = tl.multiple_of(m0, BM)
    y = tl.arange(0, BM)[:, None]
    x = tl.arange(0, BN)[None, :]
    start, context, history, first, stop, unmasked_from, unmasked_to = seen_by(tokens, num_tokens, m0, BM, BN)
    query = load_tile(at_head(q, head), m0, q.stride, num_tokens, D, BM, WIDTH_D)
    acc = tl.zeros([BM, WIDTH_E], tl.float32)
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
        ahead = bias_ahead(position, times, both, nearer, farther, bound[:, None], m0, n0, x, SORTED)
        half = 0.5 * tl.dot(query, tl.trans(key), input_precision=PRECISION) + ahead
        if times.bias is not None:
            half = add_time_bias(half, times, num_thresholds, both, head, m0, n0, y, x, num_tokens, BN, SORTED)
        weight = silu_of_half(half, FAST)
        if (n0 < unmasked_from) | (n0 + BN > unmasked_to):
            weight = tl.where(visible(tokens, m0, n0, y, x, start, context, history), weight, 0.0)
        value = load_rows(v_rows, v, head, n0, num_tokens, E, BN, WIDTH_E)
        acc = tl.dot(weight.to(value.dtype), value, acc=acc, input_precision=PRECISION)
        both, nearer, farther, bound = next_both, next_nearer, next_farther, next_bound
        next_range = range_after
    store_tile(at_head(out, head), acc * inverse_norm, m0, out.stride, num_tokens, E, BM, WIDTH_E)
