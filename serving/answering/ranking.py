"""Ranks candidates: how likely each kind of action is on each of them, as the next thing that a user meets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.odds import OddsEvents
from model.attributes import alike_of, attributes_of, pauses
from model.config import ModelConfig
from model.hstu import from_log_value
from model.rates import probability
from model.tokens import ITEMS
from serving.answering.request import Request, Result
from serving.model.columns import Columns, user_feature_rows
from serving.model.network import KeysValues
from serving.users.histories import Histories
from serving.versions.manager import HeldVersion

Int64 = NDArray[np.int64]


class Ranker:
    """Ranks after a history whose keys and values are known. At most ``candidates_per_pass`` are computed at once."""

    def __init__(self, histories: Histories, candidates_per_pass: int) -> None:
        self._histories = histories
        self._candidates_per_pass = candidates_per_pass

    def rank(self, version: HeldVersion, request: Request, columns: Columns, past: KeysValues) -> Result:
        """The candidates' probabilities. ``columns``: the history; ``past``: the keys and values of all its tokens."""
        assert request.candidates is not None
        candidates, network, step = request.candidates, version.network, self._candidates_per_pass
        outputs = [
            self._outputs(version, request, columns, past, candidates[at : at + step])
            for at in range(0, len(candidates), step)
        ]
        y_CM, told = torch.cat(outputs), columns.told
        probabilities = self._odds(version, request, told, self._logits(version, told, candidates, y_CM))
        known = (version.tables[ITEMS].lookup(candidates) > 0) & ~self._histories.is_removed(candidates)
        assert probabilities.shape == (len(candidates), len(network.config.kinds))
        values = from_log_value(network.model.values(y_CM)).cpu().numpy() if network.config.predict_value else None
        return Result(candidates, probabilities, known, values)

    def _outputs(
        self, version: HeldVersion, request: Request, columns: Columns, past: KeysValues, candidates: Int64
    ) -> Tensor:
        """(C, M) the layers' outputs. The candidates share history, position and time, and do not see each other."""
        network = version.network
        unseen = self._columns(request, columns, network.config, candidates)
        if network.config.user_tokens:  # the user's features are tokens of the history
            unseen = replace(unseen, user_features=np.zeros_like(unseen.user_features))
        return network.score_candidates(network.item_tokens(version.tables, unseen), request.now_ms, past)

    def _logits(self, version: HeldVersion, columns: Columns, candidates: Int64, y_CM: Tensor) -> Tensor:
        """(C, K) the network's logits, after the interactions of ``columns``."""
        network, num = version.network, len(candidates)
        assert version.tables.rates is not None
        rows_C, done_K = version.tables[ITEMS].lookup(candidates), columns.num_by_kind(len(network.config.kinds))
        prior_CPK = version.tables.rates.prior(
            rows_C, np.repeat(done_K[None], num, axis=0), np.full(num, float(len(columns)))
        )
        return network.model.rank_logits(y_CM, network.tensor(prior_CPK))

    def _odds(self, version: HeldVersion, request: Request, columns: Columns, logit_CK: Tensor) -> NDArray[np.float32]:
        """(C, K) probabilities from the network's logits and the counts."""
        assert request.candidates is not None
        assert version.tables.rates is not None
        candidates, config = request.candidates, version.network.config
        num, num_past = len(candidates), len(columns)
        unseen = self._columns(request, columns, config, candidates)
        last_ms_C = np.full(num, columns.time_ms_n[-1] if num_past else 0)
        pause_C = pauses(unseen.time_ms_n, last_ms_C, num_past > 0)
        features_CF = np.concatenate([unseen.features, unseen.user_features], axis=1)
        logits = version.tables.rates.score(
            OddsEvents(
                row_R=version.tables[ITEMS].lookup(candidates).astype(np.int32),
                item_R=candidates,
                attribute_RA=attributes_of(version.tables.tables, unseen.domain_n, features_CF, pause_C, config),
                network_RK=logit_CK.float().cpu().numpy(),
                bits_R=unseen.bits_n,
                is_new_R=np.ones(num, np.uint8),
                order_R=np.arange(num),
                past_item_n=np.ascontiguousarray(columns.item_n),
                past_bits_n=np.ascontiguousarray(columns.bits_n),
                past_begin_R=np.full(num, max(0, num_past - config.max_context)),
                past_end_R=np.full(num, num_past),
                alike_RL=alike_of(unseen.domain_n, unseen.features, config),
                past_alike_nL=alike_of(columns.domain_n, columns.features, config),
                kept_R=np.full(num, -1, np.int32),
            )
        )
        return probability(logits).astype(np.float32)

    def _columns(self, request: Request, columns: Columns, config: ModelConfig, candidates: Int64) -> Columns:
        """The candidates as interactions that have not happened yet."""
        domain = request.domain or (int(columns.domain_n[-1]) if len(columns) else 0)
        features = self._histories.items.features_of(candidates, config.num_features)
        user_features = user_feature_rows(request.user_features, config, len(candidates))
        return Columns.of_candidates(candidates, request.now_ms, domain, features, user_features)
