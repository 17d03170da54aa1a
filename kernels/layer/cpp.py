"""The C++ layer as one torch operator with autograd: it keeps x, the pre-activations and the attention's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.attention.args import AttentionArgs, TensorArg, require_supported, run, table
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.cpp import cached_buckets, fill_args
from kernels.layer.args import LayerArgs
from kernels.layer.params import LayerParams


def _views(z: Tensor, num_heads: int, value: int, key: int) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K, V (T, H, ·) within rows of [U V Q K]."""
    _, v, q, k = z.split([value, value, key, key], dim=1)
    return q.unflatten(1, (num_heads, -1)), k.unflatten(1, (num_heads, -1)), v.unflatten(1, (num_heads, -1))


def _attention_args(z: Tensor, num_heads: int, value: int, key: int) -> AttentionArgs:
    q, k, v = _views(z, num_heads, value, key)
    args = AttentionArgs(preactivated=1, num_heads=num_heads, qk_dim=key // num_heads, v_dim=value // num_heads)
    args.is_bf16 = z.dtype == torch.bfloat16
    args.q, args.k, args.v = TensorArg.of(q), TensorArg.of(k), TensorArg.of(v)
    return args


@torch.library.custom_op("headrace::layer", mutates_args=())
def layer_op(
    x: Tensor,
    norm_in_weight: Tensor,
    norm_in_bias: Tensor,
    uvqk_weight: Tensor,
    uvqk_bias: Tensor | None,
    norm_out_weight: Tensor,
    norm_out_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor | None,
    pos_bias: Tensor | None,
    time_bias: Tensor | None,
    offsets: Tensor,
    buckets: Tensor | None,
    num_context: Tensor | None,
    num_targets: Tensor | None,
    num_heads: int,
    norm_len: float,
    dropout: float,
    seed: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward; returns y, the pre-activations (T, 2HE+2HD) and the attention's output (T, HE)."""
    x, offsets, pos, time = x.contiguous(), offsets.contiguous(), table(pos_bias), table(time_bias)
    given = (norm_in_weight, norm_in_bias, uvqk_weight, uvqk_bias, norm_out_weight, norm_out_bias, out_weight, out_bias)
    weights = [table(weight) for weight in given]
    value, columns = out_weight.shape[0], uvqk_weight.shape[1]
    y, z, attended = torch.empty_like(x), x.new_empty(len(x), columns), x.new_empty(len(x), value)
    args = LayerArgs.of(x, weights, dropout=dropout, seed=seed, eps=eps)
    args.z_out, args.z, args.attended, args.y = z.data_ptr(), z.data_ptr(), attended.data_ptr(), y.data_ptr()
    run("layer_project", args)
    attend = _attention_args(z, num_heads, value, columns // 2 - value)
    attend.out = TensorArg.of(attended.unflatten(1, (num_heads, -1)))
    fill_args(attend, offsets, norm_len, pos, time, buckets, num_context, num_targets)
    run("attention_forward", attend)
    run("layer_output", args)
    return y, z, attended


@layer_op.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    columns, value = rest[2].shape[1], rest[6].shape[0]
    return torch.empty_like(x), x.new_empty(x.shape[0], columns), x.new_empty(x.shape[0], value)


@torch.library.custom_op("headrace::layer_backward", mutates_args=())
def layer_backward_op(
    dy: Tensor,
    x: Tensor,
    norm_in_weight: Tensor,
    norm_in_bias: Tensor,
    uvqk_weight: Tensor,
    uvqk_bias: Tensor | None,
    norm_out_weight: Tensor,
    norm_out_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor | None,
    pos_bias: Tensor | None,
    time_bias: Tensor | None,
    offsets: Tensor,
    buckets: Tensor | None,
    num_context: Tensor | None,
    num_targets: Tensor | None,
    z: Tensor,
    attended: Tensor,
    num_heads: int,
    norm_len: float,
    dropout: float,
    seed: int,
    eps: float,
) -> list[Tensor]:
    """Gradients of x, of the eight weights and of both biases (float32 but for x; empty where there is no input)."""
    dy, x, offsets, pos, time = dy.contiguous(), x.contiguous(), offsets.contiguous(), table(pos_bias), table(time_bias)
    given = (norm_in_weight, norm_in_bias, uvqk_weight, uvqk_bias, norm_out_weight, norm_out_bias, out_weight, out_bias)
    weights = [table(weight) for weight in given]
    value, key = out_weight.shape[0], uvqk_weight.shape[1] // 2 - out_weight.shape[0]
    dx, dz, dattended = torch.empty_like(x), torch.empty_like(z), torch.empty_like(attended)
    gradients = [None if weight is None else torch.empty(weight.shape) for weight in weights]
    dpos, dtime = (torch.zeros(bias.shape if bias is not None else (0, 0)) for bias in (pos, time))
    args = LayerArgs.of(x, weights, dropout=dropout, seed=seed, eps=eps)
    args.receive(gradients)
    args.z, args.attended, args.dy = z.data_ptr(), attended.data_ptr(), dy.data_ptr()
    args.dz, args.dattended, args.dx = dz.data_ptr(), dattended.data_ptr(), dx.data_ptr()
    run("layer_output_backward", args)
    attend = _attention_args(z, num_heads, value, key)
    attend.grad = TensorArg.of(dattended.unflatten(1, (num_heads, -1)))
    dq, dk, dv = _views(dz, num_heads, value, key)
    attend.dq, attend.dk, attend.dv = TensorArg.of(dq), TensorArg.of(dk), TensorArg.of(dv)
    attend.dpos, attend.dtime = dpos.data_ptr(), dtime.data_ptr()
    fill_args(attend, offsets, norm_len, pos, time, buckets, num_context, num_targets)
    run("attention_backward", attend)
    run("layer_project_backward", args)
    return [dx, *(torch.empty(0) if gradient is None else gradient for gradient in gradients), dpos, dtime]


@layer_backward_op.register_fake
def _(dy: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    shapes = [(0,) if weight is None else weight.shape for weight in rest[:8]]
    shapes += [(0, 0) if bias is None else bias.shape for bias in rest[8:10]]
    return [torch.empty_like(x), *(torch.empty(shape, dtype=torch.float32, device=x.device) for shape in shapes)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.scalars = inputs[15:]
    ctx.save_for_backward(*inputs[:15], *output[1:])


def _differentiate(ctx: Any, dy: Tensor, _dz: Tensor, _dattended: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    gradients = layer_backward_op(dy, *saved, *ctx.scalars)
    given = [
        None if tensor is None else gradient.to(tensor.dtype)
        for tensor, gradient in zip(saved[:11], gradients, strict=True)
    ]
    return (*given, *[None] * 9)


layer_op.register_autograd(_differentiate, setup_context=_save)


def layer(
    x_TM: Tensor,
    params: LayerParams,
    offsets_B1: Tensor,
    *,
    num_heads: int,
    norm_len: float,
    pos_bias_GP: Tensor | None,
    time_bias_GK: Tensor | None,
    time_buckets: TimeBuckets | None,
    query_time_T: Tensor | None,
    key_time_T: Tensor | None,
    num_context_B: Tensor | None,
    num_targets_B: Tensor | None,
    bucket_cache: BucketCache | None,
    dropout: float,
    seed: int,
    eps: float,
) -> Tensor:
    """`kernels.hstu_layer` on the CPU, after validation."""
    require_supported(x_TM, "hstu_layer")
    buckets = None
    if time_bias_GK is not None and time_buckets is not None and query_time_T is not None and key_time_T is not None:
        buckets = cached_buckets(bucket_cache, offsets_B1, time_buckets, query_time_T, key_time_T, num_context_B)
    masks = [None if x is None else x.contiguous() for x in (num_context_B, num_targets_B)]
    weights = (
        params.norm_in_weight_M,
        params.norm_in_bias_M,
        params.uvqk_weight,
        params.uvqk_bias,
        params.norm_out_weight,
        params.norm_out_bias,
        params.out_weight,
        params.out_bias,
    )
    y: Tensor = layer_op(
        x_TM, *weights, pos_bias_GP, time_bias_GK, offsets_B1, buckets, *masks, num_heads, norm_len, dropout, seed, eps
    )[0]
    return y
