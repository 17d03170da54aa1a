"""The odds' part of a step: they predict, learn and count each kind, in the order of the targets' times."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from kernels.beside import Beside
from kernels.odds import OddsEvents
from kernels.transfer import ToHost
from model.attributes import alike_of, attributes_of, pauses
from model.config import ModelConfig
from model.embedding import EmbeddingTable
from model.rates import Rates, probability
from trainer.examples.batch import JaggedBatch
from trainer.metrics.evaluator import Forward, Ranked

Int64 = NDArray[np.int64]


class RankingPass:
    """Passes of ``rates``; ``tables`` have the rows of domains and features."""

    def __init__(self, rates: Rates, tables: Mapping[str, EmbeddingTable], config: ModelConfig) -> None:
        self._rates, self._tables, self._config = rates, tables, config

    def begin(
        self, batch: JaggedBatch, forward: Forward, seen_R: Int64, beside: Beside | None = None
    ) -> Callable[[], Ranked]:
        """Predict the batch's targets, then count them and learn those whose outcomes are known, on the thread
        ``beside``; returns what waits for the predictions. ``seen_R``: the targets' rows before the batch."""
        by_rate_RK = self._rates.predict(seen_R)
        on_host = forward.on_host or ToHost(forward.logits_RK)
        events = self.ask(batch, forward.target_row_R, on_host)
        number_R = self._rates.arrivals.number(batch.key_R, batch.is_new_R, events.order_R)
        logits = self._rates.begin(events, number_R, beside)
        return lambda: Ranked(probability(logits()), by_rate_RK, number_R)

    def ask(self, batch: JaggedBatch, target_row_R: Int64, logits_RK: ToHost) -> OddsEvents:
        """The batch's targets as events; ``logits_RK``: the network's, which are waited for last."""
        target_R, owner_R = batch.target_R, batch.owner_R
        alike_nL = alike_of(batch.domain_n, batch.feature_nF, self._config)
        time_ms_R, last_ms_R = batch.time_ms_n[target_R], batch.time_ms_n[batch.previous_R]
        pause_R = pauses(time_ms_R, last_ms_R, batch.previous_R >= 0)
        features_RF = np.concatenate([batch.feature_nF[target_R], batch.user_feature_BF[owner_R]], axis=1)
        return OddsEvents(
            row_R=target_row_R.astype(np.int32),
            item_R=batch.item_n[target_R],
            attribute_RA=attributes_of(self._tables, batch.domain_n[target_R], features_RF, pause_R, self._config),
            bits_R=batch.learned_bits_R,
            is_new_R=batch.is_new_R.astype(np.uint8),
            order_R=np.argsort(time_ms_R, kind="stable"),
            past_item_n=batch.item_n,
            past_bits_n=batch.bits_n,
            past_begin_R=np.maximum(batch.starts_B1[owner_R], target_R - self._config.max_context),
            past_end_R=target_R,
            alike_RL=alike_nL[target_R],
            past_alike_nL=alike_nL,
            kept_R=np.full(len(target_R), -1, np.int32),
            network_RK=logits_RK.wait()[0],
        )
