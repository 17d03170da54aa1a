"""What sequence models share: one pass, each step predicted before it is learned, and the loss of Headrace's network.

A model turns a step's sequences into a query for each choice; scores are inner products or cosines with the items'
rows, plus a bias per item. The loss is the exact softmax over known items up to ``EXACT`` of them, and above that the
sampled one, with Headrace's weights (`trainer.network.losses`). The optimiser is Adam, as published for all of these
models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.rivals.sequences import Sequences, sequences
from bench.streams.events import Step
from model.distinct import counted
from trainer.network.frequency import FrequencyEstimator
from trainer.network.losses import draw_negatives, log_expected_draws, pick_in_batch

EXACT, NUM_NEGATIVES = 10_000, 1024


class SequenceModel(nn.Module):
    """A network over sequences of items. ``choices_only``: it reads only what was chosen."""

    choices_only = True

    def __init__(self, num_rows: int, width: int, context: int, seed: int, *, cosine: float = 0.0) -> None:
        """``cosine``: 0 for inner products, otherwise the temperature of cosines."""
        super().__init__()
        torch.manual_seed(seed)
        self.width, self.context, self.cosine = width, context, cosine
        self.item_VD = nn.Parameter(torch.randn(num_rows + 1, width) * (0.02 if cosine else width**-0.5))
        self.bias_V = nn.Parameter(torch.zeros(num_rows + 1))
        self.start_D = nn.Parameter(torch.randn(width) * 0.02)

    def encode(self, seqs: Sequences) -> Tensor:
        """(B, L, width): the state after each interaction."""
        raise NotImplementedError

    def queries(self, seqs: Sequences) -> Tensor:
        """(A, width)."""
        y_BLD = self.encode(seqs)
        found_AD = y_BLD[seqs.owner_A, seqs.last_A.clamp(min=0)]
        return torch.where((seqs.last_A >= 0)[:, None], found_AD, self.start_D)

    def logits(self, query_AD: Tensor, first: int, last: int) -> Tensor:
        """(A, last - first) scores of those rows."""
        return self.against(query_AD, self.item_VD[first:last], self.bias_V[first:last])

    def against(self, query_AD: Tensor, item_UD: Tensor, bias_U: Tensor) -> Tensor:
        """(A, U) scores of items."""
        if self.cosine:
            query_AD, item_UD = F.normalize(query_AD, dim=1) / self.cosine, F.normalize(item_UD, dim=1)
        return query_AD @ item_UD.T + bias_U


class Gradient:
    """A sequence model that learns online."""

    def __init__(self, model: SequenceModel, lr: float, kinds: tuple[int, int], seed: int, table_lr: float = 0) -> None:
        """``kinds``: positive and negative bits. ``table_lr``: the items' learning rate; 0: ``lr``."""
        self.model, self.kinds, self.seed, self.num_steps = model, kinds, seed, 0
        tables = [model.item_VD, model.bias_V]
        others = [each for each in model.parameters() if all(each is not table for table in tables)]
        groups: list[dict[str, Any]] = [{"params": others, "lr": lr}, {"params": tables, "lr": table_lr or lr}]
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.98), foreach=True)
        self.frequency = FrequencyEstimator(1_000_000.0)

    def over(self, step: Step) -> NDArray[np.float32]:
        """(A, 1 + rows known after the step): scores of each choice by what was learned from earlier steps."""
        num_rows = step.num_known + 1
        if not len(step.asked):
            return np.zeros((0, num_rows), np.float32)
        seqs = sequences(step, self.model.context, self.kinds, choices_only=self.model.choices_only)
        query_AD = self.model.queries(seqs)
        with torch.set_grad_enabled(num_rows <= EXACT):
            logit_AV = self.model.logits(query_AD, 0, num_rows)
        score_AV = logit_AV.detach().clone().numpy()
        self._learn(self.loss(seqs, query_AD, logit_AV))
        self.frequency.add(*counted(seqs.target_A.numpy()))
        return score_AV

    def loss(self, seqs: Sequences, query_AD: Tensor, logit_AV: Tensor) -> Tensor:
        """Mean cross entropy of the choices."""
        if logit_AV.shape[1] <= EXACT:
            return F.cross_entropy(logit_AV[:, 1:], seqs.target_A - 1)
        return self._sampled_loss(seqs.target_A, query_AD, logit_AV.shape[1] - 1)

    def _sampled_loss(self, target_A: Tensor, query_AD: Tensor, num_known: int) -> Tensor:
        rows = target_A.numpy()
        in_batch = pick_in_batch(rows, NUM_NEGATIVES, self.seed, self.num_steps)
        uniform = 1 + draw_negatives(num_known, NUM_NEGATIVES, self.seed, self.num_steps)
        drawn = np.concatenate([in_batch, uniform])
        share = self.frequency.share(drawn)
        log_draws = log_expected_draws(share, len(in_batch), len(rows), len(uniform), num_known)
        drawn_U = torch.from_numpy(drawn)
        logit_AU = self.model.against(query_AD, self.model.item_VD[drawn_U], self.model.bias_V[drawn_U])
        logit_AU = logit_AU - torch.from_numpy(log_draws)
        logit_AU = logit_AU.masked_fill(drawn_U[None] == target_A[:, None], -torch.inf)
        own_AA = self.model.against(query_AD, self.model.item_VD[target_A], self.model.bias_V[target_A])
        both = torch.cat([own_AA.diagonal()[:, None], logit_AU], dim=1)
        return F.cross_entropy(both, torch.zeros(len(rows), dtype=torch.int64))

    def _learn(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimiser.step()
        self.num_steps += 1
