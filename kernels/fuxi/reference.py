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


def project_parts(
    x_TM: Tensor, params: FuxiParams, *, num_heads: int, eps: float, seen: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Half of `project`: V and K, which other tokens see, or U and Q, which serve the token itself."""
    _, value, key = params.widths(num_heads)
    normed, starts = rms_norm(x_TM, x_TM.shape[-1:], eps=eps), (3 * value, 4 * value + key) if seen else (0, 4 * value)
    widths = (value if seen else 3 * value, key)
    first, second = (
        silu(normed @ params.uvqk_weight[:, num_heads * start : num_heads * (start + width)])
        for start, width in zip(starts, widths, strict=True)
    )
    num = len(x_TM)
    return first.view(num, num_heads, value) if seen else first, second.view(num, num_heads, key)


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
    x_TM: Tensor, attended_TC: Tensor, u_TC: Tensor, params: FuxiParams, *, eps: float, dropout: float = 0.0,
    keep: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """o = x + (RMSNorm(attended) ⊙ U) W + b; y = o + (SiLU(n W₁) ⊙ n W₂) W₃ with n = RMSNorm(o). ``keep`` (T, C + M):
    dropout's mask of W's input, and of n."""
    channels = attended_TC.shape[1]
    gated = rms_norm(attended_TC, (channels,), eps=eps) * u_TC
    if keep is not None:
        gated = torch.where(keep[:, :channels], gated / (1.0 - dropout), 0.0)
    mixed = x_TM + torch.addmm(params.mix_bias_M, gated, params.mix_weight)
    normed = rms_norm(mixed, x_TM.shape[-1:], eps=eps)
    if keep is not None:
        normed = torch.where(keep[:, channels:], normed / (1.0 - dropout), 0.0)
    return mixed + (silu(normed @ params.gate_weight) * (normed @ params.up_weight)) @ params.down_weight


def kept(x_TM: Tensor, params: FuxiParams, *, dropout: float, seed: int) -> Tensor | None:
    """`output`'s ``keep``, by the tokens' rows; None without dropout."""
    width = params.mix_weight.shape[0] + x_TM.shape[1]
    return keep_mask(seed, len(x_TM), width, dropout, x_TM.device) if dropout > 0 else None
