# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Row-wise Adagrad on CUDA tensors: one sort of the rows, then one pass over the table rows that they touch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.adagrad.dither import Dither
from kernels.triton_shared import next_power, require_device

MOST_ROWS = 32
"""Places per program. More are no faster (H200, widths 16 to 512), and with one warp's worth no masks are exchanged."""


@triton.jit
def mixed(x):
    """MurmurHash3's finaliser."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def dithered(weight, random, IS_BFLOAT: tl.constexpr):
    """`kernels.adagrad.dither.dithered`, as bits: int16."""
    bits = weight.to(tl.uint32, bitcast=True)
    is_number = weight == weight
    if IS_BFLOAT:
        return tl.where(is_number, (bits + (random >> 16)) >> 16, (bits >> 16) | 0x40).to(tl.uint16)
    magnitude = bits & 0x7FFFFFFF
    exponent = magnitude >> 23
    is_subnormal = exponent < 113
    drop = tl.where(is_subnormal, tl.where(exponent < 95, 31, 126 - exponent), 13)
    kept = tl.where(is_subnormal, (magnitude & 0x7FFFFF) | 0x800000, magnitude - (112 << 23))
    half = (kept + (random >> (32 - drop))) >> drop
    half = tl.where(exponent < 95, 0, half)
    half = tl.where((half > 0x7C00) | (magnitude >= 0x7F800000), 0x7C00, half)
    return (tl.where(is_number, half, 0x7E00) | ((bits >> 16) & 0x8000)).to(tl.uint16)


@triton.jit(do_not_specialize=["num_sorted", "num_rows", "low_key", "high_key", "stride", "first"])
def adagrad_kernel(
    weight_ptr, state_ptr, sorted_ptr, order_ptr, grad_ptr, num_sorted, num_rows, lr, eps, weight_decay,
    low_key, high_key, stride, first,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr, DITHERS: tl.constexpr,
):  # fmt: skip
    """Each program has ROWS places of the sorted rows, and updates the rows that begin there.

    A row's gradients are in consecutive places, in their original order; they are added in that order, AHEAD loads at a
    time. The loop's condition is a plain number: one that reduces a tile which the loop carries but does not return
    fails an assertion in Triton 3.6.
    """
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(sorted_ptr + place, mask=place < num_sorted, other=-1)
    before = tl.load(sorted_ptr + place - 1, mask=(place > 0) & (place < num_sorted), other=-1)
    begins = (row >= 0) & (row < num_rows) & (row != before)
    column = tl.arange(0, WIDTH)
    inside = (column < D)[None, :]
    source = tl.load(order_ptr + place, mask=begins, other=0)
    grad = tl.load(
        grad_ptr + source.to(tl.int64)[:, None] * D + column[None, :], mask=begins[:, None] & inside, other=0.0
    ).to(tl.float32)
    step = 1
    more = begins & (tl.load(sorted_ptr + place + 1, mask=begins & (place + 1 < num_sorted), other=-1) == row)
    left = tl.max(more.to(tl.int32), 0)
    while left > 0:
        for ahead in tl.static_range(AHEAD):
            next_ = place + step + ahead
            more = begins & (tl.load(sorted_ptr + next_, mask=begins & (next_ < num_sorted), other=-1) == row)
            source = tl.load(order_ptr + next_, mask=more, other=0)
            grad += tl.load(
                grad_ptr + source.to(tl.int64)[:, None] * D + column[None, :], mask=more[:, None] & inside, other=0.0
            ).to(tl.float32)
        step += AHEAD
        left = tl.max(more.to(tl.int32), 0)
    touched = begins[:, None] & inside
    address = weight_ptr + row.to(tl.int64)[:, None] * D + column[None, :]
    weight = tl.load(address, mask=touched, other=0.0).to(tl.float32)
    grad += weight_decay * weight
    state = tl.load(state_ptr + row, mask=begins, other=0.0) + tl.sum(grad * grad, 1) / D
    tl.store(state_ptr + row, state, mask=begins)
    weight -= lr * grad / (tl.sqrt(state) + eps)[:, None]
    if DITHERS:
        whole = (row.to(tl.int64) * stride + first).to(tl.uint32)
        key = mixed(mixed(whole + low_key.to(tl.uint32)) + high_key.to(tl.uint32))
        random = mixed(column.to(tl.uint32)[None, :] * 0x9E3779B9 + key[:, None])
        half = dithered(weight, random, weight_ptr.dtype.element_ty == tl.bfloat16)
        tl.store(address, half.to(weight_ptr.dtype.element_ty, bitcast=True), mask=touched)
    else:
        tl.store(address, weight.to(weight_ptr.dtype.element_ty), mask=touched)


def sort_rows(rows_N: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Rows in stable order, and where each came from; 32-bit keys, if they fit, halve the time of the sort."""
    ordered = torch.sort(_keys(rows_N, num_rows), stable=True)
    return ordered.values, ordered.indices


def in_place(rows_N: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """The same types as `sort_rows`, without moving a row."""
    return _keys(rows_N, num_rows), torch.arange(rows_N.numel(), device=rows_N.device)


def _keys(rows_N: Tensor, num_rows: int) -> Tensor:
    return rows_N.to(torch.int32) if num_rows < 2**31 else rows_N


def update_sorted(
    weight_VD: Tensor, state_V: Tensor, rows: Tensor, order: Tensor, grad_ND: Tensor, lr: float, eps: float,
    weight_decay: float, dither: Dither | None = None,
) -> None:  # fmt: skip
    """The pass after the sort."""
    bits = dither or Dither(0)
    width = next_power(weight_VD.shape[1])
    block = max(1, min(MOST_ROWS, 4096 // width))
    adagrad_kernel[(triton.cdiv(rows.numel(), block),)](
        weight_VD, state_V, rows, order, grad_ND, rows.numel(), weight_VD.shape[0],
        float(lr), float(eps), float(weight_decay), _low(bits.key), bits.key >> 32, bits.stride, bits.first,
        D=weight_VD.shape[1], WIDTH=width, ROWS=block, AHEAD=4, DITHERS=dither is not None,
    )  # fmt: skip


def _low(key: int) -> int:
    """The lower half of a key as a signed number, so that it has the same type in every launch."""
    return (key + (1 << 31)) % (1 << 32) - (1 << 31)


def rowwise_adagrad_(
    weight_VD: Tensor,
    state_V: Tensor,
    rows_N: Tensor,
    grad_ND: Tensor,
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    dither: Dither | None,
    distinct: bool = False,
) -> None:
    """`kernels.rowwise_adagrad_` on a GPU (or in Triton's interpreter); rows outside the table are skipped."""
    require_device(state_V, "rowwise_adagrad_")  # float32, whatever the weights are
    if rows_N.numel() == 0 or weight_VD.numel() == 0:
        return
    # The kernel asks only whether neighbours are equal, so distinct rows may be in any order.
    rows, order = in_place(rows_N, weight_VD.shape[0]) if distinct else sort_rows(rows_N, weight_VD.shape[0])
    update_sorted(weight_VD, state_V, rows, order, grad_ND.contiguous(), lr, eps, weight_decay, dither)
