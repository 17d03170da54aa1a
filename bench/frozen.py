"""A learner frozen at some moment: it predicts what follows without learning it, like a server that gets no newer
version. Users' histories are up to date."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from bench.events import rank
from kernels.memory import MemoryEvents
from model.embedding import EmbeddingTable
from model.memory_events import events_of
from model.rates import probability
from trainer.batch import JaggedBatch, shorten
from trainer.checkpoint import Checkpoint
from trainer.evaluator import Leaf
from trainer.forward import ForwardPass
from trainer.snapshot import learner_arrays, restore_learner
from trainer.step import Learner

Int64 = NDArray[np.int64]
KNOWN = -1e29
"""Items that were never seen score below this (`kernels.memory.memory_scores`)."""


class Frozen(Learner):
    """A copy of ``learner``, which may continue to learn."""

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner.model_config, learner.config, learner.device)
        self.forward_pass = LookupPass(self.network, self.frequency, self.rates)
        arrays = {name: np.array(array) for name, array in learner_arrays(learner).items()}
        meta = {"model": self.model_config.as_dict(), "trainer": self.config.learning_dict()}
        restore_learner(self, Checkpoint(learner.num_steps, arrays, meta))

    @torch.no_grad()
    def predict(self, batch: JaggedBatch, num_rows: int | None = None) -> tuple[Int64, NDArray[np.float64]]:
        """(S,) ranks of the choices of a batch, 0 for an item that was not known, in the batch's order; and (R, K)
        probabilities of the kinds. ``num_rows``: only rows below compete."""
        forward = self.forward(shorten(batch, self.max_context), self.newest_event_ms, batch)
        where = batch.target_R[batch.is_wanted_R]
        row_n = self.items.lookup(batch.item_n)
        no_choices = np.zeros(len(where), np.bool_)
        events = events_of(
            row_n, batch.bits_n, batch.time_ms_n, batch.starts_B1, batch.owner_n[where], where,
            batch.time_ms_n[where], self.model_config, is_chosen_R=no_choices,
        )  # fmt: skip
        row_S = row_n[where]
        events = _left_out(events, row_S, leaves_out=self.memory.leaves_out_repeats)
        table_VD = self.model.retrieval_table(self.items.weight[: self.items.num_rows])
        score_SV = (forward.query_SD @ table_VD.T).cpu().numpy()
        self.memory.grow(self.items.num_rows)
        self.memory.score(events, score_SV)
        ranks = np.zeros(len(where), np.int64)
        for s, row in enumerate(row_S.tolist()):
            score_V = score_SV[s, :num_rows]
            if 0 < row < len(score_V) and score_V[row] > KNOWN:
                ranks[s] = rank(score_V, row, ())
        odds = self.rates.score(self.odds_events(batch, forward.target_row_R, forward.logits_RK))
        return ranks, probability(odds)


class LookupPass(ForwardPass):
    """A forward pass that gives no rows to new keys."""

    def target_rows(self, batch: JaggedBatch) -> Int64:
        """(R,) rows of the targets' items."""
        return self._items.lookup(batch.item_n[batch.target_R])

    def sum_rows(self, table: EmbeddingTable, keys_nF: Int64, leaves: list[Leaf]) -> Tensor | None:
        """(n, M) the sum of each interaction's rows."""
        del leaves
        if table.num_rows == 1 and not keys_nF.any():
            return None
        rows_nF = torch.from_numpy(table.lookup(keys_nF.reshape(-1)).reshape(keys_nF.shape))
        return F.embedding(rows_nF.to(table.weight.device), table.weight).sum(dim=1)


def _left_out(events: MemoryEvents, row_S: Int64, *, leaves_out: bool) -> MemoryEvents:
    """The same, without items that the user has met, except the choice itself."""
    parts = [
        events.met_rows[begin:end] if leaves_out else events.met_rows[:0]
        for begin, end in zip(events.met_begin_R, events.met_end_R, strict=True)
    ]
    parts = [part[part != row] for part, row in zip(parts, row_S, strict=True)]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    begins = ends - np.array([len(part) for part in parts], np.int64)
    rows = np.concatenate([events.met_rows[:0], *parts])
    return dataclasses.replace(events, met_rows=rows, met_begin_R=begins, met_end_R=ends)
