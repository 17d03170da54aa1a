# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""LayerNorm of a layer's input, and LayerNorm ⊙ U of its attention, forward and backward, a few rows per program.

U is passed as the projection left it: its SiLU and the gradient of that are computed here, where its values are loaded
anyway. Backward programs stride over the rows and keep private sums for the weights' gradients, next to those of other
kernels; `add_programs_kernel` adds them all in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_shared import silu_of_half, tanh


@triton.jit
def silu(x, FAST: tl.constexpr):
    """SiLU of float32."""
    return silu_of_half(0.5 * x, FAST)


@triton.jit
def silu_slope(x, FAST: tl.constexpr):
    """The derivative of SiLU: (1 + t) / 2 · (1 + h - h t), with h = x / 2 and t = tanh h."""
    half = 0.5 * x
    t = tanh(half, FAST)
    return (0.5 + 0.5 * t) * (1.0 + half - half * t)


@triton.jit
def load_rows(pointer, row, stride, column, num_rows, width):
    """A (rows, columns) tile in float32; zero outside."""
    place = pointer + row.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(place, mask=(row < num_rows)[:, None] & (column < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_rows(pointer, tile, row, stride, column, num_rows, width):
    """The counterpart of `load_rows`."""
    place = pointer + row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(place, tile.to(pointer.dtype.element_ty), mask=(row < num_rows)[:, None] & (column < width)[None, :])


@triton.jit
def standardize(x, column, width, eps):
    """((x - mean) · rstd, rstd (rows,)) of float32 rows that are zero beyond ``width``."""
    mean = tl.sum(x, 1) / width
    centred = tl.where((column < width)[None, :], x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def standardize_gradient(grad, normal, rstd, width):
    """The gradient of x from that of its standardised rows."""
    mean = tl.sum(grad, 1) / width
    along = tl.sum(grad * normal, 1) / width
    return (grad - mean[:, None] - normal * along[:, None]) * rstd[:, None]


@triton.jit(do_not_specialize=["num_rows"])
def norm_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, x_stride, out_stride, num_rows, width, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """LayerNorm of the rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    x = load_rows(x_ptr, row, x_stride, column, num_rows, width)
    normal, _ = standardize(x, column, width, eps)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    store_rows(out_ptr, normal * weight[None, :] + bias[None, :], row, out_stride, column, num_rows, width)


@triton.jit(do_not_specialize=["num_rows"])
def norm_gradient_kernel(
    x_ptr, weight_ptr, bias_ptr, normed_grad_ptr, residual_ptr, x_grad_ptr, normed_ptr, sums_ptr,
    x_stride, grad_stride, residual_stride, x_grad_stride, normed_stride, sums_stride, num_rows, width, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dx = LayerNorm's gradient + the residual's; the normalised rows again; sums for weight, then for bias."""
    column = tl.arange(0, WIDTH)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    weight_sum = tl.zeros([WIDTH], tl.float32)
    bias_sum = tl.zeros([WIDTH], tl.float32)
    for first in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        x = load_rows(x_ptr, row, x_stride, column, num_rows, width)
        grad = load_rows(normed_grad_ptr, row, grad_stride, column, num_rows, width)
        residual = load_rows(residual_ptr, row, residual_stride, column, num_rows, width)
        normal, rstd = standardize(x, column, width, eps)
        normed = normal * weight[None, :] + bias[None, :]
        store_rows(normed_ptr, normed, row, normed_stride, column, num_rows, width)
        weight_sum += tl.sum(grad * normal, 0)
        bias_sum += tl.sum(grad, 0)
        x_grad = standardize_gradient(grad * weight[None, :], normal, rstd, width) + residual
        store_rows(x_grad_ptr, x_grad, row, x_grad_stride, column, num_rows, width)
    place = sums_ptr + tl.program_id(0) * sums_stride + column
    tl.store(place, weight_sum, mask=column < width)
    tl.store(place + width, bias_sum, mask=column < width)


@triton.jit(do_not_specialize=["num_rows"])
def gate_kernel(
    attended_ptr, u_ptr, weight_ptr, bias_ptr, out_ptr, attended_stride, u_stride, out_stride, num_rows, width, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ACTIVATED: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """LayerNorm(attended) ⊙ U; ``u`` is before its SiLU, or after it if ACTIVATED."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    normal, _ = standardize(load_rows(attended_ptr, row, attended_stride, column, num_rows, width), column, width, eps)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    u = load_rows(u_ptr, row, u_stride, column, num_rows, width)
    if ACTIVATED == 0:
        u = silu(u, FAST).to(u_ptr.dtype.element_ty).to(tl.float32)
    store_rows(out_ptr, (normal * weight[None, :] + bias[None, :]) * u, row, out_stride, column, num_rows, width)


@triton.jit(do_not_specialize=["num_rows"])
def gate_gradient_kernel(
    attended_ptr, u_ptr, weight_ptr, bias_ptr, gated_grad_ptr, gated_ptr, attended_grad_ptr, u_grad_ptr, sums_ptr,
    attended_stride, u_stride, grad_stride, gated_stride, attended_grad_stride, u_grad_stride, sums_stride,
    num_rows, width, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Gradients of attended and of U before its SiLU, and the product again.

    Sums for weight, for bias, and if the projection HAS_BIAS, for U's part of that bias.
    """
    column = tl.arange(0, WIDTH)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    weight_sum = tl.zeros([WIDTH], tl.float32)
    bias_sum = tl.zeros([WIDTH], tl.float32)
    u_sum = tl.zeros([WIDTH], tl.float32)
    for first in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        before = load_rows(u_ptr, row, u_stride, column, num_rows, width)
        grad = load_rows(gated_grad_ptr, row, grad_stride, column, num_rows, width)
        attended = load_rows(attended_ptr, row, attended_stride, column, num_rows, width)
        u = silu(before, FAST).to(u_ptr.dtype.element_ty).to(tl.float32)
        normal, rstd = standardize(attended, column, width, eps)
        scaled = normal * weight[None, :] + bias[None, :]
        store_rows(gated_ptr, scaled * u, row, gated_stride, column, num_rows, width)
        u_grad = grad * scaled * silu_slope(before, FAST)
        store_rows(u_grad_ptr, u_grad, row, u_grad_stride, column, num_rows, width)
        grad = grad * u
        weight_sum += tl.sum(grad * normal, 0)
        bias_sum += tl.sum(grad, 0)
        u_sum += tl.sum(u_grad, 0)
        attended_grad = standardize_gradient(grad * weight[None, :], normal, rstd, width)
        store_rows(attended_grad_ptr, attended_grad, row, attended_grad_stride, column, num_rows, width)
    place = sums_ptr + tl.program_id(0) * sums_stride + column
    tl.store(place, weight_sum, mask=column < width)
    tl.store(place + width, bias_sum, mask=column < width)
    if HAS_BIAS:
        tl.store(place + 2 * width, u_sum, mask=column < width)


@triton.jit(do_not_specialize=["num_programs"])
def add_programs_kernel(sums_ptr, total_ptr, num_programs, width, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    """Column sums of (programs, width), in a fixed order."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_programs, PROGRAMS):
        program = first + tl.arange(0, PROGRAMS)
        total += tl.sum(load_rows(sums_ptr, program, width, column, num_programs, width), 0)
    tl.store(total_ptr + column, total.to(total_ptr.dtype.element_ty), mask=column < width)
