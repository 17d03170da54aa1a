"""BERT4Rec (Sun et al., CIKM 2019): attention in both directions, trained to fill in masked items.

In one pass, the choice at the end of each history is masked, and a share of the items before it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.rivals.gradient import EXACT, Gradient, SequenceModel
from bench.rivals.sasrec import Block
from bench.rivals.sequences import Sequences, sequences
from bench.streams.events import Step
from model.distinct import counted


class BERT4Rec(SequenceModel):
    """One sequence per choice: what came before it, and a mask in its place."""

    def __init__(
        self, num_rows: int, width: int, context: int, seed: int, num_layers: int = 2, num_heads: int = 2,
        cosine: float = 0.0, masked_share: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__(num_rows, width, context, seed, cosine=cosine)
        self.masked_share = masked_share
        self.mask_D = nn.Parameter(torch.randn(width) * 0.02)
        self.position_LD = nn.Parameter(torch.randn(context + 1, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, is_causal=False, growth=4, gelu=True) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def fill(self, row_AL: Tensor, is_masked_AL: Tensor) -> Tensor:
        """(A, L, width) of rows that end in the last column, 0 before they begin."""
        x_ALD = torch.where(is_masked_AL[..., None], self.mask_D, self.item_VD[row_AL] * self.width**0.5)
        x_ALD = x_ALD + self.position_LD[-row_AL.shape[1] :]
        can_be_seen = ((row_AL > 0) | is_masked_AL)[:, None, None, :]
        for block in self.blocks:
            x_ALD = block(x_ALD, can_be_seen)
        normed: Tensor = self.norm(x_ALD)
        return normed


class Cloze(Gradient):
    """Predicts with a mask at the end; learns from masks there and elsewhere."""

    model: BERT4Rec

    def over(self, step: Step) -> NDArray[np.float32]:
        """See `Gradient.over`."""
        num_rows = step.num_known + 1
        if not len(step.asked):
            return np.zeros((0, num_rows), np.float32)
        seqs = sequences(step, self.model.context, self.kinds, choices_only=True)
        row_AL = before_each(seqs, self.model.context)
        is_last_AL = torch.zeros_like(row_AL, dtype=torch.bool)
        is_last_AL[:, -1] = True
        with torch.no_grad():
            query_AD = self.model.fill(row_AL, is_last_AL)[:, -1]
            score_AV = self.model.logits(query_AD, 0, num_rows).numpy()
        self._learn(self._masked_loss(row_AL, is_last_AL, seqs.target_A, num_rows))
        self.frequency.add(*counted(seqs.target_A.numpy()))
        return score_AV

    def _masked_loss(self, row_AL: Tensor, is_last_AL: Tensor, target_A: Tensor, num_rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.num_steps)
        drawn_AL = torch.rand(row_AL.shape, generator=generator) < self.model.masked_share
        is_masked_AL = is_last_AL | (drawn_AL & (row_AL > 0))
        wanted_AL = row_AL.clone()
        wanted_AL[:, -1] = target_A
        query_MD = self.model.fill(row_AL, is_masked_AL)[is_masked_AL]
        wanted_M = wanted_AL[is_masked_AL]
        if num_rows > EXACT:
            return self._sampled_loss(wanted_M, query_MD, num_rows - 1)
        return F.cross_entropy(self.model.logits(query_MD, 1, num_rows), wanted_M - 1)


def before_each(seqs: Sequences, context: int) -> Tensor:
    """(A, L + 1): the last interactions before each choice, ending in the last column but one, and an empty one."""
    length = min(context, int(seqs.last_A.max()) + 1) if len(seqs.last_A) else 0
    column_AL = seqs.last_A[:, None] - torch.arange(length - 1, -1, -1)[None]
    row_AL = seqs.row_BL[seqs.owner_A[:, None], column_AL.clamp(min=0)] * (column_AL >= 0)
    return F.pad(row_AL, (0, 1))
