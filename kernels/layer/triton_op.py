# mypy: allow-untyped-calls
"""One HSTU layer on CUDA tensors: cuBLAS for the two projections, Triton for the rest, one autograd node.

Saved for the backward pass: the input, the projection before SiLU, the attention's output. The normalised input,
U, V, Q, K and the gated product are recomputed. U is never stored after its SiLU: the kernels that need it take it as
projected.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.attention import triton_launch
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.triton_bias import make_position_table
from kernels.layer.params import LayerParams
from kernels.layer.triton_launch import (
    Constants,
    Sums,
    add_residual,
    gate,
    gate_gradient,
    norm_gradient,
    normalize,
    residual_gradient,
    silu,
    silu_gradient,
)
from kernels.triton_shared import require_device


def _project(x: Tensor, norm: tuple[Tensor, Tensor], weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    normed = normalize(x, *norm, eps)
    return torch.addmm(bias, normed, weight) if bias is not None else normed @ weight


def _split(flat: Tensor, constants: Constants) -> tuple[Tensor, Tensor, Tensor]:
    """V (T, H, E), Q, K (T, H, D) from the columns after U's, as views."""
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
        """The output; saves what the gradients need."""
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
        change_grad = residual_gradient(grad, constants, sums, out_bias is not None)
        gated, attended_grad = gate_gradient(
            attended, projected[:, :inner], norm_out_weight, norm_out_bias, change_grad @ out_weight.T,
            projected_grad[:, :inner], constants.eps, sums, bias is not None,
        )  # fmt: skip
        v, q, k = _split(silu(projected[:, inner:]), constants)
        v_grad, q_grad, k_grad = _split(projected_grad[:, inner:], constants)
        pos_grad, time_grad = triton_launch.backward(
            q, k, v, attended_grad.unflatten(1, (constants.num_heads, constants.value)), ctx.batch, constants.norm_len,
            pos_bias, time_bias, table, q_grad, k_grad, v_grad,
        )  # fmt: skip
        silu_gradient(projected, projected_grad, inner, sums, bias is not None)
        x_grad, normed = norm_gradient(
            x, norm_in_weight, norm_in_bias, projected_grad @ weight.T, grad, constants.eps, sums
        )
        totals = sums.total()
        return (
            x_grad, totals["norm_in_weight"], totals["norm_in_bias"], normed.T @ projected_grad, totals.get("bias"),
            totals["norm_out_weight"], totals["norm_out_bias"], gated.T @ change_grad, totals.get("out_bias"),
            pos_grad, time_grad, None, None,
        )  # fmt: skip


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
    """`kernels.hstu_layer` on a GPU (or on any tensors in Triton's interpreter)."""
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
