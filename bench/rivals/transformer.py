"""Transformer++: HSTU's authors' rival, in Headrace's size: rotary positions, SwiGLU, RMSNorm, no biases
(Touvron et al., "LLaMA", 2023), over items, their kinds and the time since the one before."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from bench.rivals.gradient import SequenceModel
from bench.rivals.sequences import Sequences

NUM_GAPS = 24
"""Buckets of the time since the interaction before, by powers of two of a second."""


class TransformerPP(SequenceModel):
    """Reads every interaction, not only choices."""

    choices_only = False

    def __init__(
        self, num_rows: int, width: int, context: int, seed: int, num_kinds: int, num_layers: int = 2,
        num_heads: int = 2, cosine: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(num_rows, width, context, seed, cosine=cosine)
        self.head_width = width // num_heads
        self.kind_KD = nn.Parameter(torch.randn(num_kinds, width) * 0.02)
        self.gap_GD = nn.Parameter(torch.randn(NUM_GAPS, width) * 0.02)
        self.blocks = nn.ModuleList(GatedBlock(width, num_heads) for _ in range(num_layers))
        self.norm, self.out = nn.RMSNorm(width), nn.Linear(width, width, bias=False)
        self.into = nn.Linear(width, width, bias=False)

    def encode(self, seqs: Sequences) -> Tensor:
        """(B, L, width)."""
        gap_BL = torch.log2(1.0 + seqs.gap_BL.clamp(min=0)).long().clamp(max=NUM_GAPS - 1)
        x_BLD = self.into(self.item_VD[seqs.row_BL]) * self.width**0.5
        x_BLD = x_BLD + seqs.kinds_BLK @ self.kind_KD + self.gap_GD[gap_BL]
        turn = rotation(seqs.length, self.head_width)
        for block in self.blocks:
            x_BLD = block(x_BLD, turn)
        out: Tensor = self.out(self.norm(x_BLD))
        return out


class GatedBlock(nn.Module):
    """Rotary causal attention, then SwiGLU."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, width // num_heads
        hidden = 8 * ((8 * width // 3 + 7) // 8)
        self.qkv, self.mix = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x_BLD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """(B, L, width) → the same shape."""
        batch, length, width = x_BLD.shape
        q, k, v = self.qkv(self.before(x_BLD)).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v, is_causal=True)
        x_BLD = x_BLD + self.mix(seen.transpose(1, 2).reshape(batch, length, width))
        normed = self.between(x_BLD)
        done: Tensor = x_BLD + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return done


def rotation(length: int, width: int) -> tuple[Tensor, Tensor]:
    """(L, width / 2) cosines and sines (Su et al., "RoFormer", 2021)."""
    rate = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(length)[:, None] * rate
    return angle.cos(), angle.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """(…, L, width) by position; the two halves are the two coordinates of each plane."""
    left, right = x.chunk(2, dim=-1)
    cos, sin = turn
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)
