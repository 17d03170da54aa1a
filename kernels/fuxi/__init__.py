"""One FuXi-alpha layer: attention by meaning, by position and by time in channels of their own, then two stages of a
feed-forward network.

Source: "FuXi-α: Scaling Recommendation Model with Feature Interaction Enhanced Transformer" (Ye et al., WWW 2025),
equations 3 to 9.

The channels run on the attention kernels. Those weigh a value with SiLU(score), where the channels of position and time
weigh it with the bias itself; but b = SiLU(b) - SiLU(-b), so a channel is the difference of two heads without queries.
Everything else is a few products of matrices, which are torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.attention import hstu_attention
from kernels.attention.buckets import BucketCache, TimeBuckets
from kernels.attention.check import check_norm, check_offsets
from kernels.backend import choose
from kernels.delta import delta_attention
from kernels.fuxi import reference
from kernels.fuxi.params import FuxiParams
from kernels.layer.tail import Tail

__all__ = ["FuxiParams", "channel_biases", "fuxi_delta_attention", "fuxi_layer", "fuxi_output", "fuxi_project"]

fuxi_project, fuxi_output = reference.project, reference.output
SCORELESS_WIDTH = 16
"""Of the queries and keys, all zero, of heads that weigh by bias alone: the narrowest that every kernel takes."""


def fuxi_layer(
    x_TM: Tensor,
    params: FuxiParams,
    offsets_B1: Tensor,
    *,
    num_heads: int,
    norm_len: float,
    time_buckets: TimeBuckets,
    query_time_T: Tensor,
    key_time_T: Tensor,
    bucket_cache: BucketCache | None = None,
    tail: Tail | None = None,
    only_tail: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """``x_TM`` (T, M) → (T, M); see `FuxiParams` for the weights. Gradients: x and every tensor of ``params``.

    ``tail``, ``only_tail``, ``dropout``, ``seed``: see `kernels.hstu_layer`.
    Raises ValueError (shapes, offsets), `KernelUnavailable`.
    """
    if x_TM.dim() != 2 or x_TM.shape[1] != params.widths(num_heads)[0]:
        raise ValueError(f"x_TM: expected (T, {params.uvqk_weight.shape[0]}), got {tuple(x_TM.shape)}")
    check_offsets(offsets_B1, x_TM.shape[0])
    check_norm(norm_len)
    pairs: dict[str, Any] = {"time_buckets": time_buckets, "query_time_T": query_time_T, "key_time_T": key_time_T}
    uses_reference = choose(backend, x_TM.device) == "reference"

    def attend(q_THD: Tensor, k_THD: Tensor, v_THE: Tensor) -> Tensor:
        if uses_reference:
            return reference.attention(q_THD, k_THD, v_THE, offsets_B1, params, norm_len=norm_len, **pairs)
        pos_bias_GP, time_bias_GK = channel_biases(params.pos_bias_P, params.time_bias_K)
        none, values = _scoreless(v_THE)
        return _joined(
            hstu_attention(q_THD, k_THD, v_THE, offsets_B1, norm_len=norm_len, backend=backend),
            hstu_attention(
                none, none, values, offsets_B1, norm_len=1.0, pos_bias_GP=pos_bias_GP, time_bias_GK=time_bias_GK,
                bucket_cache=bucket_cache, backend=backend, **pairs,
            ),
        )  # fmt: skip

    keep = reference.kept(x_TM, params, dropout=dropout, seed=seed)
    widths: dict[str, Any] = {"num_heads": num_heads, "eps": eps}
    if tail is not None and not uses_reference and x_TM.device.type == "cpu":
        return _with_tail(x_TM, params, tail, attend, keep, dropout=dropout, only_tail=only_tail, **widths)
    u, v, q, k = fuxi_project(x_TM, params, **widths)
    y = fuxi_output(x_TM, attend(q, k, v), u, params, eps=eps, dropout=dropout, keep=keep)
    if tail is None:
        return y
    return tail.of(y) if only_tail else tail.alone_varies(y)


def _with_tail(
    x_TM: Tensor, params: FuxiParams, tail: Tail, attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    keep: Tensor | None, *, num_heads: int, eps: float, dropout: float, only_tail: bool,
) -> Tensor:  # fmt: skip
    """The other tokens are only keys and values; their outputs, if requested, carry no gradient."""
    widths: dict[str, Any] = {"num_heads": num_heads, "eps": eps}
    x_SM, rows_S = tail.of(x_TM), tail.rows_S
    v, k = reference.project_parts(x_TM, params, seen=True, **widths)
    u_SC, q_S = reference.project_parts(x_SM, params, seen=False, **widths)
    if only_tail:
        u, q = u_SC, torch.zeros_like(k)
    else:
        with torch.no_grad():
            u, q = reference.project_parts(x_TM, params, seen=False, **widths)
    attended = attend(q.index_copy(0, rows_S, q_S), k, v)
    y_SM = fuxi_output(
        x_SM, tail.of(attended), u_SC, params, eps=eps, dropout=dropout, keep=None if keep is None else tail.of(keep)
    )
    if only_tail:
        return y_SM
    with torch.no_grad():
        y_TM = fuxi_output(x_TM, attended, u, params, eps=eps, dropout=dropout, keep=keep)
    return y_TM.index_copy(0, rows_S, y_SM)


def fuxi_delta_attention(
    q_SHD: Tensor, k_SHD: Tensor, v_SHE: Tensor, delta_offsets_B1: Tensor, cache_k_CHD: Tensor, cache_v_CHE: Tensor,
    cache_start_B: Tensor, cache_len_B: Tensor, *, norm_len: float, num_targets_B: Tensor | None = None,
    backend: str = "auto", **biases: Any,
) -> Tensor:  # fmt: skip
    """The channels of new tokens alone, (S, 3HE), against cached keys and values and themselves: see
    `kernels.delta_attention`. ``biases``: its tables, from `channel_biases`, and its times."""
    where: dict[str, Any] = {"num_targets_B": num_targets_B, "backend": backend}
    none, values = _scoreless(v_SHE)
    cached_none, cached_values = _scoreless(cache_v_CHE)
    return _joined(
        delta_attention(
            q_SHD, k_SHD, v_SHE, delta_offsets_B1, cache_k_CHD, cache_v_CHE, cache_start_B, cache_len_B,
            norm_len=norm_len, **where,
        ),
        delta_attention(
            none, none, values, delta_offsets_B1, cached_none, cached_values, cache_start_B, cache_len_B,
            norm_len=1.0, **where, **biases,
        ),
    )  # fmt: skip


def channel_biases(pos_bias_P: Tensor, time_bias_K: Tensor) -> tuple[Tensor, Tensor]:
    """(4, P) and (4, K): the tables of the four heads whose differences are the channels of position and of time."""
    nothing_P, nothing_K = torch.zeros_like(pos_bias_P), torch.zeros_like(time_bias_K)  # a copy of signs would wait
    return (
        torch.stack([pos_bias_P, -pos_bias_P, nothing_P, nothing_P]),
        torch.stack([nothing_K, nothing_K, time_bias_K, -time_bias_K]),
    )


def _scoreless(v_THE: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (or keys) and values of those four heads, all of which read all values; no value is copied."""
    # Zeros of each token's own: a GPU's copy engine takes no stride of 0.
    none = v_THE.new_zeros(len(v_THE), 1, SCORELESS_WIDTH)
    return none.expand(-1, 4, -1), v_THE.flatten(1)[:, None].expand(-1, 4, -1)


def _joined(meaning_THE: Tensor, heads_T4C: Tensor) -> Tensor:
    more, less = heads_T4C[:, 0::2], heads_T4C[:, 1::2]
    return torch.cat([meaning_THE.flatten(1), (more - less).flatten(1)], dim=1)
