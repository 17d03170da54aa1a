"""One training step: predict a batch, score the predictions, then learn from it.

The order is fixed: the rows of items are looked up before the batch's own items enter the vocabulary, so the prediction
of a target rests only on the interactions before it and on the weights that earlier batches left. A target's own row
(new or not) is used by the loss alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.memory import MemoryOutcome, MemoryRules
from kernels.transfer import ToHost, to_device
from model.config import ModelConfig
from model.distinct import counted
from model.embedding import EmbeddingTable
from model.growing import keep_in
from model.hstu import HSTU, log_value
from model.memory import Memory
from model.rates import Rates
from model.tokens import DOMAINS, FEATURES, ITEMS
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch, build_batch
from trainer.examples.context import shorten, thin
from trainer.examples.histories import TrainedHistories
from trainer.learner.batch_rows import BatchRows
from trainer.learner.eviction import evict
from trainer.learner.forward import ForwardPass, OnRows
from trainer.learner.item_names import ItemNames
from trainer.learner.memory_pass import MemoryPass
from trainer.learner.scoring import Scoring
from trainer.metrics.baseline import PopularityBaseline
from trainer.metrics.evaluator import Forward
from trainer.metrics.prequential import PrequentialMetrics
from trainer.network.choice_weights import ChoiceWeights
from trainer.network.direct_step import DirectStep
from trainer.network.frequency import FrequencyEstimator
from trainer.network.losses import mean_or_zero, ranking_loss
from trainer.network.optim import AdamW, lr_scale
from trainer.ranks.shard_pass import Network, empty_table
from trainer.ranks.sharding import Sharding
from wire.example import Int64, Lesson, Mark

if TYPE_CHECKING:
    from trainer.ranks.messages import Ranks


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

    ``threads``: run memory and odds on threads of their own, beside the network; None: where that is on a GPU.
    ``ranks``: those that compute shards of each step.
    """

    def __init__(
        self,
        model: ModelConfig,
        trainer: TrainerConfig,
        device: torch.device | str = "cpu",
        *,
        threads: bool | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model_config, self.config, self.device = model, trainer, torch.device(device)
        keep_in(trainer.tables_folder)
        self.model = HSTU(model, seed=trainer.seed).to(self.device)
        self.optimiser = AdamW(list(self.model.parameters()), trainer)
        beside = self.device.type == "cuda" if threads is None else threads
        self._memory_thread = ThreadPoolExecutor(1, "memory") if beside else None
        self.items = empty_table(ITEMS, model.item_width, trainer, self.device, trainer.admit_after)
        self.domains = empty_table(DOMAINS, model.model_width, trainer, self.device)
        self.features = empty_table(FEATURES, model.model_width, trainer, self.device)
        rules = MemoryRules(seen_half_life=trainer.memory_half_life, exclude=str(trainer.exclude_seen))
        self._is_memory_there = trainer.memory_group > 1
        if self._is_memory_there and not (self.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
            raise ValueError(f"trainer.memory_group: expected 1 on a CPU, got {trainer.memory_group}; use a GPU")
        self.memory = Memory(model, rules, backend=trainer.backend, device=self.device, group=trainer.memory_group)
        weights = ChoiceWeights.of(model, trainer)
        self.memory_pass = MemoryPass(self.memory, self.items, self.model, weights=weights, beside=beside)
        self.names = ItemNames(trainer.window_ms or 0)
        self.frequency = FrequencyEstimator(trainer.frequency_half_life)
        self.popularity = PopularityBaseline()
        self.rates = Rates(model, backend=trainer.backend)
        self.network = Network(self.model, self.optimiser, self.tables, trainer, self._direct_step())
        exact_rows = self.memory_pass.exact_rows
        sharding = Sharding(self.network, self.frequency, ranks, exact_rows) if trainer.shards > 1 else None
        self.forward_pass = ForwardPass(self.network, self.frequency, self.rates, sharding)
        self.scoring = Scoring(
            model, trainer, self.rates, self.tables, self.popularity, beside=beside, later=self._is_memory_there
        )
        self.histories = TrainedHistories(
            model.max_context, trainer.history_bytes, model.num_columns, trainer.window_ms
        )
        """Users' interactions as of the last step. A checkpoint only names the users; the source restores the rest."""
        self.num_steps = self.num_interactions = self.num_feedback = self.newest_event_ms = self.newest_record_ms = 0

    def ranking_state(self) -> dict[str, NDArray[Any]]:
        """What is known of the choice that is being ranked, for a checkpoint; nothing if none is."""
        return {**self.memory_pass.ranking.state_dict(), **self.scoring.evaluator.state_dict()}

    @property
    def metrics(self) -> PrequentialMetrics:
        """The metrics, up to the last step."""
        return self.scoring.evaluator.metrics

    def _direct_step(self) -> DirectStep | None:
        """The pass for steps that fit it; None on a GPU, or without the kernels."""
        is_possible = self.device.type == "cpu" and self.config.backend == "auto"
        return DirectStep(self.model, self.config) if is_possible else None

    @property
    def tables(self) -> dict[str, EmbeddingTable]:
        """All embedding tables, by the names under which they are published."""
        return {ITEMS: self.items, DOMAINS: self.domains, FEATURES: self.features}

    def step(self, examples: Sequence[Lesson]) -> StepReport:
        """Predict, score, learn. Examples may bring nothing to learn, but there must be at least one."""
        started = time.perf_counter()
        if examples[0].mark is not None:
            self.apply_marks(examples)
            self.evict_if_due()
            return self._report(started, 0, 0)
        whole = build_batch(examples, self.histories, self.model_config, self.histories.choose)
        if not whole.num_targets:  # a step of the optimiser would move the weights by momentum alone
            self._remember(whole, None, examples, self.newest_event_ms)
            return self._report(started, 0, 0)
        batch = self._shortened(whole)
        now_ms = max(self.newest_event_ms, int(whole.time_ms_n.max(initial=0)))
        num_known = self.items.num_live
        rows = self.memory_pass.rows_of(whole)
        if (sharding := self.forward_pass.sharding) is not None:
            sharding.meanwhile = partial(self.memory_pass.foresee, whole, rows)  # no cycle with this learner
        forward = self.forward(batch, now_ms, whole, rows.begin)
        retrieval, ranking = forward.retrieval_loss, forward.ranking_loss
        if ranking is None:
            ranking = mean_or_zero(self._ranking_loss(batch, forward.logits_RK))
        given_R, expected = np.zeros(0, np.float32), list[Tensor]()
        if forward.value_R is not None:
            given_R, *expected = self._ask_values(batch, forward)
        # Asked for before a GPU gets the rest of the step, so that only the forward pass is waited for.
        asked = forward.on_host = ToHost(forward.logits_RK.float(), retrieval, ranking, *expected)
        choices = self._predict_choices(whole, forward, rows)
        if sharding is None:
            self._learn(forward, ranking)
        earlier = self.memory_pass.take_earlier
        self.scoring.begin(whole, forward, rows, num_known, self.num_steps, choices, earlier)
        if sharding is not None:  # other ranks have computed gradients meanwhile
            self._learn(forward, ranking)
        self._remember(whole, forward, examples, now_ms)
        _, *losses = asked.wait()
        if expected:
            self.metrics.values.add_errors(losses[2], given_R)
        return self._report(started, whole.num_targets, batch.num_tokens, (float(losses[0]), float(losses[1])))

    def apply_marks(self, marks: Sequence[Lesson]) -> None:
        """Forget the users and items that are marked. What was learned from users stays in the weights and counts."""
        for each in marks:
            self.histories.apply_mark(each)
            if each.mark is Mark.ITEM:
                self.remove_items({each.marked_item})
            elif each.mark is Mark.ITEM_BACK:
                self.items.unblock(np.array([each.marked_item], np.int64))
            self._note_record_time(each)

    def remove_items(self, item_hashes: Collection[int]) -> None:
        """Drop these items' rows, with everything known about them, and never learn them again."""
        gone = sorted(set(item_hashes) - self.items.blocked)
        self._release(self.items.block(np.array(gone, np.int64)))

    @property
    def max_context(self) -> int:
        """How many interactions before a user's first target a step computes."""
        kept = self.model_config.max_context
        return min(self.config.max_train_context, kept) if self.config.max_train_context else kept

    def _shortened(self, whole: JaggedBatch) -> JaggedBatch:
        short, alpha = shorten(whole, self.max_context), self.config.stochastic_length_alpha
        return thin(short, self.model_config.max_context, alpha, self.config.backend) if alpha else short

    def _report(
        self, started: float, num_targets: int, num_tokens: int, losses: tuple[float, float] = (0.0, 0.0)
    ) -> StepReport:
        step, self.num_steps = self.num_steps, self.num_steps + 1
        return StepReport(step, num_targets, num_tokens, *losses, time.perf_counter() - started)

    def _predict_choices(self, batch: JaggedBatch, forward: Forward, rows: BatchRows) -> Callable[[], MemoryOutcome]:
        """Have the memory predict, count and learn the batch (`trainer.learner.memory_pass`), where possible beside
        what comes next; returns what waits for the outcomes of the choices."""
        if self._is_memory_there:
            return self.memory_pass.launch(batch, forward, rows).wait
        asked = self.memory_pass.ask(batch, forward, rows, self.num_interactions)
        if self._memory_thread is not None and forward.is_whole:
            # Meanwhile this thread launches the backward pass; neither reads what the other changes.
            return self._memory_thread.submit(self.memory_pass.answer, batch, list(asked)).result
        outcome = self.memory_pass.answer(batch, asked)
        return lambda: outcome

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return to_device(array, self.device)

    def forward(
        self, batch: JaggedBatch, now_ms: int, whole: JaggedBatch | None = None, on_rows: OnRows | None = None
    ) -> Forward:
        """`ForwardPass` at the next step. ``whole``: the same targets with all that is known of their users, if
        ``batch`` has less."""
        return self.forward_pass(batch, whole or batch, self.num_steps, now_ms, on_rows)

    def _ranking_loss(self, batch: JaggedBatch, logits_RK: Tensor) -> Tensor:
        kinds_RK, is_new_R = self._tensor(batch.learned_RK), self._tensor(batch.is_new_R)
        return ranking_loss(logits_RK, kinds_RK, is_new_R, self.config.late_feedback)

    def _ask_values(self, batch: JaggedBatch, forward: Forward) -> tuple[NDArray[np.float32], Tensor]:
        """The values of the targets that are known by now, and what was expected of them. Their mean squared error
        becomes a loss, and they are counted, but for their errors, which have yet to come from a GPU."""
        assert forward.value_R is not None, "the model predicts values"
        known = np.flatnonzero(np.isfinite(value_R := batch.value_n[batch.target_R]))
        given_R = log_value(torch.from_numpy(value_R[known])).numpy()
        expected_R = forward.value_R.index_select(0, self._tensor(known))
        self.metrics.values.add(given_R)
        with torch.no_grad():
            self.model.value_mean.fill_(self.metrics.values.mean)
        forward.value_loss = mean_or_zero((expected_R - self._tensor(given_R)).square())
        return given_R, expected_R

    def _learn(self, forward: Forward, ranking: Tensor) -> None:
        if not forward.has_gradients:
            loss = forward.retrieval_loss + self.config.rank_weight * ranking
            if forward.value_loss is not None:
                loss = loss + self.config.value_weight * forward.value_loss
            torch.autograd.backward(loss)
        if self.forward_pass.sharding is not None:
            self.forward_pass.sharding.learn(forward)
        step, scale = self.num_steps, lr_scale(self.config, self.num_steps)
        for leaf in forward.leaves:
            if (gradient_UD := leaf.gradient_UD) is not None:
                leaf.table.learn(leaf.rows_U, gradient_UD[: len(leaf.rows_U)], self.config.table_lr * scale, step)
        self.optimiser.step(self.config.dense_lr * scale)

    def _remember(self, batch: JaggedBatch, forward: Forward | None, examples: Sequence[Lesson], now_ms: int) -> None:
        if forward is not None:
            row_S = forward.target_row_R[batch.choice_S]
            met = counted(row_S[row_S > 0])
            self.frequency.add(*met)
            self.popularity.learn(*met)
        self.histories.bound()
        self.num_interactions += sum([each.num_new for each in examples])
        self.num_feedback += sum([len(each.feedback_index) for each in examples])
        for names in [each.names for each in examples if each.names]:
            self.names.learn(names)
        self.newest_event_ms = now_ms
        self._note_record_time(*examples)
        self.evict_if_due()
        self.names.forget_past(self.items, self.newest_record_ms)

    def evict_if_due(self) -> None:
        """At the end of every ``evict_every_steps``-th step, whatever it is, drop what is too old or too much."""
        if (self.num_steps + 1) % self.config.evict_every_steps == 0:
            self._release(evict(self.config, self.tables, self.rates, self.newest_event_ms))
            self.memory.give_back_groups(self._before_groups_go)

    def _before_groups_go(self, rows: Int64) -> None:
        self.scoring.settle()  # a step that was launched holds the memory on the GPU, which will be copied there anew
        self.items.before_change(rows)

    def _note_record_time(self, *examples: Lesson) -> None:
        waiting = self.histories.waiting
        newest_ms = max([each.newest_record_ms for each in examples]) if waiting is None else waiting.learned_ms
        self.newest_record_ms = max(self.newest_record_ms, newest_ms)

    def _release(self, rows: Int64) -> None:
        """Clear all that is counted of these rows of the item table."""
        self.frequency.forget(rows)
        self.popularity.forget(rows)
        self.rates.forget(rows)
        self.memory.grow(self.items.num_rows)  # which may have learned nothing yet
        self.memory.forget(rows)
