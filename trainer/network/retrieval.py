"""The item rows that a step's retrieval loss is computed over, and that loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kernels.transfer import to_device
from model.distinct import distinct
from model.embedding import EmbeddingTable
from trainer.config import TrainerConfig
from trainer.network.frequency import FrequencyEstimator
from trainer.network.losses import (
    draw_negatives,
    exact_retrieval_loss,
    log_expected_draws,
    pick_in_batch,
    sampled_retrieval_loss,
)

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class RetrievalRows:
    """``rows_U`` (U,): all rows of the item table (``exact``), or those that the step reads and its negatives."""

    rows_U: Int64
    negatives: Int64
    exact: bool

    @staticmethod
    def choose(
        items: EmbeddingTable, config: TrainerConfig, step: int, input_rows_n: Int64, target_row_R: Int64
    ) -> RetrievalRows:
        """All rows, as long as there are at most ``full_softmax_max_items``; else uniform negatives are drawn."""
        num_live = items.num_live
        if num_live <= config.full_softmax_max_items:
            return RetrievalRows(np.arange(items.num_rows), np.zeros(0, np.int64), exact=True)
        negatives = items.live_at(draw_negatives(num_live, config.num_negatives, config.seed, step))
        read = np.concatenate([np.zeros(1, np.int64), input_rows_n, target_row_R, negatives])
        return RetrievalRows(distinct(read), negatives, exact=False)

    def places(self, rows_N: Int64) -> Int64:
        """(N,) where these rows stand in ``rows_U``."""
        return rows_N if self.exact else np.searchsorted(self.rows_U, rows_N)

    def loss(
        self,
        query_RD: Tensor,
        table_UD: Tensor,
        target_row_R: Int64,
        items: EmbeddingTable,
        frequency: FrequencyEstimator,
        config: TrainerConfig,
        step: int,
    ) -> Tensor:
        """(R,) cross entropy of the targets, over all live items or against in-batch and uniform negatives."""
        device, backend = query_RD.device, config.backend
        target = to_device(self.places(target_row_R), device)
        if self.exact:
            live_U = to_device(items.live[: items.num_rows] & (self.rows_U > 0), device)
            return exact_retrieval_loss(query_RD, table_UD, target, live_U, backend)
        drawn_S, log_draws_S = self.draws(target_row_R, items, frequency, config, step)
        negative = to_device(self.places(drawn_S), device)
        return sampled_retrieval_loss(query_RD, table_UD, target, negative, to_device(log_draws_S, device), backend)

    def draws(
        self,
        target_row_R: Int64,
        items: EmbeddingTable,
        frequency: FrequencyEstimator,
        config: TrainerConfig,
        step: int,
    ) -> tuple[Int64, NDArray[np.float32]]:
        """(S,) rows of the negatives, the batch's own targets first, and the log of how often each is expected."""
        in_batch = pick_in_batch(target_row_R, config.num_negatives, config.seed, step)
        drawn_S = np.concatenate([in_batch, self.negatives])
        share_S, num_uniform = frequency.share(drawn_S), len(self.negatives)
        return drawn_S, log_expected_draws(share_S, len(in_batch), len(target_row_R), num_uniform, items.num_live)
