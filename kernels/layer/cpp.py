"""The C++ layer as one torch operator with autograd: it keeps x and the attention's output.

With a tail (`kernels.layer.tail`) the operator is given both batches: all tokens, and the tail's with the tokens before
them as keys. The forward pass takes one of the two, the backward pass the tail.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from kernels import registration
from kernels.attention.args import AttentionArgs, require_supported, run, table
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.cpp import cached_buckets, fill_args, make_buckets
from kernels.layer.args import LayerArgs
from kernels.layer.params import LayerParams
from kernels.layer.tail import Tail


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


def _make_silent(args: LayerArgs, attend: AttentionArgs, offsets: Tensor, num_silent: Tensor) -> None:
    """The tokens at ``offsets``, of which each user's first ones have no output."""
    args.token_offsets = offsets.data_ptr()
    attend.cache_len = num_silent.data_ptr()


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
    num_silent: Tensor | None,
    tail_offsets: Tensor | None,
    tail_buckets: Tensor | None,
    num_outputs: int,
    num_heads: int,
    norm_len: float,
    dropout: float,
    seed: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Forward; returns y and the attention's output (num_outputs, HE): of all tokens, or of the tail's."""
    x, offsets, pos, time = x.contiguous(), offsets.contiguous(), table(pos_bias), table(time_bias)
    given = (norm_in_weight, norm_in_bias, uvqk_weight, uvqk_bias, norm_out_weight, norm_out_bias, out_weight, out_bias)
    weights = [table(weight) for weight in given]
    value, key = out_weight.shape[0], uvqk_weight.shape[1] // 2 - out_weight.shape[0]
    y, attended = x.new_empty(num_outputs, x.shape[1]), x.new_empty(num_outputs, value)
    args = LayerArgs.of(x, weights, dropout=dropout, seed=seed, eps=eps)
    args.attended, args.y = attended.data_ptr(), y.data_ptr()
    if num_silent is not None and tail_offsets is not None and num_outputs == int(tail_offsets[-1]):
        pairs = (tail_buckets, None, num_targets)
        attend = _attention_args(x, num_heads, value, key, tail_offsets, norm_len, (pos, time), pairs)
        _make_silent(args, attend, offsets, num_silent)
    else:
        pairs = (buckets, num_context, num_targets)
        attend = _attention_args(x, num_heads, value, key, offsets, norm_len, (pos, time), pairs)
    run("layer_forward", args, attend)
    return y, attended


def _fake_forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    num_outputs = rest[17]
    return x.new_empty(num_outputs, x.shape[1]), x.new_empty(num_outputs, rest[6].shape[0])


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
    num_silent: Tensor | None,
    tail_offsets: Tensor | None,
    tail_buckets: Tensor | None,
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
    if num_silent is not None and tail_offsets is not None:
        if len(dy) > int(tail_offsets[-1]):
            rows = Tail.behind(num_silent, offsets).rows_S
            dy, attended = dy.index_select(0, rows), attended.index_select(0, rows)
        pairs = (tail_buckets, None, num_targets)
        attend = _attention_args(x, num_heads, value, key, tail_offsets, norm_len, (pos, time), pairs)
        _make_silent(args, attend, offsets, num_silent)
    else:
        pairs = (buckets, num_context, num_targets)
        attend = _attention_args(x, num_heads, value, key, offsets, norm_len, (pos, time), pairs)
    args.attended, args.dy, args.dx = attended.data_ptr(), dy.data_ptr(), dx.data_ptr()
    attend.dpos, attend.dtime = dpos.data_ptr(), dtime.data_ptr()
    run("layer_backward", args, attend)
    return [dx, *(torch.empty(0) if gradient is None else gradient for gradient in gradients), dpos, dtime]


def _fake_backward(dy: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:  # noqa: ARG001
    shapes = [(0,) if weight is None else weight.shape for weight in rest[:8]]
    shapes += [(0, 0) if bias is None else bias.shape for bias in rest[8:10]]
    return [torch.empty_like(x), *(torch.empty(shape, dtype=torch.float32, device=x.device) for shape in shapes)]


layer_backward_op = registration.register(_backward, name="layer_backward", fake=_fake_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.scalars = inputs[19:]
    ctx.save_for_backward(*inputs[:18], output[1])


def _differentiate(ctx: Any, dy: Tensor, _dattended: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    gradients = layer_backward_op(dy, *saved, *ctx.scalars)
    given = [
        None if tensor is None else gradient.to(tensor.dtype)
        for tensor, gradient in zip(saved[:11], gradients, strict=True)
    ]
    return (*given, *[None] * 13)


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
    outputs: tuple[Tail, bool] | None,
    dropout: float,
    seed: int,
    eps: float,
) -> Tensor:
    """`kernels.hstu_layer` on the CPU, after validation."""
    require_supported(x_TM, "hstu_layer")
    buckets = tail_buckets = None
    tail, only_tail = outputs if outputs is not None else (None, False)
    if time_bias_GK is not None and time_buckets is not None and query_time_T is not None and key_time_T is not None:
        if not only_tail:
            buckets = cached_buckets(bucket_cache, offsets_B1, time_buckets, query_time_T, key_time_T, num_context_B)
        if tail is not None:
            tail_buckets = _tail_buckets(tail, offsets_B1, time_buckets, query_time_T, key_time_T)
    masks = [None if x is None else x.contiguous() for x in (num_context_B, num_targets_B)]
    y: Tensor = layer_op(
        x_TM,
        *_weights(params),
        pos_bias_GP,
        time_bias_GK,
        offsets_B1.contiguous(),
        buckets,
        *masks,
        None if tail is None else tail.num_silent_B,
        None if tail is None else tail.offsets_B1,
        tail_buckets,
        tail.num_outputs if tail is not None and only_tail else len(x_TM),
        num_heads,
        norm_len,
        dropout,
        seed,
        eps,
    )[0]
    return y


def _tail_buckets(
    tail: Tail, offsets_B1: Tensor, time_buckets: TimeBuckets, query_time_T: Tensor, key_time_T: Tensor
) -> Tensor:
    """Buckets of the tail's queries against all keys; the batch's layers share them."""
    cache = tail.bucket_cache
    key = tuple((id(x), x._version) for x in (offsets_B1, time_buckets.thresholds_K1, query_time_T, key_time_T))  # noqa: SLF001
    if cache.key != key or not isinstance(cache.value, Tensor):
        query_S, key_S = query_time_T.index_select(0, tail.rows_S), key_time_T.index_select(0, tail.rows_S)
        before = (offsets_B1[:-1], tail.num_silent_B, key_time_T)
        cache.value = make_buckets(tail.offsets_B1, time_buckets, query_S, key_S, cache=before)
        cache.key, cache.inputs = key, (offsets_B1, time_buckets.thresholds_K1, query_time_T, key_time_T)
    assert isinstance(cache.value, Tensor)
    return cache.value


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
