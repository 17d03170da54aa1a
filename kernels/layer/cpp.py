"""The C++ layer as one torch operator with autograd: it keeps x and the attention's output."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from kernels import registration
from kernels.attention.args import AttentionArgs, require_supported, run, table
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.cpp import cached_buckets, fill_args
from kernels.layer.args import LayerArgs
from kernels.layer.params import LayerParams


def _attention_args(
    x: Tensor,
    num_heads: int,
    value: int,
    key: int,
    offsets: Tensor,
    norm_len: float,
    tables: tuple[Tensor | None, Tensor | None],
    pairs: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> AttentionArgs:
    """The attention inside the layer: its operands live in the kernel's scratch."""
    args = AttentionArgs(num_heads=num_heads, qk_dim=key // num_heads, v_dim=value // num_heads)
    args.is_bf16 = x.dtype == torch.bfloat16
    fill_args(args, offsets, norm_len, *tables, *pairs)
    return args


def _forward(
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
) -> tuple[Tensor, Tensor]:
    """Forward; returns y and the attention's output (T, HE)."""
    x, offsets, pos, time = x.contiguous(), offsets.contiguous(), table(pos_bias), table(time_bias)
    given = (norm_in_weight, norm_in_bias, uvqk_weight, uvqk_bias, norm_out_weight, norm_out_bias, out_weight, out_bias)
    weights = [table(weight) for weight in given]
    value, key = out_weight.shape[0], uvqk_weight.shape[1] // 2 - out_weight.shape[0]
    y, attended = torch.empty_like(x), x.new_empty(len(x), value)
    args = LayerArgs.of(x, weights, dropout=dropout, seed=seed, eps=eps)
    args.attended, args.y = attended.data_ptr(), y.data_ptr()
    pairs = (buckets, num_context, num_targets)
    attend = _attention_args(x, num_heads, value, key, offsets, norm_len, (pos, time), pairs)
    run("layer_forward", args, attend)
    return y, attended


def _fake_forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], rest[6].shape[0])


layer_op = registration.register(_forward, name="layer", fake=_fake_forward)


def _backward(
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
    dx = torch.empty_like(x)
    gradients = [None if weight is None else torch.empty(weight.shape) for weight in weights]
    dpos, dtime = (torch.zeros(bias.shape if bias is not None else (0, 0)) for bias in (pos, time))
    args = LayerArgs.of(x, weights, dropout=dropout, seed=seed, eps=eps)
    args.receive(gradients)
    args.attended, args.dy, args.dx = attended.data_ptr(), dy.data_ptr(), dx.data_ptr()
    pairs = (buckets, num_context, num_targets)
    attend = _attention_args(x, num_heads, value, key, offsets, norm_len, (pos, time), pairs)
    attend.dpos, attend.dtime = dpos.data_ptr(), dtime.data_ptr()
    run("layer_backward", args, attend)
    return [dx, *(torch.empty(0) if gradient is None else gradient for gradient in gradients), dpos, dtime]


def _fake_backward(dy: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:  # noqa: ARG001
    shapes = [(0,) if weight is None else weight.shape for weight in rest[:8]]
    shapes += [(0, 0) if bias is None else bias.shape for bias in rest[8:10]]
    return [torch.empty_like(x), *(torch.empty(shape, dtype=torch.float32, device=x.device) for shape in shapes)]


layer_backward_op = registration.register(_backward, name="layer_backward", fake=_fake_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.scalars = inputs[15:]
    ctx.save_for_backward(*inputs[:15], output[1])


def _differentiate(ctx: Any, dy: Tensor, _dattended: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    gradients = layer_backward_op(dy, *saved, *ctx.scalars)
    given = [
        None if tensor is None else gradient.to(tensor.dtype)
        for tensor, gradient in zip(saved[:11], gradients, strict=True)
    ]
    return (*given, *[None] * 9)


registration.differentiate(layer_op, _differentiate, save=_save)


def _weights(params: LayerParams) -> list[Tensor | None]:
    return [getattr(params, field.name) for field in fields(params)]


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
    y: Tensor = layer_op(
        x_TM,
        *_weights(params),
        pos_bias_GP,
        time_bias_GK,
        offsets_B1,
        buckets,
        *masks,
        num_heads,
        norm_len,
        dropout,
        seed,
        eps,
    )[0]
    return y


def project(x_TM: Tensor, params: LayerParams, *, num_heads: int, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`kernels.hstu_layer_project` on the CPU, after validation: views of one tensor, no gradients."""
    require_supported(x_TM, "hstu_layer_project")
    _, value, key = params.widths(num_heads)
    x = x_TM.detach().contiguous()
    weights = [table(weight) for weight in _weights(params)]
    z = x.new_empty(len(x), params.uvqk_weight.shape[1])
    args = LayerArgs.of(x, weights, eps=eps)
    args.z_out = z.data_ptr()
    run("layer_project", args)
    u, v, q, k = torch.split(z, [num_heads * width for width in (value, value, key, key)], dim=1)
    return (
        u.view(len(x), num_heads, value),
        v.view(len(x), num_heads, value),
        q.view(len(x), num_heads, key),
        k.view(len(x), num_heads, key),
    )


def output(x_TM: Tensor, attended_THE: Tensor, u_THE: Tensor, params: LayerParams, *, eps: float) -> Tensor:
    """`kernels.hstu_layer_output` on the CPU, after validation: no gradients."""
    require_supported(x_TM, "hstu_layer_output")
    x, attended, u = x_TM.detach().contiguous(), attended_THE.detach().contiguous(), u_THE.detach().contiguous()
    weights = [table(weight) for weight in _weights(params)]
    y = torch.empty_like(x)
    args = LayerArgs.of(x, weights, eps=eps)
    args.attended, args.z, args.y = attended.data_ptr(), u.data_ptr(), y.data_ptr()
    run("layer_output", args)
    return y
