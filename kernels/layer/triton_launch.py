# mypy: allow-untyped-calls
"""The Triton kernels of a layer, besides attention: their launches, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kernels.layer.dropout import threshold
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
from kernels.triton_shared import fast_math, next_power, num_processors


@dataclass(frozen=True)
class Constants:
    """The arguments of a layer's kernels that are not tensors."""

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
    """Rows per program: about 2,048 values, so that several programs fit on a processor."""
    padded = next_power(width)
    return {"ROWS": max(1, 2048 // padded), "WIDTH": padded, "num_warps": 4 if padded <= 2048 else 8}


def _grid(x: Tensor, options: dict[str, int]) -> tuple[int]:
    return (triton.cdiv(x.shape[0], options["ROWS"]),)


def _column_grid(num_rows: int, width: int) -> tuple[int, int]:
    return triton.cdiv(num_rows, COLUMN_OPTIONS["ROWS"]), triton.cdiv(width, COLUMN_OPTIONS["COLUMNS"])


COLUMN_OPTIONS = {"ROWS": 8, "COLUMNS": 256, "num_warps": 4}
"""For elementwise kernels: 16 values per thread, two loads of 16 bytes."""


class Sums:
    """Column sums for the gradients of a layer's small weights: a row per program, columns for each kernel.

    One kernel adds them all up in the end.
    """

    def __init__(self, num_rows: int, widths: dict[str, int], like: Tensor) -> None:
        self.num_programs = min(triton.cdiv(num_rows, 4), 4 * num_processors(like))
        self._widths, self._dtype = widths, like.dtype
        self.rows = torch.empty(self.num_programs, sum(widths.values()), dtype=torch.float32, device=like.device)

    @property
    def stride(self) -> int:
        """The stride from one program's sums to the next."""
        return self.rows.stride(0)

    def of(self, name: str) -> Tensor:
        """The columns from those of a kernel on."""
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
    """SiLU of (rows, columns), with any row stride."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    silu_kernel[_column_grid(*x.shape)](
        x, out, x.stride(0), out.stride(0), *x.shape, FAST=fast_math(x.dtype), **COLUMN_OPTIONS
    )
    return out


def gate(attended: Tensor, u: Tensor, weight: Tensor, bias: Tensor, eps: float, activated: bool) -> Tensor:
    """LayerNorm(attended) ⊙ U; both (T, H*E), any row stride; U is after its SiLU if ``activated``, else before it."""
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


def silu_gradient(projected: Tensor, grad: Tensor, inner: int, sums: Sums, has_bias: bool) -> None:
    """Turn the columns of ``grad`` after U's into the gradient before SiLU, in place."""
    x, grad = projected[:, inner:], grad[:, inner:]
    silu_gradient_kernel[(sums.num_programs, triton.cdiv(x.shape[1], COLUMN_OPTIONS["COLUMNS"]))](
        x, grad, sums.of("bias")[:, inner:] if has_bias else None, x.stride(0), grad.stride(0), sums.stride, *x.shape,
        HAS_BIAS=has_bias, FAST=fast_math(x.dtype), **COLUMN_OPTIONS,
    )  # fmt: skip


def residual_gradient(grad: Tensor, constants: Constants, sums: Sums, has_bias: bool) -> Tensor:
    """The gradient of the change that was added to x: through dropout; adds the bias's to ``sums``."""
    if constants.dropout == 0 and not has_bias:
        return grad
    change_grad = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device) if constants.dropout > 0 else grad
    residual_gradient_kernel[(sums.num_programs,)](
        grad, change_grad, sums.of("out_bias") if has_bias else None, grad.stride(0), sums.stride, *grad.shape,
        *_dropout_arguments(constants), HAS_BIAS=has_bias, HAS_DROPOUT=constants.dropout > 0, **_rows(grad.shape[1]),
    )  # fmt: skip
    return change_grad


def gate_gradient(
    attended: Tensor, u: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, u_grad: Tensor, eps: float, sums: Sums,
    has_bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Write the gradient of U before its SiLU; returns the product and the attention's gradient."""
    gated, attended_grad = torch.empty_like(attended), torch.empty_like(attended)
    gate_gradient_kernel[(sums.num_programs,)](
        attended, u, weight, bias, grad, gated, attended_grad, u_grad, sums.of("norm_out_weight"),
        *(t.stride(0) for t in (attended, u, grad, gated, attended_grad, u_grad)), sums.stride, *attended.shape, eps,
        HAS_BIAS=has_bias, FAST=fast_math(u.dtype), **_rows(attended.shape[1]),
    )  # fmt: skip
    return gated, attended_grad


def norm_gradient(
    x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, residual: Tensor, eps: float, sums: Sums
) -> tuple[Tensor, Tensor]:
    """The input's gradient, and the normalised input."""
    x_grad, normed = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    norm_gradient_kernel[(sums.num_programs,)](
        x, weight, bias, grad, residual, x_grad, normed, sums.of("norm_in_weight"),
        *(t.stride(0) for t in (x, grad, residual, x_grad, normed)), sums.stride, *x.shape, eps, **_rows(x.shape[1]),
    )  # fmt: skip
    return x_grad, normed
