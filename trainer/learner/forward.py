"""The network's predictions for a batch, and what learning from them needs: rows, losses, gradients.

There are four ways to the same numbers, up to rounding. Steps whose loss is over the whole catalogue run on the CPU in
C++ without autograd (`trainer.network.direct_step`), or on a GPU as CUDA graphs (`trainer.network.graph_step`); with
`TrainerConfig.shards`, several processes share a step (`trainer.ranks.sharding`); autograd computes everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from kernels import Tail
from kernels.step_inputs import StepInputs
from kernels.transfer import to_device
from model.embedding import EmbeddingTable
from model.kinds import done_before
from model.lookup import rows_at
from model.rates import Rates
from model.tokens import ITEMS, side_inputs, token_times
from trainer.examples.batch import JaggedBatch
from trainer.examples.changes import with_changes
from trainer.metrics.evaluator import Forward, Leaf
from trainer.network.choice_weights import ChoiceWeights
from trainer.network.direct_step import output_places
from trainer.network.frequency import FrequencyEstimator
from trainer.network.graph import Captures, PaddedEncoder, times_in_order
from trainer.network.graph_step import PaddedStep, size_of
from trainer.network.losses import mean_or_zero
from trainer.network.retrieval import RetrievalRows
from trainer.ranks.shard_pass import Network, first_read, tail_of
from trainer.ranks.sharding import Sharding, in_use

Int64 = NDArray[np.int64]
OnRows = Callable[[Int64], None]


class ForwardPass:
    """The passes of one network. New items, domains and features get their rows."""

    def __init__(
        self, network: Network, frequency: FrequencyEstimator, rates: Rates, sharding: Sharding | None = None
    ) -> None:
        self._model, self._tables, self._config = network.model, network.tables, network.config
        self._items, self._device = network.tables[ITEMS], network.device
        self._frequency, self._rates, self.sharding = frequency, rates, sharding
        self._direct = network.direct
        self._weights = ChoiceWeights.of(self._model.config, self._config)
        self._predicts_value = self._model.config.predict_value
        self._graphs: PaddedEncoder | None = None
        self.step_graphs: PaddedStep | None = None
        # Dropout takes a new seed in each step; a graph would replay the one that it was captured with.
        if self._config.cuda_graphs and self._device.type == "cuda" and self._config.dropout == 0:
            captures, through = Captures(wanted=True), self._config.context_gradient
            self._graphs = PaddedEncoder(self._model, captures, context_gradient=through)
            if not self._predicts_value:
                self.step_graphs = PaddedStep(
                    self._model, captures, feedback=self._config.late_feedback, context_gradient=through,
                    rank_weight=self._config.rank_weight,
                )  # fmt: skip
        self._step = self._now_ms = 0

    def __call__(
        self, batch: JaggedBatch, whole: JaggedBatch, step: int, now_ms: int, on_rows: OnRows | None = None
    ) -> Forward:
        """Predictions for a batch's targets, and what learning from them needs. Admits their items to the tables.

        ``whole``: the same targets with all that is known of their users; rates are computed from it. ``on_rows``: gets
        the targets' rows (R,), before the rest.
        """
        self._step, self._now_ms = step, now_ms
        if self._model.config.user_tokens:
            batch = with_changes(batch)
        input_rows_n = self._items.lookup(batch.item_n)
        target_row_R = self.target_rows(batch)
        if on_rows is not None:
            on_rows(target_row_R)
        chosen = RetrievalRows.choose(self._items, self._config, self._step, input_rows_n, target_row_R)
        rows_U, exact = chosen.rows_U, chosen.exact
        if self.sharding is not None:
            prior_RPK = self.prior(whole, target_row_R)
            return self.sharding(batch, step, now_ms, chosen, input_rows_n, target_row_R, prior_RPK)
        is_graphed = exact and self.step_graphs is not None and self.step_graphs.works
        if is_graphed and times_in_order(batch.time_ms_n, batch.starts_B1):
            inputs = self._step_inputs(batch, whole, input_rows_n, target_row_R)
            return self._graphed_forward(batch, inputs, rows_U, target_row_R)
        is_usual = not (self._weights.differ or self._predicts_value)
        if exact and is_usual and self._direct is not None and self._direct.fits(batch, len(rows_U)):
            return self._direct_forward(batch, whole, input_rows_n, target_row_R, rows_U)
        wanted = batch.choice_S
        learned = np.flatnonzero(target_row_R[wanted] > 0)
        leaf_UD = self._items.gather(rows_U)
        leaves = [Leaf(self._items, rows_U, leaf_UD)]
        side_nM = self._side_inputs(batch, leaves)
        kinds_nK, value_n = self._tensor(batch.kinds_nK), self._tensor(batch.value_n)
        x_TM = self._model.tokens(leaf_UD, self._tensor(chosen.places(input_rows_n)), kinds_nK, value_n, side_nM)
        tail = tail_of(batch)
        y_SM = self._encode(batch, x_TM, tail)
        item_RM, before_SM = self._outputs(batch, wanted, y_SM, tail)
        query_SD = self._model.retrieval_query(before_SM)
        table_UD = self._model.retrieval_table(leaf_UD)
        loss_S = chosen.loss(
            query_SD if len(learned) == len(wanted) else query_SD.index_select(0, self._tensor(learned)), table_UD,
            target_row_R[wanted][learned], self._items, self._frequency, self._config, self._step,
        )  # fmt: skip
        if self._weights.differ:
            loss_S = loss_S * self._tensor(self._weights.over(batch, wanted[learned]))
        logits_RK = self._model.rank_logits(item_RM, self._tensor(self.prior(whole, target_row_R)))
        return Forward(
            query_SD.detach(), table_UD.detach(), exact, logits_RK, target_row_R, mean_or_zero(loss_S), leaves,
            value_R=self._model.values(item_RM) if self._predicts_value else None,
        )  # fmt: skip

    def _direct_forward(
        self, batch: JaggedBatch, whole: JaggedBatch, input_rows_n: Int64, target_row_R: Int64, rows_V: Int64
    ) -> Forward:  # fmt: skip
        assert self._direct is not None
        leaves = [Leaf(self._items, rows_V, self._items.weight[: len(rows_V)])]
        with torch.no_grad():
            side_nM = self._side_inputs(batch, leaves)
        prior_RPK = self.prior(whole, target_row_R)
        return self._direct(
            batch, tail_of(batch), leaves, side_nM, input_rows_n, target_row_R, prior_RPK, self._step
        )  # fmt: skip

    def _step_inputs(
        self, batch: JaggedBatch, whole: JaggedBatch, input_rows_n: Int64, target_row_R: Int64
    ) -> StepInputs:  # fmt: skip
        weight_S = None
        if self._weights.differ:
            is_learned_S = target_row_R[batch.choice_S] > 0
            weight_S = is_learned_S.astype(np.float32)
            weight_S[is_learned_S] = self._weights.over(batch, batch.choice_S[is_learned_S])
        return StepInputs(
            input_rows_n, batch.time_ms_n, batch.starts_B1, batch.target_R, batch.previous_R, batch.choice_S,
            target_row_R, batch.bits_n, batch.learned_bits_R, batch.is_new_R, self._items.live, batch.value_n,
            self.prior(whole, target_row_R), weight_S,
        )  # fmt: skip

    def _graphed_forward(
        self, batch: JaggedBatch, inputs: StepInputs, rows_U: Int64, target_row_R: Int64
    ) -> Forward:  # fmt: skip
        assert self.step_graphs is not None
        weight_VD = self._items.weight.float()
        if not self._config.graph_gradients:
            weight_VD = F.pad(weight_VD, (0, 0, 0, size_of(inputs).rows - len(weight_VD))).requires_grad_()
        leaves = [Leaf(self._items, rows_U, weight_VD)]
        side_nM = self._side_inputs(batch, leaves)
        if self._config.graph_gradients:
            out, leaves[0].direct_UD, gradient_nM = self.step_graphs.learn(weight_VD, inputs, side_nM)
            if side_nM is not None and gradient_nM is not None:
                torch.autograd.backward(side_nM, gradient_nM)
        else:
            out = self.step_graphs(weight_VD, inputs, side_nM)
        return Forward(
            out.query_SD, out.table_VD[: len(rows_U)], True, out.logits_RK, target_row_R, out.retrieval, leaves,
            out.ranking, has_gradients=self._config.graph_gradients,
        )  # fmt: skip

    def prior(self, batch: JaggedBatch, target_row_R: Int64) -> NDArray[np.float32]:
        """(R, 2, K) each target's prior from rates alone (`Rates.prior`)."""
        done_RK, num_R = done_before(batch.bits_n, batch.num_kinds, batch.starts_B1, batch.owner_R, batch.target_R)
        return self._rates.prior(target_row_R, done_RK, num_R)

    def target_rows(self, batch: JaggedBatch) -> Int64:
        """(R,) rows of the targets' items. A new interaction counts as a sighting, feedback does not."""
        items_R, is_new_R = batch.item_n[batch.target_R], batch.is_new_R
        if is_new_R.all():
            return self._items.insert(items_R, self._now_ms, self._step)
        rows_R = np.zeros(len(items_R), np.int64)
        rows_R[is_new_R] = self._items.insert(items_R[is_new_R], self._now_ms, self._step)
        rows_R[~is_new_R] = self._items.lookup(items_R[~is_new_R])
        return rows_R

    def _encode(self, batch: JaggedBatch, x_TM: Tensor, tail: Tail) -> Tensor:
        """(S, M) outputs of the layers at the tail's tokens."""
        key_time_T, query_time_T = token_times(batch.time_ms_n, batch.query_time_n)
        offsets_B1 = 2 * batch.starts_B1
        in_order = times_in_order(key_time_T, offsets_B1) if self._device.type == "cuda" else None
        if self._graphs is not None and in_order:
            return tail.of(self._graphs(x_TM, offsets_B1, query_time_T, key_time_T, _is_read(batch)))
        return self._model.encode(
            x_TM,
            self._tensor(offsets_B1),
            self._tensor(query_time_T),
            self._tensor(key_time_T),
            tail=tail,
            context_gradient=self._config.context_gradient,
            dropouts=self._config.dropouts(self._model.config.num_layers),
            seed=self._step,
            in_order=in_order,
            backend=self._config.backend,
        )

    def _outputs(self, batch: JaggedBatch, wanted: Int64, y_SM: Tensor, tail: Tail) -> tuple[Tensor, Tensor]:
        """(R, M) outputs at each target's item; (S, M) those at the action before each choice (or the learnt start)."""
        with_start = torch.cat([y_SM, self._model.start_M[None]])
        places = output_places(batch, wanted, tail)
        places[places < 0] = len(y_SM)
        both = rows_at(self._tensor(places), with_start)
        return both[: batch.num_targets], both[batch.num_targets :]

    def _side_inputs(self, batch: JaggedBatch, leaves: list[Leaf]) -> Tensor | None:
        domain_n = batch.domain_n if self._model.config.use_domain else None

        def sum_rows(name: str, keys_nF: Int64) -> Tensor | None:
            return self.sum_rows(self._tables[name], keys_nF, leaves)

        return side_inputs(domain_n, batch.feature_nF, batch.side_feature_nF, sum_rows)

    def sum_rows(self, table: EmbeddingTable, keys_nF: Int64, leaves: list[Leaf]) -> Tensor | None:
        """(n, M) the sum of each interaction's rows, which become a leaf; None if the table is not in use."""
        if not in_use(table, keys_nF):
            return None
        rows_nF = table.insert(keys_nF.reshape(-1), self._now_ms, self._step).reshape(keys_nF.shape)
        rows_U, place = np.unique(rows_nF, return_inverse=True)
        place_nF = self._tensor(place.reshape(keys_nF.shape))
        leaf = Leaf(table, rows_U, table.gather(rows_U), place_nF)
        leaves.append(leaf)
        return rows_at(place_nF, leaf.values_UD).sum(dim=1)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return to_device(array, self._device)


def _is_read(batch: JaggedBatch) -> NDArray[np.bool_]:
    """(T,) which tokens belong to the tail (`tail_of`)."""
    return np.arange(batch.num_tokens) >= np.repeat(first_read(batch), 2 * np.diff(batch.starts_B1))
