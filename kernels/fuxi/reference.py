"""The definition of a FuXi-alpha layer: plain PyTorch, differentiable, any float dtype."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from kernels.attention.buckets import TimeBuckets
from kernels.attention.reference import pair_bias, visible
from kernels.fuxi.params import FuxiParams
from kernels.layer.dropout import keep_mask


def project(x_TM: Tensor, params: FuxiParams, *, num_heads: int, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U (T, 3HE), V (T, H, E), Q, K (T, H, D) = split(SiLU(RMSNorm(x) W))."""
    _, value, key = params.widths(num_heads)
    projected = silu(rms_norm(x_TM, x_TM.shape[-1:], eps=eps) @ params.uvqk_weight)
    u, v, q, k = torch.split(projected, [num_heads * each for each in (3 * value, value, key, key)], dim=-1)
    num = len(x_TM)
    return u, v.view(num, num_heads, value), q.view(num, num_heads, key), k.view(num, num_heads, key)


def attention(
    q_THD: Tensor, k_THD: Tensor, v_THE: Tensor, offsets_B1: Tensor, params: FuxiParams, *, norm_len: float,
    time_buckets: TimeBuckets, query_time_T: Tensor, key_time_T: Tensor,
) -> Tensor:  # fmt: skip
    """(T, 3HE): sums of values weighted by SiLU(q·k) / norm_len, by position, and by time."""
    outputs = [v_THE.flatten(1)[:0].repeat(1, 3)]
    for start, stop in pairwise(offsets_B1.tolist()):
        user, place = slice(start, stop), torch.arange(stop - start, device=v_THE.device)
        position = pair_bias(place, place, params.pos_bias_P[None], None, None, None, None)
        time = pair_bias(
            place, place, None, params.time_bias_K[None], time_buckets, query_time_T[user], key_time_T[user]
        )
        meaning = silu(torch.einsum("ihd,jhd->hij", q_THD[user], k_THD[user])) / norm_len
        hidden = ~visible(stop - start, 0, 0, v_THE.device)
        channels = [
            torch.einsum("hij,jhe->ihe", torch.masked_fill(each, hidden, 0.0).expand_as(meaning), v_THE[user])
            for each in (meaning, torch.as_tensor(position), torch.as_tensor(time))
        ]
        outputs.append(torch.cat([each.flatten(1) for each in channels], dim=1))
    return torch.cat(outputs)


def output(
    x_TM: Tensor, attended_TC: Tensor, u_TC: Tensor, params: FuxiParams, *, dropout: float, seed: int, eps: float
) -> Tensor:
    """o = x + (RMSNorm(attended) ⊙ U) W + b; y = o + (SiLU(n W₁) ⊙ n W₂) W₃ with n = RMSNorm(o). Dropout goes before
    W, and on n."""
    channels = attended_TC.shape[1]
    gated = rms_norm(attended_TC, (channels,), eps=eps) * u_TC
    keep = None
    if dropout > 0:
        keep = keep_mask(seed, len(x_TM), channels + x_TM.shape[1], dropout, x_TM.device)
        gated = torch.where(keep[:, :channels], gated / (1.0 - dropout), 0.0)
    mixed = x_TM + torch.addmm(params.mix_bias_M, gated, params.mix_weight)
    normed = rms_norm(mixed, x_TM.shape[-1:], eps=eps)
    if keep is not None:
        normed = torch.where(keep[:, channels:], normed / (1.0 - dropout), 0.0)
    return mixed + (silu(normed @ params.gate_weight) * (normed @ params.up_weight)) @ params.down_weight


def layer(
    x_TM: Tensor, params: FuxiParams, offsets_B1: Tensor, *, num_heads: int, norm_len: float,
    time_buckets: TimeBuckets, query_time_T: Tensor, key_time_T: Tensor, dropout: float, seed: int, eps: float,
) -> Tensor:  # fmt: skip
    """`kernels.fuxi.fuxi_layer`, computed literally."""
    u, v, q, k = project(x_TM, params, num_heads=num_heads, eps=eps)
    attended = attention(
        q, k, v, offsets_B1, params, norm_len=norm_len, time_buckets=time_buckets, query_time_T=query_time_T,
        key_time_T=key_time_T,
    )  # fmt: skip
    return output(x_TM, attended, u, params, dropout=dropout, seed=seed, eps=eps)
