"""The C++ layer as one autograd node, which saves x and the attention's output.

With a tail (`kernels.layer.tail`), the forward pass computes either all tokens or only the tail's, for which the tokens
before are just keys and values; the backward pass always does the latter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from kernels.attention.args import AttentionArgs, require_supported, run, table
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.cpp import cached_buckets, fill_args, make_buckets
from kernels.layer.args import LayerArgs
from kernels.layer.params import LayerParams
from kernels.layer.tail import Tail


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The arguments of a layer's pass besides x and the weights. Buckets: of all tokens, and of the tail's."""

    num_heads: int
    norm_len: float
    dropout: float
    seed: int
    eps: float
    offsets: Tensor
    buckets: Tensor | None
    num_context: Tensor | None
    num_targets: Tensor | None
    tail: Tail | None
    tail_buckets: Tensor | None
    only_tail: bool

    def args(
        self, x: Tensor, weights: list[Tensor | None], tables: list[Tensor | None], tail: Tail | None
    ) -> tuple[LayerArgs, AttentionArgs]:
        """The kernel's arguments; with a tail, only its tokens have outputs. The operands of the attention inside a
        layer are in the kernel's temporary memory."""
        uvqk, out = weights[2], weights[6]
        assert uvqk is not None
        assert out is not None
        args = LayerArgs.of(x, weights, dropout=self.dropout, seed=self.seed, eps=self.eps)
        value, key = out.shape[0], uvqk.shape[1] // 2 - out.shape[0]
        attend = AttentionArgs(
            num_heads=self.num_heads, qk_dim=key // self.num_heads, v_dim=value // self.num_heads,
            is_bf16=x.dtype == torch.bfloat16,
        )  # fmt: skip
        if tail is None:
            pairs = (self.buckets, self.num_context, self.num_targets)
            fill_args(attend, self.offsets, self.norm_len, tables[0], tables[1], *pairs)
        else:
            pairs = (self.tail_buckets, None, self.num_targets)
            fill_args(attend, tail.offsets_B1, self.norm_len, tables[0], tables[1], *pairs)
            args.token_offsets, attend.cache_len = self.offsets.data_ptr(), tail.num_silent_B.data_ptr()
        return args, attend


def forward_pass(batch: Batch, x: Tensor, held: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """(y, the attention's output) of x (T, M); ``held``: the eight weights and both biases, as `table` gives them."""
    tail, out_weight = batch.tail if batch.only_tail else None, held[6]
    assert out_weight is not None
    num_outputs = len(x) if tail is None else tail.num_outputs
    y, attended = x.new_empty(num_outputs, x.shape[1]), x.new_empty(num_outputs, out_weight.shape[0])
    args, attend = batch.args(x, held[:8], held[8:], tail)
    args.attended, args.y = attended.data_ptr(), y.data_ptr()
    run("layer_forward", args, attend)
    return y, attended


def backward_pass(
    batch: Batch, x: Tensor, attended: Tensor, held: list[Tensor | None], dy: Tensor, gradients: list[Tensor | None]
) -> Tensor:
    """The gradient of x from that of y; those of ``held`` are written to ``gradients`` (float32)."""
    if batch.tail is not None and not batch.only_tail:
        dy, attended = batch.tail.of(dy), batch.tail.of(attended)
    dx = torch.empty_like(x)
    args, attend = batch.args(x, held[:8], held[8:], batch.tail)
    args.receive(gradients[:8])
    args.attended, args.dy, args.dx = attended.data_ptr(), dy.data_ptr(), dx.data_ptr()
    attend.dpos, attend.dtime = (0 if each is None else each.data_ptr() for each in gradients[8:])
    run("layer_backward", args, attend)
    return dx


class _Layer(torch.autograd.Function):
    """x, the eight weights, both biases and a `Batch` → y. The weights' gradients are accumulated in float32.

    Not an operator of `torch.library`: in a small step the dispatcher takes longer than the kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        x, given, ctx.batch = x.contiguous(), list(rest[:10]), rest[10]
        y, attended = forward_pass(ctx.batch, x, [table(tensor) for tensor in given])
        ctx.save_for_backward(x, attended, *given)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, attended, *given = ctx.saved_tensors
        held = [table(tensor) for tensor in given]
        gradients = [None if tensor is None else torch.empty(tensor.shape) for tensor in held]
        dx = backward_pass(ctx.batch, x, attended, held, grads[0].contiguous(), gradients)
        typed = [
            None if gradient is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(gradients, given, strict=True)
        ]
        return (dx, *typed, None)


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
    batch = Batch(
        num_heads, norm_len, dropout, seed, eps, offsets_B1.contiguous(), buckets, masks[0], masks[1], tail,
        tail_buckets, only_tail,
    )  # fmt: skip
    y: Tensor = _Layer.apply(x_TM, *_weights(params), pos_bias_GP, time_bias_GK, batch)
    return y


def make_batch(
    offsets_B1: Tensor, *, num_heads: int, norm_len: float, time_buckets: TimeBuckets, query_time_T: Tensor,
    key_time_T: Tensor, eps: float, dropouts: Sequence[float], seeds: list[int], tails: list[Tail | None],
    only_tail: list[bool],
) -> list[Batch]:  # fmt: skip
    """What the layers of one batch share: all arguments besides x and the weights, not validated."""
    cache, batches = BucketCache(), []
    for seed, dropout, tail, is_only in zip(seeds, dropouts, tails, only_tail, strict=True):
        buckets = tail_buckets = None
        if not is_only:
            buckets = cached_buckets(cache, offsets_B1, time_buckets, query_time_T, key_time_T, None)
        if tail is not None:
            tail_buckets = _tail_buckets(tail, offsets_B1, time_buckets, query_time_T, key_time_T)
        batches.append(
            Batch(num_heads, norm_len, dropout, seed, eps, offsets_B1, buckets, None, None, tail, tail_buckets, is_only)
        )
    return batches


def _tail_buckets(
    tail: Tail, offsets_B1: Tensor, time_buckets: TimeBuckets, query_time_T: Tensor, key_time_T: Tensor
) -> Tensor:
    """Buckets of the tail's queries against all keys; the batch's layers share them."""
    cache = tail.bucket_cache
    inputs = (offsets_B1, time_buckets.thresholds_K1, query_time_T, key_time_T)
    key = tuple((id(x), 0 if x.is_inference() else x._version) for x in inputs)  # noqa: SLF001
    if cache.key != key or not isinstance(cache.value, Tensor):
        query_S, key_S = query_time_T.index_select(0, tail.rows_S), key_time_T.index_select(0, tail.rows_S)
        before = (offsets_B1[:-1], tail.num_silent_B, key_time_T)
        cache.value = make_buckets(tail.offsets_B1, time_buckets, query_S, key_S, cache=before)
        cache.key, cache.inputs = key, inputs
    assert isinstance(cache.value, Tensor)
    return cache.value


def history(
    x_TM: Tensor, params: LayerParams, offsets_B1: Tensor, *, num_heads: int, norm_len: float,
    pos_bias_GP: Tensor | None, time_bias_GK: Tensor | None, time_buckets: TimeBuckets, query_time_T: Tensor,
    key_time_T: Tensor, bucket_cache: BucketCache | None, tail: Tail | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`kernels.hstu_layer_history` on the CPU, after validation: no gradients."""
    require_supported(x_TM, "hstu_layer_history")
    x, (_, value, key) = x_TM.detach().contiguous(), params.widths(num_heads)
    if tail is None:
        buckets = cached_buckets(bucket_cache, offsets_B1, time_buckets, query_time_T, key_time_T, None)
    else:
        buckets = _tail_buckets(tail, offsets_B1, time_buckets, query_time_T, key_time_T)
    held = [table(tensor) for tensor in (*_weights(params), pos_bias_GP, time_bias_GK)]
    num_outputs = len(x) if tail is None else tail.num_outputs
    y, attended = x.new_empty(num_outputs, x.shape[1]), x.new_empty(num_outputs, num_heads * value)
    k, v = x.new_empty(len(x), num_heads, key), x.new_empty(len(x), num_heads, value)
    batch = Batch(num_heads, norm_len, 0.0, 0, eps, offsets_B1.contiguous(), buckets, None, None, tail, buckets,
                  only_tail=tail is not None)  # fmt: skip
    args, attend = batch.args(x, held[:8], held[8:], tail)
    args.attended, args.y, args.k_out, args.v_out = (each.data_ptr() for each in (attended, y, k, v))
    run("layer_forward", args, attend)
    return y, k, v


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
