"""How a learner computes a step in shards: some itself, the others through the ranks that it trains with.

The ranks hold copies of all tables as long as these are small (`TrainerConfig.whole_table_bytes`), or a step may read
all of their rows (the whole catalogue competes, or the memory compares every choice with it); otherwise they divide the
rows (`model.share`). The weights are the same to the bit either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.distinct import distinct
from model.embedding import EmbeddingTable
from model.share import WHOLE, Share
from model.tokens import ITEMS, side_inputs
from trainer.errors import RanksError
from trainer.examples.batch import JaggedBatch
from trainer.metrics.evaluator import Forward, Leaf
from trainer.network.frequency import FrequencyEstimator
from trainer.network.retrieval import RetrievalRows
from trainer.ranks.division import DividedRows, Exchange, wanted_of
from trainer.ranks.replica import (
    Done,
    Learn,
    Renewed,
    ShardRun,
    TableRows,
    Whole,
    Work,
    digest_of,
    rows_of,
    sum_divided,
)
from trainer.ranks.shard_pass import Network
from trainer.ranks.shards import Shard, ShardedStep, ShardOutputs, SummedGradients, cut, joined, tables_of

if TYPE_CHECKING:
    from trainer.ranks.messages import Ranks

Int64 = NDArray[np.int64]


BLOCK_ROWS = 1 << 16
"""How many rows of a table one message takes to another rank."""


class Sharding:
    """Steps of ``network`` in `TrainerConfig.shards` parts, of which each rank computes equally many.

    Rank 0 has the first, which is smaller, and counts all predictions while the others compute gradients (`learn`).

    The other ranks get the network, or their shares of the rows, with the first step, and when that changes.
    ``divide_above``: up to this many items, tables are never divided.
    """

    def __init__(self, network: Network, frequency: FrequencyEstimator, ranks: Ranks | None, divide_above: int) -> None:
        self._network, self._frequency, self._ranks = network, frequency, ranks
        self._divide_above = divide_above
        self._is_divided: bool | None = None
        """None: the others have nothing yet."""
        self.num_row_bytes = 0
        """Of the distinct rows that the steps so far have read."""
        self._sum: Callable[[], list[Leaf]] | None = None
        self.meanwhile: Callable[[], None] | None = None
        """What rank 0 may do while the others compute predictions."""
        if ranks is not None:
            for table in network.tables.values():
                table.renewed = []

    def __call__(
        self, batch: JaggedBatch, number: int, now_ms: int, chosen: RetrievalRows, input_rows_n: Int64,
        target_row_R: Int64, prior_RPK: NDArray[np.float32],
    ) -> Forward:  # fmt: skip
        """Predictions and losses of a step, whose gradients `learn` adds. New domains and features get their rows.

        Raises `RanksError` if a rank is lost or has come to other weights, and what a pass raises.
        """
        network = self._network
        side_nF = self._side_rows(batch, number, now_ms)
        step = self._common(batch, number, chosen, target_row_R, side_nF)
        shards = cut(batch, number, network.config.shards, input_rows_n, target_row_R, prior_RPK, side_nF)
        outputs = self._compute(step, shards)
        retrieval, ranking = outputs.loss_2
        return Forward(
            outputs.query_SD, outputs.query_SD.new_zeros((0, 0)), False, outputs.logits_RK, target_row_R, retrieval,
            [], ranking, outputs.logit_SV, has_gradients=True,
        )  # fmt: skip

    def learn(self, forward: Forward) -> None:
        """Add up all shards' gradients: the dense weights' for the optimiser, those of rows that are here as leaves.

        Raises ArithmeticError if they are not finite, since a pass has failed.
        """
        assert self._sum is not None, "the step was computed"
        add_up, self._sum = self._sum, None
        forward.leaves += add_up()
        if not torch.isfinite(self._network.optimiser.gradient).all():
            raise ArithmeticError("the gradients of a shard are not finite")

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
        rows = {name: distinct(rows_nF) for name, rows_nF in side_nF.items()}
        learned_row_S = target_row_R[batch.is_wanted_R & (target_row_R > 0)]
        drawn_S, log_draws_S = np.zeros(0, np.int64), np.zeros(0, np.float32)
        if not chosen.exact:
            drawn_S, log_draws_S = chosen.draws(learned_row_S, items, self._frequency, config, number)
            rows = {ITEMS: chosen.rows_U, **rows}
        num_rows = items.num_rows if chosen.exact else 0
        return ShardedStep(number, batch.num_targets, len(learned_row_S), num_rows, rows, drawn_S, log_draws_S)

    def _compute(self, step: ShardedStep, shards: Sequence[Shard]) -> ShardOutputs:
        """All shards' outputs; their gradients will be added up by `_sum`."""
        network, ranks = self._network, self._ranks
        if ranks is None:
            run = ShardRun(network, step, list(shards), 1)
            run()
            self._sum = partial(self._added_up, step, run.layout)
            return _unless(run.failure, run.outputs)
        self.num_row_bytes += sum(4 * network.tables[name].width * len(step.rows_of(name)) for name in tables_of(step))
        each = len(shards) // ranks.size
        parts = [list(shards[rank * each : (rank + 1) * each]) for rank in range(ranks.size)]
        givers = [rank for rank, part in enumerate(parts) if any(shard.batch.num_targets for shard in part)]
        self._share_out(ranks, divided=self._divides(step))
        if self._is_divided:
            return self._compute_divided(ranks, step, parts, givers)
        ranks.ask([Work(step, part, self._renewed(WHOLE), givers) for part in parts[1:]])
        self._forget_renewed()
        run = ShardRun(network, step, parts[0], ranks.size)
        run()
        ranks.start_sum(run.layout.flat, givers)
        self._sum = partial(self._added_up, step, run.layout)
        return self._joined(step, run, ranks.answers(), ranks)

    def _compute_divided(
        self, ranks: Ranks, step: ShardedStep, parts: list[list[Shard]], givers: list[int]
    ) -> ShardOutputs:
        network, shares = self._network, self._shares(ranks)
        reads = [rows_read(step, part if rank in givers else []) for rank, part in enumerate(parts)]
        wanted = [{name: wanted_of([each[name] for each in reads], share) for name in step.rows} for share in shares]
        for name, rows_U in step.rows.items():
            network.tables[name].touch(rows_U)
        ranks.ask(
            [
                Work(replace(step, rows=rows), part, self._renewed(share), givers, each)
                for rows, part, share, each in zip(reads[1:], parts[1:], shares[1:], wanted[1:], strict=True)
            ]
        )
        self._forget_renewed()
        exchange = Exchange(ranks, network.tables, reads[0], wanted[0])
        run = ShardRun(network, replace(step, rows=reads[0]), parts[0], 1, exchange.leaves())
        run()
        if self.meanwhile is not None:
            self.meanwhile()
        self._sum = partial(self._added_up_divided, ranks, run.layout, exchange, givers)
        return self._joined(step, run, ranks.answers(), ranks)

    def _added_up(self, step: ShardedStep, summed: SummedGradients) -> list[Leaf]:
        """The gradients of all rows; the dense weights' are where the optimiser reads them."""
        if self._ranks is not None:
            summed.flat = self._ranks.summed()
        self._network.optimiser.gradient.copy_(summed.dense(summed.flat))
        return [
            Leaf(self._network.tables[name], step.rows_of(name), gradient_UD, direct_UD=gradient_UD)
            for name, gradient_UD in summed.rows(summed.flat).items()
        ]

    def _added_up_divided(
        self, ranks: Ranks, summed: SummedGradients, exchange: Exchange, givers: list[int]
    ) -> list[Leaf]:
        """The same of the rows that are here; the others learn theirs."""
        ranks.give([Learn()] * len(ranks.others))
        rows = sum_divided(ranks, summed, exchange, givers)
        self._network.optimiser.gradient.copy_(summed.dense(summed.flat))
        return [
            Leaf(self._network.tables[name], places * ranks.size, gradient_MD, direct_UD=gradient_MD)
            for name, (places, gradient_MD) in rows.items()
        ]

    def _joined(self, step: ShardedStep, run: ShardRun, found: list[Done], ranks: Ranks) -> ShardOutputs:
        """The outputs of all ranks, unless there is a failure."""
        self._check(step, found, ranks)
        theirs = [output for done in found for output in done.outputs(self._network.device)]
        problem = next((done.problem for done in found if done.problem), "")
        return _unless(run.failure or (ArithmeticError(problem) if problem else None), [*run.outputs, *theirs])

    # Who holds what

    def _divides(self, step: ShardedStep) -> bool:
        items, network = self._network.tables[ITEMS], self._network
        is_large = items.weight.element_size() * items.width * items.num_rows > network.config.whole_table_bytes
        reads_few = items.num_rows > self._divide_above and not step.exact
        return is_large and reads_few and network.device.type == "cpu"

    @staticmethod
    def _shares(ranks: Ranks) -> list[Share]:
        return [Share(rank, ranks.size) for rank in range(ranks.size)]

    def _share_out(self, ranks: Ranks, *, divided: bool) -> None:
        """Give the others everything, or what is theirs, unless they have it."""
        if divided == self._is_divided:
            return
        network, tables = self._network, self._network.tables
        if self._is_divided:
            for table in tables.values():
                table.unite()
        self._forget_renewed()
        widths, dense = {name: table.width for name, table in tables.items()}, network.optimiser.state_dict()
        shares = self._shares(ranks) if divided else [WHOLE] * ranks.size
        ranks.give([Whole(network.model.config, network.config, dense, widths, share) for share in shares[1:]])
        for name, table in tables.items():
            for start in range(0, table.num_rows, BLOCK_ROWS * (ranks.size if divided else 1)):
                self._give_rows(ranks, shares, name, start)
        if divided:
            for name, table in tables.items():
                table.divide(shares[0], DividedRows(ranks, tables, name, self._tell_renewed))
        self._is_divided = divided

    def _give_rows(self, ranks: Ranks, shares: list[Share], name: str, start: int) -> None:
        """A block of a table, from row ``start`` on."""
        table, size = self._network.tables[name], shares[0].size
        stop = min(table.num_rows, start + BLOCK_ROWS * size)
        given = [rows_of(table, np.arange(start + share.rank, stop, size)) for share in shares[1:]]
        ranks.give([{name: [rows]} for rows in given])

    def _renewed(self, share: Share) -> Renewed:
        """What has happened since the others were last told, to the rows of a share."""
        tables = self._network.tables.items()
        return {name: [_part(table, *each, share) for each in table.renewed] for name, table in tables if table.renewed}

    def _tell_renewed(self) -> None:
        """Tell the others what has happened to rows since the last step."""
        ranks = self._ranks
        if ranks is not None and any(table.renewed for table in self._network.tables.values()):
            ranks.give([self._renewed(share) for share in self._shares(ranks)[1:]])
            self._forget_renewed()

    def _forget_renewed(self) -> None:
        if self._ranks is not None:
            for table in self._network.tables.values():
                table.renewed = []

    def _check(self, step: ShardedStep, found: list[Done], ranks: Ranks) -> None:
        ours = digest_of(self._network)
        if not torch.isfinite(self._network.optimiser.flat).all():
            return  # the losses will show it, and the step is set aside
        for rank, done in zip(ranks.others, found, strict=True):
            if done.digest != ours:
                raise RanksError(
                    f"step {step.step}: the weights of rank {rank} differ from those of rank 0, which must never "
                    "happen: a machine's memory is faulty, or this build is. Start again from the checkpoint; if it "
                    "happens again, train with one process"
                )


def _part(table: EmbeddingTable, rows_U: Int64, weight_UD: Tensor | None, share: Share) -> TableRows:
    """What has happened to those rows of a share: they are new, with these weights, or belong to no key any more."""
    own = np.flatnonzero(share.is_own(rows_U))
    is_live = weight_UD is not None
    weights = np.zeros((len(own), table.width), np.float32) if weight_UD is None else weight_UD.cpu().numpy()[own]
    return TableRows(rows_U[own], np.full(len(own), is_live), weights)


def rows_read(step: ShardedStep, shards: Sequence[Shard]) -> dict[str, Int64]:
    """By table, the rows that some of a step's shards read, ascending; none if there are no shards."""
    if not shards:
        return {name: np.zeros(0, np.int64) for name in step.rows}
    items = [each for shard in shards for each in (shard.row_n, shard.target_row_R)]
    sides = {
        name: distinct(np.concatenate([shard.side_nF[name].ravel() for shard in shards]))
        for name in step.rows
        if name != ITEMS
    }
    return {ITEMS: distinct(np.concatenate([*items, step.drawn_S])), **sides}


def _unless(failure: Exception | None, outputs: list[ShardOutputs]) -> ShardOutputs:
    if failure is not None:
        raise failure
    return joined(outputs)


def in_use(table: EmbeddingTable, keys: Int64) -> bool:
    """Whether the table has any rows of its own, counting these keys'."""
    return table.num_rows > 1 or bool(keys.any())
