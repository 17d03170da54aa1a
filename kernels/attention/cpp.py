"""The C++ attention as torch operators (``headrace::attention`` and its backward), with autograd and fake tensors.

One pair of operators serves `kernels.hstu_attention` and `kernels.delta_attention`: the latter passes a cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import library, registration
from kernels.attention.args import (
    AttentionArgs,
    BucketsArgs,
    TensorArg,
    inner_contiguous,
    require_supported,
    run,
    table,
)
from kernels.attention.buckets import BucketCache, TimeBuckets

BEHIND = 64
"""As many columns may be read behind the last row."""


def make_buckets(
    offsets_B1: Tensor,
    time_buckets: TimeBuckets,
    query_time: Tensor,
    key_time: Tensor,
    num_context_B: Tensor | None = None,
    cache: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Time buckets of all visible pairs in the kernels' layout: uint8, or int16 above 256 buckets.

    ``cache``: (cache_start_B, cache_len_B, cache_time_C) of delta attention.
    """
    dtype = torch.uint8 if time_buckets.num_buckets <= 256 else torch.int16
    offsets = offsets_B1.numpy()
    queries = offsets[1:] - offsets[:-1]
    cache_start, cache_len, cache_time = cache if cache is not None else (None, None, None)
    keys = queries if cache_len is None else queries + cache_len.numpy()
    num_pairs = int((queries * ((keys + 63) // 64 * 64)).sum())
    # Rows, a byte per user, and an int32 per query (csrc/attention.h). Columns that no row sees stay unwritten; the
    # kernels mask them. They read 64 columns from any multiple of 16 of a row on, and once from the column after that.
    behind = max(len(queries) + 4 + 4 * len(query_time), BEHIND * dtype.itemsize)
    num_bytes = num_pairs * dtype.itemsize + behind
    buckets = torch.empty(-(-num_bytes // dtype.itemsize), dtype=dtype)
    thresholds = time_buckets.on(torch.device("cpu")).contiguous()
    held = [offsets_B1.contiguous(), query_time.contiguous(), key_time.contiguous(), thresholds]
    optional = [None if x is None else x.contiguous() for x in (cache_start, cache_len, cache_time, num_context_B)]
    args = BucketsArgs(
        num_users=len(queries),
        num_threads=library.num_threads(),
        num_thresholds=len(thresholds),
        bucket_bytes=buckets.element_size(),
        offsets=held[0].data_ptr(),
        query_time=held[1].data_ptr(),
        key_time=held[2].data_ptr(),
        thresholds=held[3].data_ptr(),
        cache_start=library.address(optional[0]),
        cache_len=library.address(optional[1]),
        cache_time=library.address(optional[2]),
        num_context=library.address(optional[3]),
        buckets=buckets.data_ptr(),
    )
    run("attention_buckets", args)
    return buckets


def cached_buckets(
    bucket_cache: BucketCache | None,
    offsets_B1: Tensor,
    time_buckets: TimeBuckets,
    query_time: Tensor,
    key_time: Tensor,
    num_context_B: Tensor | None,
    cache: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """The buckets of a batch (`make_buckets`), from its cache if that was made from the same, unchanged tensors."""
    inputs = (offsets_B1, time_buckets.thresholds_K1, query_time, key_time, num_context_B, *(cache or ()))
    # Inference tensors have no version counter, but they cannot be changed in place outside inference mode either.
    key = tuple(None if x is None else (id(x), 0 if x.is_inference() else x._version) for x in inputs)  # noqa: SLF001
    if bucket_cache is not None and bucket_cache.key == key and isinstance(bucket_cache.value, Tensor):
        return bucket_cache.value
    buckets = make_buckets(offsets_B1, time_buckets, query_time, key_time, num_context_B, cache)
    if bucket_cache is not None:  # it also holds the inputs, so that their ids are not reused
        bucket_cache.key, bucket_cache.value, bucket_cache.inputs = key, buckets, inputs
    return buckets


def fill_args(
    args: AttentionArgs,
    offsets_B1: Tensor,
    norm_len: float,
    pos: Tensor | None,
    time: Tensor | None,
    buckets: Tensor | None,
    num_context_B: Tensor | None,
    num_targets_B: Tensor | None,
) -> None:
    """Fill the arguments that forward and backward passes share (bias tables as `args.table` returns them)."""
    args.num_users = len(offsets_B1) - 1
    args.num_threads = library.num_threads()
    args.scale = 1.0 / norm_len
    args.offsets = offsets_B1.data_ptr()
    args.num_context = library.address(num_context_B)
    args.num_targets = library.address(num_targets_B)
    if pos is not None:
        args.pos_bias, args.pos_heads, args.num_pos = pos.data_ptr(), pos.shape[0], pos.shape[1]
    if time is not None and buckets is not None:
        args.time_bias, args.time_heads, args.num_buckets = time.data_ptr(), time.shape[0], time.shape[1]
        args.buckets, args.bucket_bytes = buckets.data_ptr(), buckets.element_size()


def fill_heads(args: AttentionArgs, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Fill in queries, keys and values."""
    args.num_heads, args.qk_dim, args.v_dim = q.shape[1], q.shape[2], v.shape[2]
    args.is_bf16 = q.dtype == torch.bfloat16
    args.q, args.k, args.v = TensorArg.of(q), TensorArg.of(k), TensorArg.of(v)


def fill_cache(args: AttentionArgs, cache: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Fill in delta attention's cache (keys, values, start, len), if any; returns the tensors to keep alive."""
    cache_k, cache_v, start, length = cache
    if cache_k is None or cache_v is None or start is None or length is None:
        return []
    held = [inner_contiguous(cache_k), inner_contiguous(cache_v), start.contiguous(), length.contiguous()]
    args.cache_k, args.cache_v = TensorArg.of(held[0]), TensorArg.of(held[1])
    args.cache_start, args.cache_len = held[2].data_ptr(), held[3].data_ptr()
    return held


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    norm_len: float,
    pos_bias: Tensor | None,
    time_bias: Tensor | None,
    buckets: Tensor | None,
    num_context: Tensor | None,
    num_targets: Tensor | None,
    cache_k: Tensor | None,
    cache_v: Tensor | None,
    cache_start: Tensor | None,
    cache_len: Tensor | None,
) -> Tensor:
    """Forward; returns (tokens, H, E)."""
    q, k, v = inner_contiguous(q), inner_contiguous(k), inner_contiguous(v)
    offsets, pos, time = offsets.contiguous(), table(pos_bias), table(time_bias)
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    args = AttentionArgs(out=TensorArg.of(out))
    fill_args(args, offsets, norm_len, pos, time, buckets, num_context, num_targets)
    fill_heads(args, q, k, v)
    held = fill_cache(args, (cache_k, cache_v, cache_start, cache_len))
    run("attention_forward", args)
    del held
    return out


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:  # noqa: ARG001
    return q.new_empty(q.shape[0], q.shape[1], v.shape[2])


attention_op = registration.register(_forward, name="attention", fake=_fake_forward)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    norm_len: float,
    pos_bias: Tensor | None,
    time_bias: Tensor | None,
    buckets: Tensor | None,
    num_context: Tensor | None,
    num_targets: Tensor | None,
    cache_k: Tensor | None,
    cache_v: Tensor | None,
    cache_start: Tensor | None,
    cache_len: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of both biases (float32; empty if there is no bias)."""
    grad, q, k, v = inner_contiguous(grad), inner_contiguous(q), inner_contiguous(k), inner_contiguous(v)
    offsets, pos, time = offsets.contiguous(), table(pos_bias), table(time_bias)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    dpos = torch.zeros(pos.shape if pos is not None else (0, 0))
    dtime = torch.zeros(time.shape if time is not None else (0, 0))
    args = AttentionArgs(
        grad=TensorArg.of(grad),
        dq=TensorArg.of(dq),
        dk=TensorArg.of(dk),
        dv=TensorArg.of(dv),
        dpos=dpos.data_ptr(),
        dtime=dtime.data_ptr(),
    )
    fill_args(args, offsets, norm_len, pos, time, buckets, num_context, num_targets)
    fill_heads(args, q, k, v)
    held = fill_cache(args, (cache_k, cache_v, cache_start, cache_len))
    run("attention_backward", args)
    del held
    return dq, dk, dv, dpos, dtime


def _fake_backward(
    grad: Tensor,  # noqa: ARG001
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,  # noqa: ARG001
    norm_len: float,  # noqa: ARG001
    pos_bias: Tensor | None,
    time_bias: Tensor | None,
    *rest: Any,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    biases = [
        torch.empty(x.shape if x is not None else (0, 0), dtype=torch.float32, device=q.device)
        for x in (pos_bias, time_bias)
    ]
    return dq, dk, dv, biases[0], biases[1]


attention_backward_op = registration.register(_backward, name="attention_backward", fake=_fake_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.norm_len = inputs[4]
    ctx.save_for_backward(*inputs[:4], *inputs[5:])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, offsets, pos_bias, time_bias, *rest = ctx.saved_tensors
    dq, dk, dv, dpos, dtime = attention_backward_op(grad, q, k, v, offsets, ctx.norm_len, pos_bias, time_bias, *rest)
    return (
        dq,
        dk,
        dv,
        None,
        None,
        dpos.to(pos_bias.dtype) if pos_bias is not None else None,
        dtime.to(time_bias.dtype) if time_bias is not None else None,
        *[None] * 7,
    )


registration.differentiate(attention_op, _differentiate, save=_save)


def attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THE: Tensor,
    offsets_B1: Tensor,
    *,
    norm_len: float,
    pos_bias_GP: Tensor | None,
    time_bias_GK: Tensor | None,
    time_buckets: TimeBuckets | None,
    query_time_T: Tensor | None,
    key_time_T: Tensor | None,
    num_context_B: Tensor | None,
    num_targets_B: Tensor | None,
    bucket_cache: BucketCache | None,
) -> Tensor:
    """`kernels.hstu_attention` on the CPU, after validation."""
    require_supported(q_THD, "hstu_attention")
    buckets = None
    if time_bias_GK is not None and time_buckets is not None and query_time_T is not None and key_time_T is not None:
        buckets = cached_buckets(bucket_cache, offsets_B1, time_buckets, query_time_T, key_time_T, num_context_B)
    masks = [None if x is None else x.contiguous() for x in (num_context_B, num_targets_B)]
    out: Tensor = attention_op(
        q_THD, k_THD, v_THE, offsets_B1, norm_len, pos_bias_GP, time_bias_GK, buckets, *masks, None, None, None, None
    )
    return out
