# mypy: allow-untyped-calls
"""One HSTU layer on CUDA tensors: cuBLAS for the two projections, Triton for the rest, one autograd node.

Saved for the backward pass: the input, the projection before SiLU, the attention's output. The normalised input,
U, V, Q, K and the gated product are computed again.
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
from kernels.triton_shared import next_power, num_processors, require_device


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


def _sums(x: Tensor, width: int, options: dict[str, int]) -> Tensor:
    programs = min(_grid(x, options)[0], 2 * num_processors(x))
    return torch.empty(programs, width, dtype=torch.float32, device=x.device)


def _add(sums: Tensor, like: Tensor) -> Tensor:
    total = torch.empty_like(like, memory_format=torch.contiguous_format)
    add_programs_kernel[(triton.cdiv(sums.shape[1], 64),)](
        sums, total, sums.shape[0], sums.shape[1], PROGRAMS=32, BLOCK=64
    )
    return total


def normalize(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of the rows."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    options = _rows(x.shape[1])
    norm_kernel[_grid(x, options)](x, weight, bias, out, x.stride(0), out.stride(0), *x.shape, eps, **options)
    return out


def silu(x: Tensor) -> Tensor:
    """SiLU of a contiguous tensor."""
    out = torch.empty_like(x)
    silu_kernel[(triton.cdiv(x.numel(), 2048),)](x, out, x.numel(), BLOCK=2048)
    return out


def gate(attended: Tensor, u: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm(attended) ⊙ U; (T, H*E) both, rows at any stride."""
    out = torch.empty(attended.shape, dtype=attended.dtype, device=attended.device)
    options = _rows(attended.shape[1])
    gate_kernel[_grid(attended, options)](
        attended, u, weight, bias, out, attended.stride(0), u.stride(0), out.stride(0), *attended.shape, eps, **options
    )
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


def _split(flat: Tensor, constants: Constants) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U (T, H*E), V (T, H, E), Q, K (T, H, D) as views."""
    heads, value, key = constants.num_heads, constants.value, constants.key
    u, v, q, k = flat.split([heads * value, heads * value, heads * key, heads * key], dim=1)
    return u, v.unflatten(1, (heads, value)), q.unflatten(1, (heads, key)), k.unflatten(1, (heads, key))


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
        u, v, q, k = _split(silu(projected), constants)
        time_bias = time_bias.contiguous() if time_bias is not None else None
        table = make_position_table(triton_launch.dense_rows(pos_bias)) if pos_bias is not None else None
        num_positions = pos_bias.shape[1] if pos_bias is not None else 0
        attended = triton_launch.forward(q, k, v, batch, constants.norm_len, table, num_positions, time_bias).flatten(1)
        gated = gate(attended, u, norm_out_weight, norm_out_bias, constants.eps)
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
        activated = silu(projected)
        u, v, q, k = _split(activated, constants)
        inner = torch.empty_like(activated)
        u_grad, v_grad, q_grad, k_grad = _split(inner, constants)
        change_grad, out_bias_grad = _residual_gradient(grad, out_bias, constants)
        gated, attended_grad, norm_out_grads = _gate_gradient(
            attended, u, norm_out_weight, norm_out_bias, change_grad @ out_weight.T, u_grad, constants.eps
        )
        out_weight_grad = gated.T @ change_grad
        bias_grads = triton_launch.backward(
            q, k, v, attended_grad.unflatten(1, (constants.num_heads, constants.value)), ctx.batch, constants.norm_len,
            pos_bias, time_bias, table, q_grad, k_grad, v_grad,
        )  # fmt: skip
        bias_grad = _silu_gradient(projected, inner, bias)
        weight_grad = normalize(x, norm_in_weight, norm_in_bias, constants.eps).T @ inner
        x_grad, norm_in_grads = _norm_gradient(x, norm_in_weight, inner @ weight.T, grad, constants.eps)
        return (
            x_grad, *norm_in_grads, weight_grad, bias_grad, *norm_out_grads, out_weight_grad, out_bias_grad,
            *bias_grads, None, None,
        )  # fmt: skip


def _silu_gradient(x: Tensor, grad: Tensor, bias: Tensor | None) -> Tensor | None:
    """Turns ``grad`` into the gradient before SiLU; returns its column sums."""
    num_rows, width = x.shape
    programs = min(triton.cdiv(num_rows, 16), max(1, 4 * num_processors(x) // triton.cdiv(width, 256)))
    sums = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    silu_gradient_kernel[(programs, triton.cdiv(width, 256))](x, grad, sums, num_rows, width, ROWS=16, COLUMNS=256)
    return _add(sums, bias) if bias is not None else None


def _residual_gradient(grad: Tensor, bias: Tensor | None, constants: Constants) -> tuple[Tensor, Tensor | None]:
    if constants.dropout == 0 and bias is None:
        return grad, None
    options = _rows(grad.shape[1])
    sums = _sums(grad, grad.shape[1], options)
    change_grad = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device) if constants.dropout > 0 else grad
    residual_gradient_kernel[(sums.shape[0],)](
        grad, change_grad, sums, grad.stride(0), *grad.shape, *_dropout_arguments(constants),
        HAS_BIAS=bias is not None, HAS_DROPOUT=constants.dropout > 0, **options,
    )  # fmt: skip
    return change_grad, _add(sums, bias) if bias is not None else None


def _gate_gradient(
    attended: Tensor, u: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, u_grad: Tensor, eps: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Writes U's gradient; returns the product, the attention's gradient and those of weight and bias."""
    options = _rows(attended.shape[1])
    gated, attended_grad = torch.empty_like(attended), torch.empty_like(attended)
    sums = [_sums(attended, attended.shape[1], options) for _ in range(2)]
    gate_gradient_kernel[(sums[0].shape[0],)](
        attended, u, weight, bias, grad, gated, attended_grad, u_grad, *sums,
        *(t.stride(0) for t in (attended, u, grad, gated, attended_grad, u_grad)), *attended.shape, eps, **options,
    )  # fmt: skip
    return gated, attended_grad, (_add(sums[0], weight), _add(sums[1], bias))


def _norm_gradient(
    x: Tensor, weight: Tensor, grad: Tensor, residual: Tensor, eps: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    options = _rows(x.shape[1])
    x_grad = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sums = [_sums(x, x.shape[1], options) for _ in range(2)]
    norm_gradient_kernel[(sums[0].shape[0],)](
        x, weight, grad, residual, x_grad, *sums,
        *(t.stride(0) for t in (x, grad, residual, x_grad)), *x.shape, eps, **options,
    )  # fmt: skip
    return x_grad, (_add(sums[0], weight), _add(sums[1], weight))


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
        u, v, q, k = _split(flat, Constants(num_heads, value, key, 1.0, 0.0, 0, eps))
        return u.unflatten(1, (num_heads, value)), v, q, k


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
        gated = gate(attended, u, norm_weight, norm_bias, eps)
        constants = Constants(u_THE.shape[1], 0, 0, 1.0, 0.0, 0, eps)
        return add_residual(triton_launch.dense_rows(x_TM), gated @ weight, bias, constants)


def _in(dtype: torch.dtype, params: LayerParams) -> list[Tensor | None]:
    tensors = (
        params.norm_in_weight_M, params.norm_in_bias_M, params.uvqk_weight, params.uvqk_bias,
        params.norm_out_weight, params.norm_out_bias, params.out_weight, params.out_bias,
    )  # fmt: skip
    return [x.to(dtype) if x is not None else None for x in tensors]
