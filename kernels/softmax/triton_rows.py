# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""What all softmax kernels share: rows of a table as unit vectors, and sums over the slots with the same row."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_shared import count_at_most


@triton.jit
def load_vectors(pointer, row, wanted, D: tl.constexpr, WIDTH: tl.constexpr):
    """(rows, WIDTH) of a contiguous (·, D) matrix; zero where not ``wanted``."""
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
    """The gradient of a row from that of its unit vector (float32)."""
    if NORMALIZE:
        unit = x.to(tl.float32) * inverse[:, None]
        along = tl.sum(unit * grad, 1)
        # Below eps the divisor is a constant.
        along = tl.where(inverse * eps < 1.0, along, 0.0)
        result = (grad - unit * along[:, None]) * inverse[:, None]
    else:
        result = grad
    return result


@triton.jit
def named_row(slots_ptr, targets_ptr, place, num_slots, num_names):
    """The row at a place of (slots, then targets), int32."""
    is_slot = place < num_slots
    slot = tl.load(slots_ptr + place, mask=is_slot, other=0)
    target = tl.load(targets_ptr + place - num_slots, mask=(place >= num_slots) & (place < num_names), other=0)
    return tl.where(is_slot, slot, target).to(tl.int32)


@triton.jit(do_not_specialize=["num_slots", "num_names"])
def order_kernel(
    slots_ptr, targets_ptr, sorted_ptr, order_ptr, num_slots, num_names, BLOCK: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """A stable sort of few rows, by counting for each those that come before it: one launch instead of a sort's seven.

    ``sorted`` int32 rows, ``order`` int32 places.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = named_row(slots_ptr, targets_ptr, place, num_slots, num_names)
    rank = tl.zeros([BLOCK], tl.int32)
    for first in range(0, num_names, CHUNK):
        other_place = first + tl.arange(0, CHUNK)
        other = named_row(slots_ptr, targets_ptr, other_place, num_slots, num_names)[None, :]
        goes_before = (other < row[:, None]) | ((other == row[:, None]) & (other_place[None, :] < place[:, None]))
        rank += tl.sum((goes_before & (other_place < num_names)[None, :]).to(tl.int32), 1)
    tl.store(sorted_ptr + rank, row, mask=place < num_names)
    tl.store(order_ptr + rank, place, mask=place < num_names)


@triton.jit(do_not_specialize=["num_slots", "num_names", "num_steps"])
def add_slots_kernel(
    sorted_ptr, order_ptr, slot_grad_ptr, target_grad_ptr, out_ptr, num_slots, num_names, num_steps,
    D: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """out[row] (+)= the sum of the gradients of the slots and targets with that row, in order."""
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    ends = row - 1 + tl.arange(0, 2)
    ends = count_at_most(sorted_ptr, num_names, ends.to(tl.int64), num_steps)
    first, last = tl.min(ends, 0), tl.max(ends, 0)
    place = out_ptr + row.to(tl.int64) * D + column
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(first, last, SLOTS):
        name = start + tl.arange(0, SLOTS)
        source = tl.load(order_ptr + name, mask=name < last, other=0)
        is_slot = source < num_slots
        grad = load_vectors(slot_grad_ptr, source, (name < last) & is_slot, D, WIDTH).to(tl.float32)
        grad += load_vectors(target_grad_ptr, source - num_slots, (name < last) & (is_slot == 0), D, WIDTH)
        total += tl.sum(grad, 0)
    if ADD:
        if first < last:
            total += tl.load(place, mask=column < D, other=0.0).to(tl.float32)
            tl.store(place, total.to(out_ptr.dtype.element_ty), mask=column < D)
    else:
        tl.store(place, total.to(out_ptr.dtype.element_ty), mask=column < D)
