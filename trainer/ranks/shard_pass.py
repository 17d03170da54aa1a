"""The network's forward and backward pass of one shard: predictions, and the shard's part of the step's gradients.

The same on every rank: in the one that has the learner, and in its replicas (`trainer.ranks.replica`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import Tail
from kernels.heads import HeadOutputs
from kernels.transfer import to_device
from model.embedding import EmbeddingTable
from model.hstu import HSTU
from model.lookup import rows_at
from model.tokens import DOMAINS, FEATURES, ITEMS, token_times
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch
from trainer.metrics.evaluator import Leaf
from trainer.network.direct_step import DirectStep, output_places
from trainer.network.graph import times_in_order
from trainer.network.losses import exact_retrieval_loss, ranking_loss, sampled_retrieval_loss
from trainer.network.optim import AdamW, lr_scale
from trainer.ranks.shards import Shard, ShardedStep, ShardOutputs, SummedGradients

Int64 = NDArray[np.int64]
Predicted = Callable[[ShardOutputs], None]
SALTS = {ITEMS: 1, DOMAINS: 2, FEATURES: 3}
"""What tells the random numbers of one table from those of another, on every rank."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What gradients change: the dense weights with their optimiser, and the tables."""

    model: HSTU
    optimiser: AdamW
    tables: dict[str, EmbeddingTable]
    config: TrainerConfig
    direct: DirectStep | None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.optimiser.flat.device


def empty_table(
    name: str, width: int, config: TrainerConfig, device: torch.device, admit_after: int = 1
) -> EmbeddingTable:
    """A table without rows; its random numbers are the same on every rank."""
    return EmbeddingTable(
        width, init_std=config.row_init_std, seed=config.seed, salt=SALTS[name], admit_after=admit_after,
        device=device, backend=config.backend, precision=config.row_precision,
    )  # fmt: skip


def apply(network: Network, step: ShardedStep, layout: SummedGradients) -> None:
    """Learn the summed gradients."""
    config, scale = network.config, lr_scale(network.config, step.step)
    for name, gradient_UD in layout.rows(layout.flat).items():
        network.tables[name].learn(step.rows_of(name), gradient_UD, config.table_lr * scale, step.step)
    network.optimiser.gradient.copy_(layout.dense(layout.flat))
    network.optimiser.step(config.dense_lr * scale)


class ShardPass:
    """The passes of a step's shards, one after the other.

    ``leaves``: the rows of the step by table, where they are not in the network's tables.
    """

    def __init__(
        self, network: Network, step: ShardedStep, layout: SummedGradients, leaves: dict[str, Tensor] | None = None
    ) -> None:
        self._network, self._step, self._layout = network, step, layout
        self._leaves = dict(leaves or {})
        self._live_V = network.tables[ITEMS].live[: step.num_rows].copy()
        self._live_V[:1] = False

    def __call__(self, shard: Shard, when_predicted: Predicted) -> Tensor | None:
        """The gradients as a vector; None if the shard has no targets. Predictions and losses are told before most of
        the gradients are computed."""
        batch, direct = shard.batch, self._network.direct
        if not batch.num_targets:
            when_predicted(self._nothing())
            return None
        flat = self._layout.new()
        if self._step.exact and direct is not None and direct.fits(batch, self._step.num_rows):
            self._directly(direct, shard, flat, when_predicted)
        else:
            with torch.enable_grad():
                self._by_autograd(shard, flat, when_predicted)
        return flat

    def _nothing(self) -> ShardOutputs:
        step, network = self._step, self._network
        kinds, width = len(network.model.config.kinds), network.model.config.item_width
        query_SD, logits_RK, loss_2 = (
            torch.zeros(shape, device=network.device) for shape in ((0, width), (0, kinds), (2,))
        )
        logit_SV = torch.zeros((0, step.num_rows)) if step.exact and network.direct is not None else None
        return ShardOutputs(query_SD, logits_RK, logit_SV, loss_2)

    def _directly(self, direct: DirectStep, shard: Shard, flat: Tensor, when_predicted: Predicted) -> None:
        """Without autograd. The means over the shard are weighted so that they add up over the step."""
        step, network, batch = self._step, self._network, shard.batch
        items = network.tables[ITEMS]
        leaves = [Leaf(items, step.rows_of(ITEMS), items.weight[: step.num_rows])]
        with torch.no_grad():
            side_nM = self._side_inputs(shard, leaves)
        num_learned = int(np.count_nonzero(shard.target_row_R[batch.is_wanted_R]))
        retrieval = num_learned / max(1, step.num_learned)
        ranking = batch.num_targets / step.num_targets
        factor = retrieval if num_learned else 1.0

        def tell(heads: HeadOutputs) -> None:
            loss_2 = torch.tensor([heads.retrieval * retrieval, heads.ranking * ranking])
            when_predicted(ShardOutputs(heads.query_QD, heads.logit_RK, heads.logit_QV, loss_2))

        with torch.enable_grad():
            direct(
                batch, tail_of(batch), leaves, side_nM, shard.row_n, shard.target_row_R, shard.prior_RPK, shard.seed,
                rank_factor=ranking / factor, when_predicted=tell,
            )  # fmt: skip
        self._layout.dense(flat).copy_(network.optimiser.gradient).mul_(factor)
        rows = self._layout.rows(flat)
        for name, leaf in zip((ITEMS, *shard.side_nF), leaves, strict=True):
            if leaf.direct_UD is not None:
                rows[name].copy_(leaf.direct_UD).mul_(factor)

    def _by_autograd(self, shard: Shard, flat: Tensor, when_predicted: Predicted) -> None:
        step, network, batch = self._step, self._network, shard.batch
        model, config, device = network.model, network.config, network.device
        leaf_UD = self._leaf(ITEMS)
        leaves = [Leaf(network.tables[ITEMS], step.rows_of(ITEMS), leaf_UD)]
        side_nM = self._side_inputs(shard, leaves)
        place_n = to_device(step.places(ITEMS, shard.row_n), device)
        kinds_nK, value_n = to_device(batch.kinds_nK, device), to_device(batch.value_n, device)
        x_TM, tail = model.tokens(leaf_UD, place_n, kinds_nK, value_n, side_nM), tail_of(batch)
        key_time_T, query_time_T = token_times(batch.time_ms_n, batch.query_time_n)
        offsets_B1 = 2 * batch.starts_B1
        y_SM = model.encode(
            x_TM, to_device(offsets_B1, device), to_device(query_time_T, device),
            to_device(key_time_T, device), tail=tail, context_gradient=config.context_gradient,
            dropouts=config.dropouts(model.config.num_layers), seed=shard.seed, backend=config.backend,
            in_order=times_in_order(key_time_T, offsets_B1) if device.type == "cuda" else None,
        )  # fmt: skip
        wanted = batch.choice_S
        places = output_places(batch, wanted, tail)
        places[places < 0] = len(y_SM)
        both = rows_at(to_device(places, device), torch.cat([y_SM, model.start_M[None]]))
        query_SD = model.retrieval_query(both[batch.num_targets :])
        logits_RK = model.rank_logits(both[: batch.num_targets], to_device(shard.prior_RPK, device))
        retrieval = self._retrieval_loss(query_SD, model.retrieval_table(leaf_UD), shard.target_row_R[wanted])
        ranking = (
            ranking_loss(
                logits_RK, to_device(batch.learned_RK, device), to_device(batch.is_new_R, device), config.late_feedback
            ).sum()
            / step.num_targets
        )
        loss_2 = torch.stack([retrieval.detach(), ranking.detach()])
        when_predicted(ShardOutputs(query_SD.detach(), logits_RK.detach(), None, loss_2))
        network.optimiser.gradient.zero_()
        torch.autograd.backward(retrieval + config.rank_weight * ranking)
        self._layout.dense(flat).copy_(network.optimiser.gradient)
        rows = self._layout.rows(flat)
        for name, leaf in zip((ITEMS, *shard.side_nF), leaves, strict=True):
            if leaf.values_UD.grad is not None:
                rows[name].copy_(leaf.values_UD.grad)
                leaf.values_UD.grad = None

    def _retrieval_loss(self, query_SD: Tensor, table_UD: Tensor, target_row_S: Int64) -> Tensor:
        step, backend, device = self._step, self._network.config.backend, query_SD.device
        learned_S = target_row_S > 0
        if not learned_S.any():
            return query_SD.sum() * 0.0
        query_RD = query_SD.index_select(0, to_device(np.flatnonzero(learned_S), device))
        target = to_device(step.places(ITEMS, target_row_S[learned_S]), device)
        if step.exact:
            loss_R = exact_retrieval_loss(query_RD, table_UD, target, to_device(self._live_V, device), backend)
        else:
            negative = to_device(step.places(ITEMS, step.drawn_S), device)
            log_draws_S = to_device(step.log_draws_S, device)
            loss_R = sampled_retrieval_loss(query_RD, table_UD, target, negative, log_draws_S, backend)
        return loss_R.sum() / step.num_learned

    def _leaf(self, name: str) -> Tensor:
        """The step's rows of a table, which all of its shards read."""
        if name not in self._leaves:
            self._leaves[name] = self._network.tables[name].gather(self._step.rows_of(name))
        return self._leaves[name]

    def _side_inputs(self, shard: Shard, leaves: list[Leaf]) -> Tensor | None:
        """(n, M) the sum of the other tables' rows; their leaves are added to ``leaves``."""
        parts = list[Tensor]()
        for name, rows_nF in shard.side_nF.items():
            place_nF = to_device(self._step.places(name, rows_nF), self._network.device)
            leaf = Leaf(self._network.tables[name], self._step.rows_of(name), self._leaf(name), place_nF)
            leaves.append(leaf)
            parts.append(rows_at(place_nF, leaf.values_UD).sum(dim=1))
        return sum(parts[1:], parts[0]) if parts else None


def tail_of(batch: JaggedBatch) -> Tail:
    """The tokens whose outputs are used: from the action before each user's first target on."""
    num_silent_B = first_read(batch) - 2 * batch.starts_B1[:-1]
    return Tail.behind(torch.from_numpy(num_silent_B), torch.from_numpy(2 * batch.starts_B1))


def first_read(batch: JaggedBatch) -> Int64:
    """(B,) each user's first token whose output is used."""
    first_B = np.searchsorted(batch.target_R, batch.starts_B1[:-1])
    target_B, before_B = batch.target_R[first_B], batch.previous_R[first_B]
    return np.where(before_B >= 0, 2 * before_B + 1, 2 * target_B)
