"""SASRec (Kang & McAuley, "Self-attentive sequential recommendation", ICDM 2018), with the softmax loss that makes it
as good as its successors (Klenitskiy & Vasilev, "Turning dross into gold loss", RecSys 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from bench.rivals.gradient import SequenceModel
from bench.rivals.sequences import Sequences

MOST_TARGETS = 512
"""Positions beyond the context, for a step's own choices."""


class SASRec(SequenceModel):
    """Causal self-attention and point-wise networks over items with learned positions."""

    def __init__(
        self, num_rows: int, width: int, context: int, seed: int, num_layers: int = 2, num_heads: int = 2,
        cosine: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(num_rows, width, context, seed, cosine=cosine)
        self.position_LD = nn.Parameter(torch.randn(context + MOST_TARGETS, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, num_heads, is_causal=True) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def encode(self, seqs: Sequences) -> Tensor:
        """(B, L, width)."""
        x_BLD = self.item_VD[seqs.row_BL] * self.width**0.5 + self.position_LD[: seqs.length]
        for block in self.blocks:
            x_BLD = block(x_BLD)
        normed: Tensor = self.norm(x_BLD)
        return normed


class Block(nn.Module):
    """Attention and a network of two layers, each after a norm and beside a residual."""

    def __init__(self, width: int, num_heads: int, *, is_causal: bool, growth: int = 1, gelu: bool = False) -> None:
        super().__init__()
        self.num_heads, self.is_causal = num_heads, is_causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        activation = nn.GELU() if gelu else nn.ReLU()
        self.network = nn.Sequential(nn.Linear(width, growth * width), activation, nn.Linear(growth * width, width))

    def forward(self, x_BLD: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, width) → the same shape. ``mask`` (B, 1, 1, L): which columns may be seen; None: all before."""
        batch, length, width = x_BLD.shape
        qkv = self.qkv(self.before(x_BLD)).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=mask, is_causal=self.is_causal)
        x_BLD = x_BLD + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        done: Tensor = x_BLD + self.network(self.between(x_BLD))
        return done
