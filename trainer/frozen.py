"""A learner frozen at some moment: it predicts what follows without learning from it, like a server that gets no newer
version. Users' histories stay up to date."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from kernels.memory import memory_logits
from kernels.transfer import ToHost
from model.config import ModelConfig
from model.embedding import EmbeddingTable
from model.memory_events import events_of
from model.rates import probability
from trainer.checkpoint.reading import Checkpoint
from trainer.checkpoint.snapshot import learner_arrays, restore_learner
from trainer.config import TrainerConfig
from trainer.copies.rows import Arrays
from trainer.examples.batch import JaggedBatch
from trainer.examples.context import shorten
from trainer.learner.forward import ForwardPass
from trainer.learner.step import Learner
from trainer.metrics.evaluator import Forward, Leaf
from trainer.metrics.prequential import rank_among

Int64 = NDArray[np.int64]
KNOWN = -1e29
"""Items that were never seen or are left out score below this (`kernels.memory.memory_scores`)."""


class Frozen(Learner):
    """A learner that never learns, restored from a checkpoint's ``arrays``."""

    def __init__(self, model: ModelConfig, trainer: TrainerConfig, device: torch.device, arrays: Arrays) -> None:
        still = dataclasses.replace(trainer, cuda_graphs=False, dropout=0.0, memory_group=1, shards=1)
        super().__init__(model, still, device, threads=False)
        self.forward_pass = LookupPass(self.network, self.frequency, self.rates)
        meta = {"model": model.as_dict(), "trainer": still.learning_dict()}
        restore_learner(self, Checkpoint(0, arrays, meta))

    @staticmethod
    def of(learner: Learner) -> Frozen:
        """A copy of ``learner``, which may continue to learn."""
        arrays = {name: np.array(array) for name, array in learner_arrays(learner).items()}
        return Frozen(learner.model_config, learner.config, learner.device, arrays)

    @torch.no_grad()
    def predict(self, batch: JaggedBatch, num_rows: int | None = None) -> tuple[Int64, NDArray[np.float64]]:
        """(S,) ranks of the choices of a batch, 0 for an item that was not known or is left out, in order; and (R, K)
        probabilities of the kinds. ``num_rows``: only rows below compete."""
        forward = self._look(batch)
        ranks = self._ranks(batch, forward, np.arange(int(batch.is_wanted_R.sum())), num_rows)
        odds = self.rates.score(self.scoring.ranking_pass.ask(batch, forward.target_row_R, ToHost(forward.logits_RK)))
        return ranks, probability(odds)

    @torch.no_grad()
    def rank_choices(self, batch: JaggedBatch, choice_C: Int64) -> Int64:
        """(C,) ranks of these of the batch's choices, as `predict` says."""
        return self._ranks(batch, self._look(batch), choice_C)

    def _look(self, batch: JaggedBatch) -> Forward:
        return self.forward(shorten(batch, self.max_context), self.newest_event_ms, batch)

    def _ranks(self, batch: JaggedBatch, forward: Forward, choice_C: Int64, num_rows: int | None = None) -> Int64:
        where = batch.target_R[batch.is_wanted_R][choice_C]
        row_n = self.items.lookup(batch.item_n)
        no_choices = np.zeros(len(where), np.bool_)
        events = events_of(
            row_n, batch.bits_n, batch.time_ms_n, batch.starts_B1, batch.owner_n[where], where,
            batch.time_ms_n[where], self.model_config, is_chosen_R=no_choices,
        )  # fmt: skip
        row_C = row_n[where]
        if not self.memory.leaves_out:
            events = dataclasses.replace(events, met_end_R=events.met_begin_R)
        score_CV = self._logits(forward, choice_C)
        self.memory.grow(self.items.num_rows)
        self.memory.score(events, score_CV)
        ranks = np.zeros(len(where), np.int64)
        for c, row in enumerate(row_C.tolist()):
            score_V = score_CV[c, :num_rows]
            if 0 < row < len(score_V) and score_V[row] > KNOWN:
                ranks[c] = rank_among(score_V, row, ())
        return ranks

    def _logits(self, forward: Forward, choice_C: Int64) -> NDArray[np.float32]:
        """(C, V) the network's logits; the caller may overwrite them."""
        choices = torch.from_numpy(choice_C).to(forward.query_SD.device)
        if forward.logit_SV is not None:
            return forward.logit_SV[choices].cpu().numpy()
        query_CD, table_VD = forward.query_SD[choices].cpu().numpy(), self.items.store.array
        return memory_logits(query_CD, table_VD, self.items.num_rows, self.model_config.item_width - 1)


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
        return F.embedding(rows_nF.to(table.weight.device), table.weight).float().sum(dim=1)
