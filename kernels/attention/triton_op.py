"""HSTU attention on CUDA tensors: the Triton kernels as one autograd node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.triton_bias import make_position_table
from kernels.attention.triton_launch import Batch, backward, dense_rows, forward, prepare
from kernels.triton_shared import require_device


class Attention(torch.autograd.Function):
    """Saves its inputs and the batch's tables; recomputes the scores."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pos_bias_GP: Tensor | None, time_bias_GK: Tensor | None,
        batch: Batch, norm_len: float,
    ) -> Tensor:  # fmt: skip
        """The output; saves what the gradients need."""
        q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
        time_bias_GK = time_bias_GK.contiguous() if time_bias_GK is not None else None
        table = make_position_table(dense_rows(pos_bias_GP)) if pos_bias_GP is not None else None
        ctx.save_for_backward(q, k, v, pos_bias_GP, time_bias_GK, table)
        ctx.batch, ctx.norm_len = batch, norm_len
        num_positions = pos_bias_GP.shape[1] if pos_bias_GP is not None else 0
        return forward(q, k, v, batch, norm_len, table, num_positions, time_bias_GK)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in the order of the inputs."""
        q, k, v, pos_bias_GP, time_bias_GK, table = ctx.saved_tensors
        if q.numel() == 0:
            return (
                *(torch.zeros_like(x) if x is not None else None for x in (q, k, v, pos_bias_GP, time_bias_GK)),
                None,
                None,
            )
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        biases = backward(q, k, v, dense_rows(grad), ctx.batch, ctx.norm_len, pos_bias_GP, time_bias_GK, table, *grads)
        return (*grads, *biases, None, None)


def attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THE: Tensor,
    offsets_B1: Tensor,
    *,
    norm_len: float,
    pos_bias_GP: Tensor | None = None,
    time_bias_GK: Tensor | None = None,
    time_buckets: TimeBuckets | None = None,
    query_time_T: Tensor | None = None,
    key_time_T: Tensor | None = None,
    num_context_B: Tensor | None = None,
    num_targets_B: Tensor | None = None,
    bucket_cache: BucketCache | None = None,
) -> Tensor:
    """`kernels.hstu_attention` on a GPU (or on any tensors in Triton's interpreter)."""
    require_device(q_THD, "hstu_attention")
    num_tokens = q_THD.shape[0]
    batch = None
    if num_tokens and len(offsets_B1) > 1:
        if time_bias_GK is None:
            time_buckets = None
        batch = prepare(
            offsets_B1, num_tokens, time_buckets, query_time_T, key_time_T, num_context_B, num_targets_B, bucket_cache
        )
    result: Tensor = Attention.apply(q_THD, k_THD, v_THE, pos_bias_GP, time_bias_GK, batch, norm_len)
    return result
