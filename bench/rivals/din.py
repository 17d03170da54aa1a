"""DIN + DCN: attention over the user's history by the item in question (Zhou et al., "Deep interest network", KDD
2018), then a cross network beside a deep one (Wang et al., "DCN V2", WWW 2021): HSTU's authors' rival for ranking.

The item's and the user's rates so far are inputs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.rivals.counts import Rates
from bench.rivals.targets import columns
from bench.streams.events import Step
from kernels.windows import unpack_kinds
from model.config import ModelConfig
from model.kinds import done_before
from trainer.network.losses import ranking_loss

TABLE_BITS = 18
NUM_SINGLE = 7
"""How many of the hashed columns are single values; the pairs follow (`targets.columns`)."""


class DIN(nn.Module):
    """Embeddings of user, item, domain and time; attention; cross and deep networks."""

    def __init__(self, num_rows: int, config: ModelConfig, width: int, context: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        num_kinds, self.context = len(config.kinds), context
        self.num_columns = NUM_SINGLE + config.num_features
        self.item_VD = nn.Embedding(num_rows + 1, width)
        self.hashed_HD = nn.Embedding(1 << TABLE_BITS, width)
        self.kind = nn.Linear(num_kinds, width)
        for table in (self.item_VD, self.hashed_HD):
            nn.init.normal_(table.weight, std=0.05)
        self.attention = nn.Sequential(nn.Linear(4 * width, 36), nn.PReLU(), nn.Linear(36, 1))
        inputs = (self.num_columns + 2) * width + 2 * num_kinds
        self.cross = nn.ModuleList(nn.Linear(inputs, inputs) for _ in range(2))
        self.deep = nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.out = nn.Linear(inputs + 64, num_kinds)
        self.prior_PK = nn.Parameter(torch.zeros(2, num_kinds))
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.prior_PK[0] = 1.0

    def forward(
        self, row_R: Tensor, place_RF: Tensor, past_RL: Tensor, done_RLK: Tensor, prior_RPK: Tensor
    ) -> Tensor:  # fmt: skip
        """(R, K) logits. ``past_RL``: rows that the user met before, 0 if there is none; ``done_RLK``: their kinds."""
        item_RD = self.item_VD(row_R)
        past_RLD = self.item_VD(past_RL) + self.kind(done_RLK)
        asked_RLD = item_RD[:, None].expand_as(past_RLD)
        pair = torch.cat([past_RLD, asked_RLD, past_RLD - asked_RLD, past_RLD * asked_RLD], dim=2)
        weight_RL = self.attention(pair)[..., 0] * (past_RL > 0)
        interest_RD = (weight_RL[..., None] * past_RLD).sum(dim=1)
        wide = self.hashed_HD(place_RF[:, : self.num_columns] & ((1 << TABLE_BITS) - 1)).flatten(1)
        x0 = torch.cat([item_RD, interest_RD, wide, prior_RPK.flatten(1).clamp(-8, 8)], dim=1)
        x = x0
        for cross in self.cross:
            x = x0 * cross(x) + x
        logit_RK: Tensor = self.out(torch.cat([x, self.deep(x0)], dim=1)) + (prior_RPK * self.prior_PK).sum(dim=1)
        return logit_RK


class LearnedRanker:
    """A ranking network that learns online, by Adam (table rows that a step does not touch stay the same)."""

    def __init__(self, model: DIN, lr: float) -> None:
        self.model, self.rates = model, Rates(model.prior_PK.shape[1])
        tables = [model.item_VD.weight, model.hashed_HD.weight]
        for table in (model.item_VD, model.hashed_HD):
            table.sparse = True
        self.sparse = torch.optim.SparseAdam(tables, lr=lr)
        others = [each for each in model.parameters() if all(each is not table for table in tables)]
        self.dense = torch.optim.Adam(others, lr=lr, foreach=True)

    def over(self, step: Step) -> NDArray[np.float64]:
        """(R, K)."""
        batch = step.batch
        where, rows = batch.target_R, step.row_n[batch.target_R]
        done_RK, num_R = done_before(batch.bits_n, batch.num_kinds, batch.starts_B1, batch.owner_n[where], where)
        prior_RPK = torch.from_numpy(self.rates.prior(rows, done_RK, num_R))
        past_RL, done_RLK = history(step, self.model.context)
        places = torch.from_numpy(columns(step))
        logit_RK = self.model(torch.from_numpy(rows), places, past_RL, done_RLK, prior_RPK)
        learned_RK, is_new_R = torch.from_numpy(batch.learned_RK), torch.from_numpy(batch.is_new_R)
        loss = ranking_loss(logit_RK, learned_RK, is_new_R, "reversal").mean()
        for optimiser in (self.sparse, self.dense):
            optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.sparse.step()  # type: ignore[no-untyped-call]
        self.dense.step()
        self.rates.learn(rows, batch.learned_RK, batch.is_new_R)
        return np.asarray(torch.sigmoid(logit_RK.detach()).double().numpy())


def history(step: Step, context: int) -> tuple[Tensor, Tensor]:
    """(R, L) rows before each target, newest first, and (R, L, K) their kinds."""
    batch = step.batch
    first_R = batch.starts_B1[batch.owner_n[batch.target_R]]
    length = max(1, min(context, int((batch.target_R - first_R).max(initial=0))))
    at_RL = batch.target_R[:, None] - 1 - np.arange(length)[None]
    there_RL = at_RL >= first_R[:, None]
    at_RL = np.maximum(at_RL, 0)
    done_RLK = unpack_kinds(batch.bits_n[at_RL].reshape(-1), batch.num_kinds).reshape(*at_RL.shape, -1)
    done_RLK = np.where(there_RL[..., None], done_RLK, 0.0).astype(np.float32)
    return torch.from_numpy(np.where(there_RL, step.row_n[at_RL], 0)), torch.from_numpy(done_RLK)
