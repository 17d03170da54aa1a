"""The definition of an HSTU layer: plain PyTorch, differentiable, any float dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from kernels.attention import reference as attention_reference
from kernels.layer.dropout import keep_mask
from kernels.layer.params import LayerParams


def project(x_TM: Tensor, params: LayerParams, *, num_heads: int, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U, V (T, H, E), Q, K (T, H, D) = split(SiLU(LayerNorm(x) W1 + b1))."""
    _, value, key = params.widths(num_heads)
    normed = layer_norm(x_TM, x_TM.shape[-1:], params.norm_in_weight_M, params.norm_in_bias_M, eps)
    projected = normed @ params.uvqk_weight
    if params.uvqk_bias is not None:
        projected = projected + params.uvqk_bias
    widths = [num_heads * value, num_heads * value, num_heads * key, num_heads * key]
    u, v, q, k = torch.split(silu(projected), widths, dim=-1)
    tokens = x_TM.shape[0]
    return (
        u.reshape(tokens, num_heads, value),
        v.reshape(tokens, num_heads, value),
        q.reshape(tokens, num_heads, key),
        k.reshape(tokens, num_heads, key),
    )


def output(
    x_TM: Tensor, attended_THE: Tensor, u_THE: Tensor, params: LayerParams, *, dropout: float, seed: int, eps: float
) -> Tensor:
    """x + dropout((LayerNorm(AV) ⊙ U) W2 + b2)."""
    flat = attended_THE.flatten(1)
    gated = layer_norm(flat, flat.shape[-1:], params.norm_out_weight, params.norm_out_bias, eps) * u_THE.flatten(1)
    change = gated @ params.out_weight
    if params.out_bias is not None:
        change = change + params.out_bias
    if dropout > 0:
        keep = keep_mask(seed, change.shape[0], change.shape[1], dropout, change.device)
        change = torch.where(keep, change / (1.0 - dropout), 0.0)
    return x_TM + change


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
    **pairs: Any,
) -> Tensor:
    """`kernels.hstu_layer`, computed literally; ``pairs``: the bias, time and mask arguments of attention."""
    u, v, q, k = project(x_TM, params, num_heads=num_heads, eps=eps)
    attended = attention_reference.attention(q, k, v, offsets_B1, norm_len=norm_len, **pairs)
    return output(x_TM, attended, u, params, dropout=dropout, seed=seed, eps=eps)
