"""One training step: predict a batch, score the predictions, then learn from it.

The order is fixed: the rows of items are looked up before the batch's own items enter the vocabulary, so the prediction
of a target rests only on the interactions before it and on the weights that earlier batches left. A target's own row
(new or not) is used by the loss alone.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from kernels import Tail, stochastic_length
from kernels.length import kept_length
from kernels.memory import MemoryOutcome, MemoryRules
from kernels.odds import OddsEvents
from model.config import ModelConfig
from model.embedding import EmbeddingTable
from model.hstu import HSTU
from model.memory import Memory
from model.rates import Rates, alike_of, attributes_of, done_before, probability
from model.tokens import DOMAINS, FEATURES, ITEMS, side_inputs, token_times
from trainer.baseline import PopularityBaseline
from trainer.batch import JaggedBatch, build_batch, shorten, take_interactions
from trainer.config import TrainerConfig
from trainer.direct_step import DirectStep, output_places
from trainer.evaluator import Evaluator, Forward, Leaf, Ranked, to_device
from trainer.frequency import FrequencyEstimator
from trainer.graph import Captures, PaddedEncoder, times_in_order
from trainer.graph_step import PaddedStep, StepInputs
from trainer.histories import TrainedHistories
from trainer.losses import mean_or_zero, ranking_loss
from trainer.metrics import PrequentialMetrics
from trainer.optim import AdamW, lr_scale
from trainer.recall import Recall
from trainer.retrieval import RetrievalRows
from wire.example import Example, Mark

Int64 = NDArray[np.int64]
MS_PER_DAY = 86_400_000.0


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did. Losses are means over targets, with the weights before the step."""

    step: int
    num_targets: int
    """Interactions that were new or got feedback."""
    num_tokens: int
    retrieval_loss: float
    ranking_loss: float
    seconds: float


class Learner:
    """Model, tables, optimiser, baselines and metrics: everything that a checkpoint holds, and what changes it.

    ``memory_thread``: run the memory on a thread of its own, beside the network; None: where the network is on a GPU.
    """

    def __init__(
        self,
        model: ModelConfig,
        trainer: TrainerConfig,
        device: torch.device | str = "cpu",
        *,
        memory_thread: bool | None = None,
    ) -> None:
        self.model_config, self.config, self.device = model, trainer, torch.device(device)
        self.model = HSTU(model, seed=trainer.seed).to(self.device)
        self.optimiser = AdamW(list(self.model.parameters()), trainer)
        # Dropout takes a new seed in each step; a graph would replay the one that it was captured with.
        graphs = trainer.cuda_graphs and self.device.type == "cuda" and trainer.dropout == 0
        captures = Captures(self.device, wanted=True)
        through = trainer.context_gradient
        self._graphs = PaddedEncoder(self.model, captures, context_gradient=through) if graphs else None
        self.step_graphs = (
            PaddedStep(self.model, captures, feedback=trainer.feedback, context_gradient=through) if graphs else None
        )
        self._direct = self._direct_step()
        beside = self.device.type == "cuda" if memory_thread is None else memory_thread
        self._memory_thread = ThreadPoolExecutor(1, "memory") if beside else None
        self.items = self._table(model.item_width, salt=1, admit_after=trainer.admit_after)
        self.domains = self._table(model.model_width, salt=2)
        self.features = self._table(model.model_width, salt=3)
        rules = MemoryRules(seen_half_life=trainer.memory_half_life, exclude=str(trainer.exclude_seen))
        self.memory = Memory(model, rules, backend=trainer.backend)
        self.recall = Recall(self.memory, self.items, self.model)
        self.names: dict[int, str | int] = {}
        self.unpublished_names: dict[int, str | int] = {}
        self.unsaved_names: dict[int, str | int] = {}
        self.frequency = FrequencyEstimator(trainer.frequency_half_life)
        self.popularity = PopularityBaseline()
        self.rates = Rates(model, backend=trainer.backend)
        self.metrics = PrequentialMetrics(model.kinds, trainer.metric_window)
        self.evaluator = Evaluator(trainer, self.popularity, self.metrics)
        self.histories = TrainedHistories(model.max_context, trainer.history_bytes, model.num_features)
        """Users' interactions as of the last step. A checkpoint only names the users; the source restores the rest."""
        self.num_steps = 0
        self.num_interactions = 0
        self.num_feedback = 0
        self.newest_event_ms = 0
        self.newest_record_ms = 0

    def _direct_step(self) -> DirectStep | None:
        """The way of steps that fit it, where there is one: on the CPU, with the kernels."""
        is_possible = self.device.type == "cpu" and self.config.backend == "auto"
        return DirectStep(self.model, self.config) if is_possible else None

    def _table(self, width: int, salt: int, admit_after: int = 1) -> EmbeddingTable:
        return EmbeddingTable(
            width,
            init_std=self.config.row_init_std,
            seed=self.config.seed,
            salt=salt,
            admit_after=admit_after,
            device=self.device,
            backend=self.config.backend,
        )

    @property
    def tables(self) -> dict[str, EmbeddingTable]:
        """All embedding tables, by the names under which they are published."""
        return {ITEMS: self.items, DOMAINS: self.domains, FEATURES: self.features}

    def step(self, examples: Sequence[Example]) -> StepReport:
        """Predict, score, learn. Examples may bring nothing to learn, but there must be at least one."""
        started = time.perf_counter()
        if examples[0].mark is not None:
            self.obey(examples)
            return self._report(started, 0, 0)
        whole = build_batch(examples, self.histories, self.model_config)
        if not whole.num_targets:  # a step of the optimiser would move the weights by momentum alone
            self._remember(whole, None, examples, self.newest_event_ms)
            return self._report(started, 0, 0)
        batch = self._thin(shorten(whole, self.max_context))
        now_ms = max(self.newest_event_ms, int(whole.time_ms_n.max(initial=0)))
        known_V = self.items.live[: self.items.num_rows].copy()
        known_V[0] = False
        seen_rows_n = self.items.lookup(whole.item_n)
        forward = self.forward(batch, now_ms, whole)
        retrieval = forward.retrieval_loss
        ranking = forward.ranking_loss
        if ranking is None:
            ranking = mean_or_zero(self._ranking_loss(batch, forward.logits_RK))
        loss = retrieval + self.config.rank_weight * ranking
        if self._memory_thread is not None and forward.is_whole:
            # The memory runs while this thread launches the backward pass; neither reads what the other changes.
            asked = list(self.recall.ask(whole, forward, seen_rows_n, self.num_interactions))
            pending = self._memory_thread.submit(self.recall.answer, whole, asked)
            self._learn(forward, loss)
            ranked = self._rank(whole, forward, seen_rows_n)
            self.evaluator.count(whole, ranked, pending.result(), known_V, seen_rows_n, self.num_steps)
        else:
            recalled, ranked = self._recall(whole, forward, seen_rows_n), self._rank(whole, forward, seen_rows_n)
            self.evaluator.count(whole, ranked, recalled, known_V, seen_rows_n, self.num_steps)
            self._learn(forward, loss)
        self._remember(whole, forward, examples, now_ms)
        losses = float(retrieval.detach()), float(ranking.detach())
        return self._report(started, whole.num_targets, batch.num_tokens, losses)

    def obey(self, marks: Sequence[Example]) -> None:
        """Forget the users and items that are marked. What users did stays in the weights and counts that it shaped."""
        for each in marks:
            self.histories.obey(each)
            if each.mark is Mark.ITEM:
                self.remove_items({each.marked_item})
            elif each.mark is Mark.ITEM_BACK:
                self.items.unblock(np.array([each.marked_item], np.int64))
            self.newest_record_ms = max(self.newest_record_ms, each.newest_record_ms)

    def remove_items(self, item_hashes: Collection[int]) -> None:
        """Drop these items' rows, with all that is known of them, and learn of none of them again."""
        gone = sorted(set(item_hashes) - self.items.blocked)
        self.memory.grow(self.items.num_rows)
        self._release(self.items.block(np.array(gone, np.int64)))

    @property
    def max_context(self) -> int:
        """How many interactions before a user's first target a step computes."""
        kept = self.model_config.max_context
        return min(self.config.max_train_context, kept) if self.config.max_train_context else kept

    def _report(
        self, started: float, num_targets: int, num_tokens: int, losses: tuple[float, float] = (0.0, 0.0)
    ) -> StepReport:
        step, self.num_steps = self.num_steps, self.num_steps + 1
        return StepReport(step, num_targets, num_tokens, *losses, time.perf_counter() - started)

    def _recall(self, batch: JaggedBatch, forward: Forward, seen_rows_n: Int64) -> MemoryOutcome:
        """Let the memory predict, count and learn the batch; the outcomes of the choices (`trainer.recall`)."""
        return self.recall.answer(batch, self.recall.ask(batch, forward, seen_rows_n, self.num_interactions))

    def _rank(self, batch: JaggedBatch, forward: Forward, seen_rows_n: Int64) -> Ranked:
        """The odds of each kind are asked, learned and counted, in the order of the targets' times."""
        by_rate_RK = self.rates.predict(seen_rows_n[batch.target_R])
        logit_RK = self.rates.learn(
            self.odds_events(batch, forward.target_row_R, forward.logits_RK.detach()), batch.key_R
        )
        return Ranked(probability(logit_RK), by_rate_RK)

    def odds_events(self, batch: JaggedBatch, target_row_R: Int64, logits_RK: Tensor) -> OddsEvents:
        """What the rates are told and asked of a batch's targets."""
        target_R = batch.target_R
        owner_R = batch.owner_n[target_R]
        alike_nL = alike_of(batch.domain_n, batch.feature_nF, self.model_config)
        features_RF = np.concatenate([batch.feature_nF[target_R], batch.user_feature_BF[owner_R]], axis=1)
        return OddsEvents(
            row_R=target_row_R.astype(np.int32),
            item_R=batch.item_n[target_R],
            attribute_RA=attributes_of(self.tables, batch.domain_n[target_R], features_RF, self.model_config),
            network_RK=logits_RK.float().cpu().numpy(),
            bits_R=batch.learned_bits_R,
            is_new_R=batch.is_new_R.astype(np.uint8),
            order_R=np.argsort(batch.time_ms_n[target_R], kind="stable"),
            past_item_n=batch.item_n,
            past_bits_n=batch.bits_n,
            past_begin_R=np.maximum(batch.starts_B1[owner_R], target_R - self.model_config.max_context),
            past_end_R=target_R,
            alike_RL=alike_nL[target_R],
            past_alike_nL=alike_nL,
            kept_R=np.full(len(target_R), -1, np.int32),
        )

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return to_device(array, self.device)

    def _thin(self, batch: JaggedBatch) -> JaggedBatch:
        """Stochastic length: thin the context; everything from a user's first target on stays."""
        alpha = self.config.stochastic_length_alpha
        if alpha == 0.0:
            return batch
        max_kept = kept_length(2 * self.model_config.max_context, alpha)
        first_target_B = batch.target_R[np.searchsorted(batch.target_R, batch.starts_B1[:-1])]
        kept_T, _ = stochastic_length(
            torch.from_numpy(2 * batch.starts_B1),
            torch.from_numpy(batch.seed_B),
            max_kept=max_kept,
            must_keep_last_B=torch.from_numpy(2 * (batch.starts_B1[1:] - first_target_B)),
            backend=self.config.backend,
        )
        return take_interactions(batch, kept_T.numpy()[::2] // 2)

    def forward(self, batch: JaggedBatch, now_ms: int, whole: JaggedBatch | None = None) -> Forward:
        """Predictions for a batch's targets, and what learning from them needs. Admits their items to the tables.

        ``whole``: the same targets with all that is known of their users, if ``batch`` has less; rates are computed
        from it.
        """
        input_rows_n = self.items.lookup(batch.item_n)
        target_row_R = self._target_rows(batch, now_ms)
        wanted = np.flatnonzero(batch.is_wanted_R)
        learned_S = target_row_R[wanted] > 0
        chosen = RetrievalRows.choose(self.items, self.config, self.num_steps, input_rows_n, target_row_R)
        rows_U, exact = chosen.rows_U, chosen.exact
        if exact and self.step_graphs is not None and self.step_graphs.works:
            inputs = self._step_inputs(batch, whole or batch, input_rows_n, target_row_R)
            if times_in_order(inputs.time_n, 2 * inputs.starts_B1):
                return self._graphed_forward(batch, inputs, rows_U, target_row_R, now_ms)
        if exact and self._direct is not None and self._direct.fits(batch, len(rows_U)):
            return self._direct_forward(batch, whole or batch, input_rows_n, target_row_R, rows_U, now_ms)
        leaf_UD = self.items.gather(rows_U)
        leaves = [Leaf(self.items, rows_U, leaf_UD)]
        side_nM = self._side_inputs(batch, leaves, now_ms)
        kinds_nK, value_n = self._tensor(batch.kinds_nK), self._tensor(batch.value_n)
        x_TM = self.model.tokens(leaf_UD, self._tensor(chosen.places(input_rows_n)), kinds_nK, value_n, side_nM)
        tail = _tail(batch)
        y_SM = self._encode(batch, x_TM, tail)
        item_RM, before_SM = self._outputs(batch, wanted, y_SM, tail)
        query_SD = self.model.retrieval_query(before_SM)
        table_UD = self.model.retrieval_table(leaf_UD)
        loss_S = chosen.loss(
            query_SD if learned_S.all() else query_SD[self._tensor(learned_S)], table_UD,
            target_row_R[wanted][learned_S], self.items, self.frequency, self.config, self.num_steps,
        )  # fmt: skip
        logits_RK = self.model.rank_logits(item_RM, self._tensor(self._prior(whole or batch, target_row_R)))
        return Forward(
            query_SD.detach(), table_UD.detach(), exact, logits_RK, target_row_R, mean_or_zero(loss_S), leaves
        )

    def _direct_forward(
        self, batch: JaggedBatch, whole: JaggedBatch, input_rows_n: Int64, target_row_R: Int64, rows_V: Int64,
        now_ms: int,
    ) -> Forward:  # fmt: skip
        assert self._direct is not None
        leaves = [Leaf(self.items, rows_V, self.items.weight[: len(rows_V)])]
        with torch.no_grad():
            side_nM = self._side_inputs(batch, leaves, now_ms)
        prior_RPK = self._prior(whole, target_row_R)
        return self._direct(
            batch, _tail(batch), leaves, side_nM, input_rows_n, target_row_R, prior_RPK, self.num_steps
        )  # fmt: skip

    def _step_inputs(
        self, batch: JaggedBatch, whole: JaggedBatch, input_rows_n: Int64, target_row_R: Int64
    ) -> StepInputs:  # fmt: skip
        time_T, query_time_T = token_times(batch.time_ms_n, batch.query_time_n)
        live_V = self.items.live.copy()
        live_V[0] = False
        return StepInputs(
            input_rows_n, batch.kinds_nK, batch.value_n, batch.starts_B1, query_time_T, time_T, batch.target_R,
            batch.previous_R[batch.is_wanted_R], target_row_R[batch.is_wanted_R], self._prior(whole, target_row_R),
            batch.learned_RK, batch.is_new_R, _is_read(_tail(batch), batch.num_tokens), live_V,
        )  # fmt: skip

    def _graphed_forward(
        self, batch: JaggedBatch, inputs: StepInputs, rows_U: Int64, target_row_R: Int64, now_ms: int
    ) -> Forward:  # fmt: skip
        assert self.step_graphs is not None
        num_more = inputs.size.rows - len(self.items.weight)
        leaf_VD = F.pad(self.items.weight, (0, 0, 0, num_more)).requires_grad_()
        leaves = [Leaf(self.items, rows_U, leaf_VD)]
        side_nM = self._side_inputs(batch, leaves, now_ms)
        out = self.step_graphs(leaf_VD, inputs, side_nM)
        return Forward(
            out.query_SD, out.table_VD[: len(rows_U)], True, out.logits_RK, target_row_R, out.retrieval, leaves,
            out.ranking,
        )  # fmt: skip

    def _prior(self, batch: JaggedBatch, target_row_R: Int64) -> NDArray[np.float32]:
        """(R, 2, K) each target's prior from rates alone (`Rates.prior`)."""
        target_R = batch.target_R
        done_RK, num_R = done_before(batch.bits_n, batch.num_kinds, batch.starts_B1, batch.owner_n[target_R], target_R)
        return self.rates.prior(target_row_R, done_RK, num_R)

    def _target_rows(self, batch: JaggedBatch, now_ms: int) -> Int64:
        """(R,) rows of the targets' items. A new interaction counts as a sighting, feedback does not."""
        items_R, is_new_R = batch.item_n[batch.target_R], batch.is_new_R
        rows_R = np.zeros(len(items_R), np.int64)
        rows_R[is_new_R] = self.items.insert(items_R[is_new_R], now_ms, self.num_steps)
        rows_R[~is_new_R] = self.items.lookup(items_R[~is_new_R])
        return rows_R

    def _encode(self, batch: JaggedBatch, x_TM: Tensor, tail: Tail) -> Tensor:
        """(S, M) outputs of the layers at the tail's tokens."""
        key_time_T, query_time_T = token_times(batch.time_ms_n, batch.query_time_n)
        offsets_B1 = 2 * batch.starts_B1
        in_order = times_in_order(key_time_T, offsets_B1) if self.device.type == "cuda" else None
        if self._graphs is not None and in_order:
            return tail.of(self._graphs(x_TM, offsets_B1, query_time_T, key_time_T, _is_read(tail, len(x_TM))))
        return self.model.encode(
            x_TM,
            self._tensor(offsets_B1),
            self._tensor(query_time_T),
            self._tensor(key_time_T),
            tail=tail,
            context_gradient=self.config.context_gradient,
            dropout=self.config.dropout,
            seed=self.num_steps,
            in_order=in_order,
            backend=self.config.backend,
        )

    def _outputs(self, batch: JaggedBatch, wanted: Int64, y_SM: Tensor, tail: Tail) -> tuple[Tensor, Tensor]:
        """(R, M) outputs at each target's item; (S, M) at the action before each choice (the learnt start if none)."""
        with_start = torch.cat([y_SM, self.model.start_M[None]])
        places = output_places(batch, wanted, tail)
        places[places < 0] = len(y_SM)
        both = F.embedding(self._tensor(places), with_start)
        return both[: batch.num_targets], both[batch.num_targets :]

    def _ranking_loss(self, batch: JaggedBatch, logits_RK: Tensor) -> Tensor:
        kinds_RK, is_new_R = self._tensor(batch.learned_RK), self._tensor(batch.is_new_R)
        return ranking_loss(logits_RK, kinds_RK, is_new_R, self.config.feedback)

    def _side_inputs(self, batch: JaggedBatch, leaves: list[Leaf], now_ms: int) -> Tensor | None:
        domain_n = batch.domain_n if self.model_config.use_domain else None
        user_feature_nF = batch.user_feature_BF[batch.owner_n]

        def sum_rows(name: str, keys_nF: Int64) -> Tensor | None:
            return self._sum_rows(self.tables[name], keys_nF, leaves, now_ms)

        return side_inputs(domain_n, batch.feature_nF, user_feature_nF, sum_rows)

    def _sum_rows(self, table: EmbeddingTable, keys_nF: Int64, leaves: list[Leaf], now_ms: int) -> Tensor | None:
        if not _in_use(table, keys_nF):
            return None
        rows_nF = table.insert(keys_nF.reshape(-1), now_ms, self.num_steps).reshape(keys_nF.shape)
        rows_U, place = np.unique(rows_nF, return_inverse=True)
        place_nF = self._tensor(place.reshape(keys_nF.shape))
        leaf = Leaf(table, rows_U, table.gather(rows_U), place_nF)
        leaves.append(leaf)
        return F.embedding(place_nF, leaf.values_UD).sum(dim=1)

    def _learn(self, forward: Forward, loss: Tensor) -> None:
        if not forward.has_gradients:
            torch.autograd.backward(loss)
        scale = lr_scale(self.config, self.num_steps)
        for leaf in forward.leaves:
            if (gradient_UD := leaf.gradient_UD) is not None:
                leaf.table.learn(leaf.rows_U, gradient_UD[: len(leaf.rows_U)], self.config.table_lr * scale)
        self.optimiser.step(self.config.dense_lr * scale)

    def _remember(self, batch: JaggedBatch, forward: Forward | None, examples: Sequence[Example], now_ms: int) -> None:
        if forward is not None:
            rows_R = forward.target_row_R
            met_S = rows_R[batch.is_wanted_R & (rows_R > 0)]
            self.frequency.add(met_S)
            self.popularity.learn(met_S)
        self.histories.bound()
        self.num_interactions += sum(example.num_new for example in examples)
        self.num_feedback += sum(example.num_feedback for example in examples)
        for example in examples:
            if example.names:
                self.learn_names(example.names)
        self.newest_event_ms = now_ms
        self.newest_record_ms = max(self.newest_record_ms, *(example.newest_record_ms for example in examples))
        if self.config.evict_after_days > 0 and (self.num_steps + 1) % self.config.evict_every_steps == 0:
            self._evict(now_ms - int(self.config.evict_after_days * MS_PER_DAY))

    def learn_names(self, names: Mapping[int, str | int]) -> None:
        """What producers call items, for versions and checkpoints."""
        for known in (self.names, self.unpublished_names, self.unsaved_names):
            known.update(names)

    def _evict(self, before_ms: int) -> None:
        self._release(self.items.evict(before_ms))

    def _release(self, rows: Int64) -> None:
        self.frequency.forget(rows)
        self.popularity.forget(rows)
        self.rates.forget(rows)
        self.memory.forget(rows)


def _tail(batch: JaggedBatch) -> Tail:
    """The tokens whose outputs are used: from the action before each user's first target on."""
    first_B = batch.target_R[np.searchsorted(batch.target_R, batch.starts_B1[:-1])]
    num_silent_B = np.maximum(2 * (first_B - batch.starts_B1[:-1]) - 1, 0)
    return Tail.behind(torch.from_numpy(num_silent_B), torch.from_numpy(2 * batch.starts_B1))


def _is_read(tail: Tail, num_tokens: int) -> NDArray[np.bool_]:
    """(T,) which tokens belong to the tail."""
    is_read_T = np.zeros(num_tokens, np.bool_)
    is_read_T[tail.rows_S.numpy()] = True
    return is_read_T


def _in_use(table: EmbeddingTable, keys: Int64) -> bool:
    """Whether the table has any rows of its own, counting this batch's."""
    return table.num_rows > 1 or bool(keys.any())
