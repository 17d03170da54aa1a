"""HSTU as published for research, padded and eager, written here from its formulas (Zhai et al., ICML 2024).

Scores of every pair of a padded batch; the time bias is a gather of floor(ln(max(1, |dt|)) / 0.301), the position bias
a table of 2N - 1 distances laid out as a Toeplitz matrix; the loss gathers each position's own negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_BUCKETS = 128


def relative_bias(pos_table: Tensor, time_table: Tensor, times_BN: Tensor) -> Tensor:
    """(B, N, N): rab^p + rab^t, with the next event's time for the query, as published."""
    length = times_BN.shape[1]
    rows = functional.pad(pos_table, (0, length)).repeat(length)[:-length].view(1, length, 3 * length - 2)
    margin = (2 * length - 1) // 2
    extended = torch.cat([times_BN, times_BN[:, -1:]], dim=1)
    delta = extended[:, 1:, None] - extended[:, None, :-1]
    bucket = (delta.abs().clamp(min=1).float().log() / 0.301).long().clamp(0, NUM_BUCKETS).detach()
    by_time = torch.index_select(time_table, 0, bucket.view(-1)).view(-1, length, length)
    return rows[:, :, margin:-margin] + by_time


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor, norm_len: float) -> Tensor:
    """(B, N, H, E) of padded (B, N, H, ·)."""
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
    if bias is not None:
        scores = scores + bias[:, None]
    return torch.einsum("bhnm,bmhd->bnhd", functional.silu(scores) / norm_len * mask, v)


class Layer(nn.Module):
    """One padded layer."""

    mask: Tensor

    def __init__(self, width: int, padded: int) -> None:
        super().__init__()
        self.width = width
        self.uvqk = nn.Parameter(torch.randn(width, 4 * width) * 0.02)
        self.out = nn.Linear(width, width)
        self.pos_table = nn.Parameter(torch.randn(2 * padded - 1) * 0.02)
        self.time_table = nn.Parameter(torch.randn(NUM_BUCKETS + 1) * 0.02)
        self.register_buffer("mask", torch.tril(torch.ones(padded, padded)))

    def forward(self, x_BNM: Tensor, times_BN: Tensor, valid_BN1: Tensor) -> Tensor:
        """X + W (LayerNorm(A V) * U)."""
        normed = functional.layer_norm(x_BNM, (self.width,), eps=1e-6)
        u, v, q, k = torch.split(functional.silu(normed @ self.uvqk) * valid_BN1, self.width, dim=-1)
        bias = relative_bias(self.pos_table, self.time_table, times_BN)
        q, k, v = q[:, :, None], k[:, :, None], v[:, :, None]
        attended = attention(q, k, v, bias, self.mask, float(x_BNM.shape[1]))[:, :, 0]
        y: Tensor = (x_BNM + self.out(u * functional.layer_norm(attended, (self.width,), eps=1e-6))) * valid_BN1
        return y


def sampled_softmax(query_RD: Tensor, table_VD: Tensor, target_R: Tensor, negatives_RS: Tensor) -> Tensor:
    """Mean cross entropy; each row's own negatives, gathered and normalised; hits get a very low score."""

    def unit(x: Tensor) -> Tensor:
        normed: Tensor = x / torch.linalg.norm(x, dim=-1, keepdim=True).clamp(min=1e-6)
        return normed

    query_RD = unit(query_RD)
    positive = (query_RD * unit(functional.embedding(target_R, table_VD))).sum(-1, keepdim=True) / 0.05
    negative = torch.bmm(unit(functional.embedding(negatives_RS, table_VD)), query_RD[:, :, None])[:, :, 0] / 0.05
    negative = torch.where(target_R[:, None] == negatives_RS, -5e4, negative)
    return -functional.log_softmax(torch.cat([positive, negative], dim=1), dim=1)[:, 0].mean()
