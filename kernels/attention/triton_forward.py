# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: SIM102 (a load may stand only inside the compile-time branch that has its pointer)
"""HSTU attention's forward pass: one tile of queries of one head a program, longest first."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention.triton_bias import add_time_bias, position_tile
from kernels.triton_shared import silu_of_half


@triton.jit
def seen_by(
    m0, start_ptr, context_ptr, history_ptr, num_tokens, BM: tl.constexpr, BN: tl.constexpr,
    HAS_CONTEXT: tl.constexpr, HAS_TARGETS: tl.constexpr,
):  # fmt: skip
    """Of queries m0…: (start, context, history) (BM, 1), the range of keys, and of those that all of them see."""
    row = m0 + tl.arange(0, BM)
    start = tl.load(start_ptr + row, mask=row < num_tokens, other=2147483647)
    context = tl.load(context_ptr + row, mask=row < num_tokens, other=0)
    history = tl.load(history_ptr + row, mask=row < num_tokens, other=2147483647)
    first = tl.minimum(tl.min(start, 0), num_tokens) // BN * BN
    stop = tl.minimum(m0 + BM, num_tokens)
    unmasked_to = m0 + 1
    if HAS_CONTEXT:
        stop = tl.maximum(stop, tl.max(tl.where(row < context, context, 0), 0))
    if HAS_TARGETS:
        unmasked_to = tl.minimum(unmasked_to, tl.min(history, 0))
    return start[:, None], context[:, None], history[:, None], first, stop, tl.max(start, 0), unmasked_to


@triton.jit
def visible(m0, n0, y, x, start, context, history, HAS_CONTEXT: tl.constexpr, HAS_TARGETS: tl.constexpr):
    """Which keys n0 + ``x`` queries m0 + ``y`` see; ``start``, ``context``, ``history`` belong to the queries."""
    own = x >= start - n0
    seen = own & (x - y <= m0 - n0)
    if HAS_CONTEXT:
        seen = seen | (own & (x < context - n0) & (y < context - m0))
    if HAS_TARGETS:
        seen = seen & ((x < history - n0) | (x - y == m0 - n0))
    return seen


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
def store_tile(pointer, tile, first, stride, num_rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The counterpart of `load_tile`."""
    place = tile_pointers(pointer, first, stride, ROWS, WIDTH)
    tl.store(place, tile.to(pointer.dtype.element_ty), mask=inside_tile(first, num_rows, width, ROWS, WIDTH))


@triton.jit(do_not_specialize=["time_group", "num_positions", "num_thresholds", "num_tokens", "num_heads"])
def attention_forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, q_stride, k_stride, v_stride, out_stride, q_head, k_head, v_head, out_head,
    start_ptr, context_ptr, history_ptr, order_ptr,
    position_ptr, position_group, num_positions,
    time_ptr, time_group, near_ptr, ranges_ptr, bounds_ptr, unsorted_ptr, thresholds_ptr, query_time_ptr, key_time_ptr,
    num_thresholds, num_tokens, num_heads, inverse_norm,
    D: tl.constexpr, E: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_E: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, HAS_POSITION: tl.constexpr, HAS_TIME: tl.constexpr, SORTED: tl.constexpr,
    HAS_CONTEXT: tl.constexpr, HAS_TARGETS: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(T, H, E); see the module."""
    if HAS_TIME:
        if (tl.load(unsorted_ptr) == 0) != SORTED:
            return
    head = tl.program_id(0) % num_heads
    tile = tl.program_id(0) // num_heads
    m0 = tl.load(order_ptr + tile // (128 // BM)) * 128 + tile % (128 // BM) * BM
    if m0 >= num_tokens:
        return
    m0 = tl.multiple_of(m0, BM)
    y = tl.arange(0, BM)[:, None]
    x = tl.arange(0, BN)[None, :]
    start, context, history, first, stop, unmasked_from, unmasked_to = seen_by(
        m0, start_ptr, context_ptr, history_ptr, num_tokens, BM, BN, HAS_CONTEXT, HAS_TARGETS
    )
    q = load_tile(q_ptr + head.to(tl.int64) * q_head, m0, q_stride, num_tokens, D, BM, WIDTH_D)
    q = (q * 0.5).to(q_ptr.dtype.element_ty)
    k_base = k_ptr + head.to(tl.int64) * k_head
    v_base = v_ptr + head.to(tl.int64) * v_head
    acc = tl.zeros([BM, WIDTH_E], tl.float32)
    for n0 in range(first, stop, BN):
        n0 = tl.multiple_of(n0, BN)
        k = load_tile(k_base, n0, k_stride, num_tokens, D, BN, WIDTH_D)
        half = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if HAS_POSITION:
            half += position_tile(
                position_ptr + head * position_group, num_positions, m0, n0, y, x, BM, BN, BM, BN
            )  # fmt: skip
        if HAS_TIME:
            half = add_time_bias(
                half, time_ptr + head * time_group, near_ptr, ranges_ptr, bounds_ptr, thresholds_ptr, query_time_ptr,
                key_time_ptr, m0, n0, y, x, num_tokens, num_thresholds, BN, SORTED,
            )  # fmt: skip
        weight = silu_of_half(half, FAST)
        if (n0 < unmasked_from) | (n0 + BN > unmasked_to):
            seen = visible(m0, n0, y, x, start, context, history, HAS_CONTEXT, HAS_TARGETS)
            weight = tl.where(seen, weight, 0.0)
        v = load_tile(v_base, n0, v_stride, num_tokens, E, BN, WIDTH_E)
        acc = tl.dot(weight.to(v.dtype), v, acc=acc, input_precision=PRECISION)
    out_base = out_ptr + head.to(tl.int64) * out_head
    store_tile(out_base, acc * inverse_norm, m0, out_stride, num_tokens, E, BM, WIDTH_E)
