"""GRU4Rec (Hidasi et al., "Session-based recommendations with recurrent neural networks", ICLR 2016), with the
cross-entropy loss of its later versions."""

from __future__ import annotations

from torch import Tensor, nn

from bench.rivals.gradient import SequenceModel
from bench.rivals.sequences import Sequences


class GRU4Rec(SequenceModel):
    """One gated recurrent layer over items."""

    def __init__(self, num_rows: int, width: int, context: int, seed: int, cosine: float = 0.0) -> None:
        super().__init__(num_rows, width, context, seed, cosine=cosine)
        self.cell = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, width)

    def encode(self, seqs: Sequences) -> Tensor:
        """(B, L, width)."""
        state_BLD, _ = self.cell(self.item_VD[seqs.row_BL])
        out: Tensor = self.out(state_BLD)
        return out
