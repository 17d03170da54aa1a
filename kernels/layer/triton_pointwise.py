# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The elementwise parts of a layer: SiLU after the projection, and the residual with dropout at the end."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.layer.triton_norm import load_rows, silu, silu_slope, store_rows


@triton.jit
def mix(h):
    """The 32-bit finaliser of `kernels.layer.dropout`."""
    h = h ^ (h >> 16)
    h = h * 0x7FEB352D
    h = h ^ (h >> 15)
    h = h * 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def kept(row, column, seed_low, seed_high, threshold):
    """Which entries dropout keeps: `kernels.layer.dropout.keep_mask`."""
    token = row.to(tl.uint32)[:, None] * 0x9E3779B1
    h = mix(token + column.to(tl.uint32)[None, :] * 0x85EBCA77 + seed_low.to(tl.uint32, bitcast=True))
    h = mix(h + seed_high.to(tl.uint32, bitcast=True) + 0xC2B2AE3D)
    return (h >> 8) >= threshold.to(tl.uint32)


@triton.jit(do_not_specialize=["num_rows"])
def silu_kernel(
    x_ptr, out_ptr, x_stride, out_stride, num_rows, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """SiLU of some columns of each row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x = load_rows(x_ptr, row, x_stride, column, num_rows, width)
    store_rows(out_ptr, silu(x, FAST), row, out_stride, column, num_rows, width)


@triton.jit(do_not_specialize=["num_rows"])
def silu_gradient_kernel(
    x_ptr, grad_ptr, sums_ptr, x_stride, grad_stride, sums_stride, num_rows, width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Turn the gradient of SiLU's output into that of its input, in place; and each program's column sums."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        x = load_rows(x_ptr, row, x_stride, column, num_rows, width)
        grad = load_rows(grad_ptr, row, grad_stride, column, num_rows, width) * silu_slope(x, FAST)
        store_rows(grad_ptr, grad, row, grad_stride, column, num_rows, width)
        total += tl.sum(grad, 0)
    if HAS_BIAS:
        tl.store(sums_ptr + tl.program_id(0) * sums_stride + column, total, mask=column < width)


@triton.jit(do_not_specialize=["num_rows", "seed_low", "seed_high", "threshold"])
def residual_kernel(
    x_ptr, change_ptr, bias_ptr, out_ptr, x_stride, num_rows, width, seed_low, seed_high, threshold, scale,
    HAS_BIAS: tl.constexpr, HAS_DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """x + dropout(change + bias)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    change = load_rows(change_ptr, row, width, column, num_rows, width)
    if HAS_BIAS:
        change += tl.load(bias_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    if HAS_DROPOUT:
        change = tl.where(kept(row, column, seed_low, seed_high, threshold), change * scale, 0.0)
    x = load_rows(x_ptr, row, x_stride, column, num_rows, width)
    store_rows(out_ptr, x + change, row, width, column, num_rows, width)


@triton.jit(do_not_specialize=["num_rows", "seed_low", "seed_high", "threshold"])
def residual_gradient_kernel(
    grad_ptr, change_grad_ptr, sums_ptr, grad_stride, sums_stride, num_rows, width, seed_low, seed_high, threshold,
    scale,
    HAS_BIAS: tl.constexpr, HAS_DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient through dropout, and each program's sums for the bias."""
    column = tl.arange(0, WIDTH)
    bias_sum = tl.zeros([WIDTH], tl.float32)
    for first in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        grad = load_rows(grad_ptr, row, grad_stride, column, num_rows, width)
        if HAS_DROPOUT:
            grad = tl.where(kept(row, column, seed_low, seed_high, threshold), grad * scale, 0.0)
            store_rows(change_grad_ptr, grad, row, width, column, num_rows, width)
        bias_sum += tl.sum(grad, 0)
    if HAS_BIAS:
        tl.store(sums_ptr + tl.program_id(0) * sums_stride + column, bias_sum, mask=column < width)
