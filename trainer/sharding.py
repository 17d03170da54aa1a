"""How a learner computes a step in shards: some by itself, the others by the ranks that it trains with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from model.embedding import EmbeddingTable
from model.tokens import ITEMS, side_inputs
from trainer.batch import JaggedBatch
from trainer.errors import RanksError
from trainer.evaluator import Forward, Leaf
from trainer.frequency import FrequencyEstimator
from trainer.replica import Done, TableRows, Whole, Work, digest_of, rows_of, run_shards
from trainer.retrieval import RetrievalRows
from trainer.shard_pass import Network
from trainer.shards import Shard, ShardedStep, ShardOutputs, SummedGradients, cut, joined

if TYPE_CHECKING:
    from trainer.ranks import Ranks

Int64 = NDArray[np.int64]


class Sharding:
    """Steps of ``network`` in `TrainerConfig.shards`, of which each rank computes as many.

    The other ranks get the network with the first step.
    """

    def __init__(self, network: Network, frequency: FrequencyEstimator, ranks: Ranks | None) -> None:
        self._network, self._frequency, self._ranks = network, frequency, ranks
        self._have_it = False
        if ranks is not None:
            for table in network.tables.values():
                table.renewed = []

    def __call__(
        self, batch: JaggedBatch, number: int, now_ms: int, chosen: RetrievalRows, input_rows_n: Int64,
        target_row_R: Int64, prior_RPK: NDArray[np.float32],
    ) -> Forward:  # fmt: skip
        """Predictions, losses and gradients of a step. New domains and features get their rows.

        Raises `RanksError` if a rank is lost or has come to other weights, and what a pass raises.
        """
        network = self._network
        side_nF = self._side_rows(batch, number, now_ms)
        step = self._common(batch, number, chosen, target_row_R, side_nF)
        shards = cut(batch, number, network.config.shards, input_rows_n, target_row_R, prior_RPK, side_nF)
        summed, outputs = self._compute(step, shards)
        retrieval, ranking = summed.losses(summed.flat)
        leaves = [
            Leaf(network.tables[name], step.rows_of(name), gradient_UD, direct_UD=gradient_UD)
            for name, gradient_UD in summed.rows(summed.flat).items()
        ]
        network.optimiser.gradient.copy_(summed.dense(summed.flat))
        return Forward(
            outputs.query_SD, outputs.query_SD.new_zeros((0, 0)), False, outputs.logits_RK, target_row_R, retrieval,
            leaves, ranking, outputs.logit_SV, has_gradients=True,
        )  # fmt: skip

    def _side_rows(self, batch: JaggedBatch, number: int, now_ms: int) -> dict[str, Int64]:
        """(n, F) the rows of the tables that are summed into side inputs."""
        tables, found = self._network.tables, dict[str, Int64]()

        def look_up(name: str, keys_nF: Int64) -> None:
            if in_use(tables[name], keys_nF):
                found[name] = tables[name].insert(keys_nF.reshape(-1), now_ms, number).reshape(keys_nF.shape)

        domain_n = batch.domain_n if self._network.model.config.use_domain else None
        side_inputs(domain_n, batch.feature_nF, batch.side_feature_nF, look_up)
        return found

    def _common(
        self, batch: JaggedBatch, number: int, chosen: RetrievalRows, target_row_R: Int64, side_nF: dict[str, Int64]
    ) -> ShardedStep:
        items, config = self._network.tables[ITEMS], self._network.config
        rows = {name: np.unique(rows_nF) for name, rows_nF in side_nF.items()}
        learned_row_S = target_row_R[batch.is_wanted_R & (target_row_R > 0)]
        drawn_S, log_draws_S = np.zeros(0, np.int64), np.zeros(0, np.float32)
        if not chosen.exact:
            drawn_S, log_draws_S = chosen.draws(learned_row_S, items, self._frequency, config, number)
            rows = {ITEMS: chosen.rows_U, **rows}
        num_rows = items.num_rows if chosen.exact else 0
        return ShardedStep(number, batch.num_targets, len(learned_row_S), num_rows, rows, drawn_S, log_draws_S)

    def _compute(self, step: ShardedStep, shards: Sequence[Shard]) -> tuple[SummedGradients, ShardOutputs]:
        """All shards' gradients added up, and their outputs."""
        network, ranks = self._network, self._ranks
        size = 1 if ranks is None else ranks.size
        each = len(shards) // size
        parts = [list(shards[rank * each : (rank + 1) * each]) for rank in range(size)]
        if ranks is not None:
            self._give(ranks, step, parts)
        summed, outputs, failure = run_shards(network, step, parts[0], size)
        if ranks is not None:
            found = ranks.answers()
            summed.flat = ranks.summed(summed.flat)
            self._check(step, found, ranks)
            outputs = [*outputs, *(output for done in found for output in done.outputs(network.device))]
            failure = failure or next((ArithmeticError(done.problem) for done in found if done.problem), None)
        if failure is not None:
            raise failure
        return summed, joined(outputs)

    def _give(self, ranks: Ranks, step: ShardedStep, parts: list[list[Shard]]) -> None:
        tables = self._network.tables
        if not self._have_it:
            ranks.give([self._whole()] * len(ranks.others))
            self._have_it = True
        renewed = {name: _renewed(table) for name, table in tables.items() if table.renewed}
        for table in tables.values():
            table.renewed = []
        ranks.give([Work(step, part, renewed) for part in parts[1:]])

    def _whole(self) -> Whole:
        network = self._network
        for table in network.tables.values():
            table.renewed = []
        tables = {
            name: (table.width, rows_of(table, np.arange(table.num_rows), with_state=True))
            for name, table in network.tables.items()
        }
        return Whole(network.model.config, network.config, network.optimiser.state_dict(), tables)

    def _check(self, step: ShardedStep, found: list[Done], ranks: Ranks) -> None:
        ours = digest_of(self._network)
        if not torch.isfinite(self._network.optimiser.flat).all():
            return  # the losses will say so, and the step to blame is set aside
        for rank, done in zip(ranks.others, found, strict=True):
            if done.digest != ours:
                raise RanksError(
                    f"step {step.step}: the weights of rank {rank} differ from those of rank 0, which must not be: a "
                    "fault of a machine's memory, or of this build. Start again from the checkpoint; if it comes back, "
                    "train with one process"
                )


def _renewed(table: EmbeddingTable) -> TableRows:
    """The rows that have come or gone since the last step."""
    assert table.renewed is not None
    return rows_of(table, np.unique(np.concatenate(table.renewed)), with_state=False)


def in_use(table: EmbeddingTable, keys: Int64) -> bool:
    """Whether the table has any rows of its own, counting these keys'."""
    return table.num_rows > 1 or bool(keys.any())
