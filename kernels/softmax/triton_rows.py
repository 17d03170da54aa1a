# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Rows of a table as unit vectors, and sums over the slots that name a row: what all softmax kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_shared import count_at_most


@triton.jit
def load_vectors(pointer, row, wanted, D: tl.constexpr, WIDTH: tl.constexpr):
    """(rows, WIDTH) of a contiguous (·, D) matrix; zero where not wanted."""
    column = tl.arange(0, WIDTH)
    place = pointer + row.to(tl.int64)[:, None] * D + column[None, :]
    return tl.load(place, mask=wanted[:, None] & (column < D)[None, :], other=0.0)


@triton.jit
def inverse_norm(x, eps, NORMALIZE: tl.constexpr):
    """1 / max(|row|, eps), or 1."""
    wide = x.to(tl.float32)
    square = tl.sum(wide * wide, 1)
    return 1.0 / tl.maximum(tl.sqrt(square), eps) if NORMALIZE else tl.zeros_like(square) + 1.0


@triton.jit
def through_norm(grad, x, inverse, eps, NORMALIZE: tl.constexpr):
    """Gradient of a row from that of its unit vector (float32)."""
    if NORMALIZE:
        unit = x.to(tl.float32) * inverse[:, None]
        along = tl.sum(unit * grad, 1)
        # Below eps the divisor is a constant.
        along = tl.where(inverse * eps < 1.0, along, 0.0)
        result = (grad - unit * along[:, None]) * inverse[:, None]
    else:
        result = grad
    return result


@triton.jit(do_not_specialize=["num_slots", "num_steps"])
def add_slots_kernel(
    sorted_ptr, order_ptr, slots_ptr, out_ptr, num_slots, num_steps,
    D: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """out[row] (+)= the sum of the slots that name the row; ``sorted`` int64 rows, ``order`` their slots."""
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    ends = row - 1 + tl.arange(0, 2)
    ends = count_at_most(sorted_ptr, num_slots, ends.to(tl.int64), num_steps)
    first, last = tl.min(ends, 0), tl.max(ends, 0)
    place = out_ptr + row.to(tl.int64) * D + column
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(first, last, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        source = tl.load(order_ptr + slot, mask=slot < last, other=0)
        total += tl.sum(load_vectors(slots_ptr, source, slot < last, D, WIDTH).to(tl.float32), 0)
    if ADD:
        if first < last:
            total += tl.load(place, mask=column < D, other=0.0).to(tl.float32)
            tl.store(place, total.to(out_ptr.dtype.element_ty), mask=column < D)
    else:
        tl.store(place, total.to(out_ptr.dtype.element_ty), mask=column < D)
