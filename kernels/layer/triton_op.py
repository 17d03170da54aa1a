# mypy: allow-untyped-calls
"""One HSTU layer on CUDA tensors: cuBLAS for the two projections, Triton for the rest, one autograd node.

Saved for the backward pass: the input, the projection before SiLU, the attention's output. The normalised input,
U, V, Q, K and the gated product are computed again. U never exists after its SiLU: the kernels that take it, take it
as it was projected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.attention import triton_launch
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.triton_bias import make_position_table
from kernels.layer.dropout import threshold
from kernels.layer.params import LayerParams
from kernels.layer.triton_norm import (
    add_programs_kernel,
    gate_gradient_kernel,
    gate_kernel,
    norm_gradient_kernel,
    norm_kernel,
)
from kernels.layer.triton_pointwise import (
    residual_gradient_kernel,
    residual_kernel,
    silu_gradient_kernel,
    silu_kernel,
)
from kernels.triton_shared import fast_math, next_power, num_processors, require_device


@dataclass(frozen=True)
class Constants:
    """What a layer's kernels take that is no tensor."""

    num_heads: int
    value: int
    key: int
    norm_len: float
    dropout: float
    seed: int
    eps: float


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _dropout_arguments(constants: Constants) -> tuple[int, int, int, float]:
    seed = constants.seed
    return (
        _signed(seed & 0xFFFFFFFF),
        _signed((seed >> 32) & 0xFFFFFFFF),
        threshold(constants.dropout),
        1.0 / (1.0 - constants.dropout),
    )


def _rows(width: int) -> dict[str, int]:
    """Rows of a program: about 2,048 values, so that several fit a processor."""
    padded = next_power(width)
    return {"ROWS": max(1, 2048 // padded), "WIDTH": padded, "num_warps": 4 if padded <= 2048 else 8}


def _grid(x: Tensor, options: dict[str, int]) -> tuple[int]:
    return (triton.cdiv(x.shape[0], options["ROWS"]),)


def _column_grid(num_rows: int, width: int) -> tuple[int, int]:
    return triton.cdiv(num_rows, COLUMN_OPTIONS["ROWS"]), triton.cdiv(width, COLUMN_OPTIONS["COLUMNS"])


COLUMN_OPTIONS = {"ROWS": 8, "COLUMNS": 256, "num_warps": 4}
"""Of kernels that look at values one by one: 16 a thread, two loads of 16 bytes."""


class Sums:
    """Column sums for the gradients of a layer's small weights: each program's in a row, each kernel's in columns.

    One kernel adds them all, whatever made them.
    """

    def __init__(self, num_rows: int, widths: dict[str, int], like: Tensor) -> None:
        self.num_programs = min(triton.cdiv(num_rows, 4), 4 * num_processors(like))
        self._widths, self._dtype = widths, like.dtype
        self.rows = torch.empty(self.num_programs, sum(widths.values()), dtype=torch.float32, device=like.device)

    @property
    def stride(self) -> int:
        """From a program's sums to the next one's."""
        return self.rows.stride(0)

    def of(self, name: str) -> Tensor:
        """Where a kernel's columns begin."""
        names = list(self._widths)
        return self.rows[:, sum(self._widths[before] for before in names[: names.index(name)]) :]

    def total(self) -> dict[str, Tensor]:
        """Each kernel's sums over its programs."""
        total = torch.empty(self.rows.shape[1], dtype=self._dtype, device=self.rows.device)
        add_programs_kernel[(triton.cdiv(len(total), 32),)](
            self.rows, total, self.num_programs, len(total), PROGRAMS=64, BLOCK=32
        )
        return dict(zip(self._widths, total.split(list(self._widths.values())), strict=True))


def normalize(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of the rows."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    options = _rows(x.shape[1])
    norm_kernel[_grid(x, options)](x, weight, bias, out, x.stride(0), out.stride(0), *x.shape, eps, **options)
    return out


def silu(x: Tensor) -> Tensor:
    """SiLU of (rows, columns), rows at any stride."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    silu_kernel[_column_grid(*x.shape)](
        x, out, x.stride(0), out.stride(0), *x.shape, FAST=fast_math(x.dtype), **COLUMN_OPTIONS
    )
    return out


def gate(attended: Tensor, u: Tensor, weight: Tensor, bias: Tensor, eps: float, activated: bool) -> Tensor:
    """LayerNorm(attended) ⊙ U; (T, H*E) both, rows at any stride; U after its SiLU (``activated``) or before it."""
    out = torch.empty(attended.shape, dtype=attended.dtype, device=attended.device)
    options = _rows(attended.shape[1])
    gate_kernel[_grid(attended, options)](
        attended, u, weight, bias, out, attended.stride(0), u.stride(0), out.stride(0), *attended.shape, eps,
        ACTIVATED=activated, FAST=fast_math(u.dtype), **options,
    )  # fmt: skip
    return out


def add_residual(x: Tensor, change: Tensor, bias: Tensor | None, constants: Constants) -> Tensor:
    """x + dropout(change + bias)."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    options = _rows(x.shape[1])
    residual_kernel[_grid(x, options)](
        x, change, bias, out, x.stride(0), *x.shape, *_dropout_arguments(constants),
        HAS_BIAS=bias is not None, HAS_DROPOUT=constants.dropout > 0, **options,
    )  # fmt: skip
    return out


def _project(x: Tensor, norm: tuple[Tensor, Tensor], weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    normed = normalize(x, *norm, eps)
    return torch.addmm(bias, normed, weight) if bias is not None else normed @ weight


def _split(flat: Tensor, constants: Constants) -> tuple[Tensor, Tensor, Tensor]:
    """V (T, H, E), Q, K (T, H, D) of what follows U's columns, as views."""
    heads, value, key = constants.num_heads, constants.value, constants.key
    v, q, k = flat.split([heads * value, heads * key, heads * key], dim=1)
    return v.unflatten(1, (heads, value)), q.unflatten(1, (heads, key)), k.unflatten(1, (heads, key))


class Layer(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_in_weight: Tensor, norm_in_bias: Tensor, weight: Tensor, bias: Tensor | None,
        norm_out_weight: Tensor, norm_out_bias: Tensor, out_weight: Tensor, out_bias: Tensor | None,
        pos_bias: Tensor | None, time_bias: Tensor | None, batch: triton_launch.Batch, constants: Constants,
    ) -> Tensor:  # fmt: skip
        """The output; what the gradients need is kept."""
        x = triton_launch.dense_rows(x)
        projected = _project(x, (norm_in_weight, norm_in_bias), weight, bias, constants.eps)
        inner = constants.num_heads * constants.value
        v, q, k = _split(silu(projected[:, inner:]), constants)
        time_bias = time_bias.contiguous() if time_bias is not None else None
        table = make_position_table(triton_launch.dense_rows(pos_bias)) if pos_bias is not None else None
        num_positions = pos_bias.shape[1] if pos_bias is not None else 0
        attended = triton_launch.forward(q, k, v, batch, constants.norm_len, table, num_positions, time_bias).flatten(1)
        gated = gate(attended, projected[:, :inner], norm_out_weight, norm_out_bias, constants.eps, activated=False)
        ctx.save_for_backward(
            x, projected, attended, norm_in_weight, norm_in_bias, weight, bias, norm_out_weight, norm_out_bias,
            out_weight, out_bias, pos_bias, time_bias, table,
        )  # fmt: skip
        ctx.batch, ctx.constants = batch, constants
        return add_residual(x, gated @ out_weight, out_bias, constants)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the order of the inputs."""
        (
            x, projected, attended, norm_in_weight, norm_in_bias, weight, bias, norm_out_weight, norm_out_bias,
            out_weight, out_bias, pos_bias, time_bias, table,
        ) = ctx.saved_tensors  # fmt: skip
        constants: Constants = ctx.constants
        grad = triton_launch.dense_rows(grad)
        inner = constants.num_heads * constants.value
        widths = {"norm_out_weight": inner, "norm_out_bias": inner}
        widths |= {"bias": projected.shape[1]} if bias is not None else {}
        widths |= {"out_bias": x.shape[1]} if out_bias is not None else {}
        sums = Sums(len(x), widths | {"norm_in_weight": x.shape[1], "norm_in_bias": x.shape[1]}, x)
        projected_grad = torch.empty_like(projected)
        change_grad = _residual_gradient(grad, constants, sums, out_bias is not None)
        gated, attended_grad = _gate_gradient(
            attended, projected[:, :inner], norm_out_weight, norm_out_bias, change_grad @ out_weight.T,
            projected_grad[:, :inner], constants.eps, sums, bias is not None,
        )  # fmt: skip
        v, q, k = _split(silu(projected[:, inner:]), constants)
        v_grad, q_grad, k_grad = _split(projected_grad[:, inner:], constants)
        pos_grad, time_grad = triton_launch.backward(
            q, k, v, attended_grad.unflatten(1, (constants.num_heads, constants.value)), ctx.batch, constants.norm_len,
            pos_bias, time_bias, table, q_grad, k_grad, v_grad,
        )  # fmt: skip
        _silu_gradient(projected, projected_grad, inner, sums, bias is not None)
        x_grad, normed = _norm_gradient(
            x, norm_in_weight, norm_in_bias, projected_grad @ weight.T, grad, constants.eps, sums
        )
        totals = sums.total()
        return (
            x_grad, totals["norm_in_weight"], totals["norm_in_bias"], normed.T @ projected_grad, totals.get("bias"),
            totals["norm_out_weight"], totals["norm_out_bias"], gated.T @ change_grad, totals.get("out_bias"),
            pos_grad, time_grad, None, None,
        )  # fmt: skip


def _silu_gradient(projected: Tensor, grad: Tensor, inner: int, sums: Sums, has_bias: bool) -> None:
    """Turns the columns after U's of ``grad`` into the gradient before SiLU."""
    x, grad = projected[:, inner:], grad[:, inner:]
    silu_gradient_kernel[(sums.num_programs, triton.cdiv(x.shape[1], COLUMN_OPTIONS["COLUMNS"]))](
        x, grad, sums.of("bias")[:, inner:] if has_bias else None, x.stride(0), grad.stride(0), sums.stride, *x.shape,
        HAS_BIAS=has_bias, FAST=fast_math(x.dtype), **COLUMN_OPTIONS,
    )  # fmt: skip


def _residual_gradient(grad: Tensor, constants: Constants, sums: Sums, has_bias: bool) -> Tensor:
    if constants.dropout == 0 and not has_bias:
        return grad
    change_grad = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device) if constants.dropout > 0 else grad
    residual_gradient_kernel[(sums.num_programs,)](
        grad, change_grad, sums.of("out_bias") if has_bias else None, grad.stride(0), sums.stride, *grad.shape,
        *_dropout_arguments(constants), HAS_BIAS=has_bias, HAS_DROPOUT=constants.dropout > 0, **_rows(grad.shape[1]),
    )  # fmt: skip
    return change_grad


def _gate_gradient(
    attended: Tensor, u: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, u_grad: Tensor, eps: float, sums: Sums,
    has_bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Writes the gradient of U before its SiLU; returns the product and the attention's gradient."""
    gated, attended_grad = torch.empty_like(attended), torch.empty_like(attended)
    gate_gradient_kernel[(sums.num_programs,)](
        attended, u, weight, bias, grad, gated, attended_grad, u_grad, sums.of("norm_out_weight"),
        *(t.stride(0) for t in (attended, u, grad, gated, attended_grad, u_grad)), sums.stride, *attended.shape, eps,
        HAS_BIAS=has_bias, FAST=fast_math(u.dtype), **_rows(attended.shape[1]),
    )  # fmt: skip
    return gated, attended_grad


def _norm_gradient(
    x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, residual: Tensor, eps: float, sums: Sums
) -> tuple[Tensor, Tensor]:
    """The input's gradient, and the normalised input."""
    x_grad, normed = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    norm_gradient_kernel[(sums.num_programs,)](
        x, weight, bias, grad, residual, x_grad, normed, sums.of("norm_in_weight"),
        *(t.stride(0) for t in (x, grad, residual, x_grad, normed)), sums.stride, *x.shape, eps, **_rows(x.shape[1]),
    )  # fmt: skip
    return x_grad, normed


def layer(
    x_TM: Tensor,
    params: LayerParams,
    offsets_B1: Tensor,
    *,
    num_heads: int,
    norm_len: float,
    dropout: float,
    seed: int,
    eps: float,
    pos_bias_GP: Tensor | None = None,
    time_bias_GK: Tensor | None = None,
    time_buckets: TimeBuckets | None = None,
    query_time_T: Tensor | None = None,
    key_time_T: Tensor | None = None,
    num_context_B: Tensor | None = None,
    num_targets_B: Tensor | None = None,
    bucket_cache: BucketCache | None = None,
) -> Tensor:
    """`kernels.hstu_layer` on a GPU (or any tensors in Triton's interpreter)."""
    require_device(x_TM, "hstu_layer")
    if x_TM.shape[0] == 0:
        return x_TM.clone()
    _, value, key = params.widths(num_heads)
    batch = triton_launch.prepare(
        offsets_B1, x_TM.shape[0], time_buckets if time_bias_GK is not None else None, query_time_T, key_time_T,
        num_context_B, num_targets_B, bucket_cache,
    )  # fmt: skip
    constants = Constants(num_heads, value, key, norm_len, dropout, seed, eps)
    result: Tensor = Layer.apply(x_TM, *_in(x_TM.dtype, params), pos_bias_GP, time_bias_GK, batch, constants)
    return result


def project(x_TM: Tensor, params: LayerParams, *, num_heads: int, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The layer's first half without gradients: U, V (T, H, E), Q, K (T, H, D)."""
    require_device(x_TM, "hstu_layer_project")
    _, value, key = params.widths(num_heads)
    with torch.no_grad():
        x_TM = triton_launch.dense_rows(x_TM)
        norm_weight, norm_bias, weight, bias, *_ = _in(x_TM.dtype, params)
        assert norm_weight is not None
        assert norm_bias is not None
        assert weight is not None
        if len(x_TM) == 0:
            flat = x_TM.new_empty(0, weight.shape[1])
        else:
            flat = silu(_project(x_TM, (norm_weight, norm_bias), weight, bias, eps))
        inner = num_heads * value
        v, q, k = _split(flat[:, inner:], Constants(num_heads, value, key, 1.0, 0.0, 0, eps))
        return flat[:, :inner].unflatten(1, (num_heads, value)), v, q, k


def output(x_TM: Tensor, attended_THE: Tensor, u_THE: Tensor, params: LayerParams, *, eps: float) -> Tensor:
    """The layer's second half without gradients: y (T, M)."""
    require_device(x_TM, "hstu_layer_output")
    if len(x_TM) == 0:
        return x_TM.clone()
    with torch.no_grad():
        *_, norm_weight, norm_bias, weight, bias = _in(x_TM.dtype, params)
        assert norm_weight is not None
        assert norm_bias is not None
        assert weight is not None
        attended, u = triton_launch.dense_rows(attended_THE.flatten(1)), triton_launch.dense_rows(u_THE.flatten(1))
        gated = gate(attended, u, norm_weight, norm_bias, eps, activated=True)
        constants = Constants(u_THE.shape[1], 0, 0, 1.0, 0.0, 0, eps)
        return add_residual(triton_launch.dense_rows(x_TM), gated @ weight, bias, constants)


def _in(dtype: torch.dtype, params: LayerParams) -> list[Tensor | None]:
    tensors = (
        params.norm_in_weight_M, params.norm_in_bias_M, params.uvqk_weight, params.uvqk_bias,
        params.norm_out_weight, params.norm_out_bias, params.out_weight, params.out_bias,
    )  # fmt: skip
    return [x.to(dtype) if x is not None else None for x in tensors]
