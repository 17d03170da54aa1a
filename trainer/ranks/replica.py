"""The ranks without a learner: each keeps a copy of the network, or its share of the rows, and computes shards.

A replica knows no keys, users or topics. It gets its part of the network once, and with each step the rows that were
added or removed since the last one. It answers with its predictions as soon as it has them, so that rank 0 counts them
while the others compute gradients. Of the summed gradients every rank applies those of what it has: at once where it
has everything, and when rank 0 says so where rows are divided, since rank 0 asks for them as they were before the step.
A replica stores nothing: after a restart, rank 0 has the checkpoint.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from model.config import ModelConfig
from model.embedding import EmbeddingTable
from model.growing import keep_in
from model.hstu import HSTU
from model.share import WHOLE, Share
from trainer.config import TrainerConfig
from trainer.errors import FAILURES, in_words
from trainer.network.direct_step import DirectStep
from trainer.network.optim import AdamW, lr_scale
from trainer.ranks.division import Exchange, Query, answer
from trainer.ranks.shard_pass import Network, ShardPass, apply, empty_table
from trainer.ranks.shards import Shard, ShardedStep, ShardOutputs, SummedGradients, TreeSum

if TYPE_CHECKING:
    from trainer.ranks.messages import Ranks

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TableRows:
    """Rows of a table, which of them have a key, and their weights. ``state_U``: None if the rows are new."""

    rows_U: Int64
    live_U: NDArray[np.bool_]
    weight_UD: Float32
    state_U: Float32 | None = None


Renewed = dict[str, list[TableRows]]
"""By table, what has happened to rows, in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """The network but for the tables' rows, which follow as `Renewed`. ``dense``: the optimiser's state; ``widths``: of
    the tables; ``share``: which of their rows this rank holds."""

    model: ModelConfig
    trainer: TrainerConfig
    dense: dict[str, Float32]
    widths: dict[str, int]
    share: Share


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A rank's shards of a step, and how the tables' rows have changed since the last step.

    ``givers``: the ranks whose shards have targets. ``wanted``: where rows are divided, by table, the places at this
    rank of the rows that each rank reads (`Exchange`).
    """

    step: ShardedStep
    shards: list[Shard]
    renewed: Renewed
    givers: list[int]
    wanted: dict[str, list[Int64]] | None = None


@dataclass(frozen=True, slots=True)
class Learn:
    """Apply the gradients of the step."""


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A rank's predictions. ``digest``: of the dense weights before the step, which must be equal everywhere.

    They are arrays, since pickling a tensor takes half a millisecond.
    """

    arrays: list[tuple[Float32, Float32, Float32 | None, Float32]]
    digest: int
    problem: str = ""

    @staticmethod
    def of(outputs: list[ShardOutputs], digest: int, failure: Exception | None) -> Done:
        """Results to send."""
        arrays = [
            (
                each.query_SD.cpu().numpy(),
                each.logits_RK.cpu().numpy(),
                None if each.logit_SV is None else each.logit_SV.cpu().numpy(),
                each.loss_2.cpu().numpy(),
            )
            for each in outputs
        ]
        return Done(arrays, digest, "" if failure is None else in_words(failure))

    def outputs(self, device: torch.device) -> list[ShardOutputs]:
        """The outputs as they were before they were sent."""
        return [
            ShardOutputs(
                torch.from_numpy(query_SD).to(device), torch.from_numpy(logits_RK).to(device),
                None if logit_SV is None else torch.from_numpy(logit_SV).to(device),
                torch.from_numpy(loss_2).to(device),
            )
            for query_SD, logits_RK, logit_SV, loss_2 in self.arrays
        ]  # fmt: skip


def network_of(
    model: ModelConfig, config: TrainerConfig, tables: dict[str, EmbeddingTable], device: torch.device
) -> Network:
    """An empty network with its own memory."""
    made = HSTU(model, seed=config.seed).to(device)
    optimiser = AdamW(list(made.parameters()), config)
    direct = DirectStep(made, config) if config.backend == "auto" and device.type == "cpu" else None
    return Network(made, optimiser, tables, config, direct)


def digest_of(network: Network) -> int:
    """A digest of the dense weights."""
    return zlib.crc32(network.optimiser.flat.cpu().numpy().data)


class ShardRun:
    """A rank's passes of a step. ``layout``: where its gradients will be, added up; NaN if a pass has failed, so that
    no rank waits for another. ``leaves``: the rows of each table that the step reads, if they come from elsewhere."""

    def __init__(
        self, network: Network, step: ShardedStep, shards: list[Shard], size: int,
        leaves: dict[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.layout = SummedGradients(step, network.tables, len(network.optimiser.flat), size, network.device)
        self.outputs = list[ShardOutputs]()
        self.failure: Exception | None = None
        self._network, self._step, self._shards, self._leaves = network, step, shards, leaves

    def __call__(self, when_predicted: Callable[[], None] | None = None) -> None:
        """Compute. ``when_predicted``: called once all outputs are there, or a pass has failed before."""
        tell = when_predicted or (lambda: None)
        try:
            total = self._passes(tell)
            self.layout.flat = self.layout.new() if total is None else total
        except FAILURES as error:
            is_told = len(self.outputs) == len(self._shards)
            self.failure, self.layout.flat = error, self.layout.new().fill_(float("nan"))
            if not is_told:
                tell()

    def _passes(self, tell: Callable[[], None]) -> Tensor | None:
        one, total = ShardPass(self._network, self._step, self.layout, self._leaves), TreeSum()

        def note(outputs: ShardOutputs) -> None:
            self.outputs.append(outputs)
            if len(self.outputs) == len(self._shards):
                tell()

        for shard in self._shards:
            total.add(one(shard, note))
        return total.total


def sum_divided(
    ranks: Ranks, layout: SummedGradients, exchange: Exchange, givers: list[int]
) -> dict[str, tuple[Int64, Tensor]]:
    """Add up all ranks' gradients: those of the dense weights in ``layout``, and by table those of the rows that this
    rank owns (`Exchange.summed`)."""
    dense = layout.dense(layout.flat)
    ranks.start_sum(F.pad(dense, (0, -len(dense) % ranks.size)), givers)
    rows = exchange.summed(layout.rows(layout.flat), givers)
    dense.copy_(ranks.summed()[: len(dense)])
    return rows


class Replica:
    """One rank without a learner: `run` until rank 0 ends it."""

    def __init__(self, ranks: Ranks, device: torch.device | str = "cpu") -> None:
        self._ranks, self._device = ranks, torch.device(device)
        self.network: Network | None = None
        self._kept = list[Any]()
        """A message that came when another one was expected."""
        self._due: Callable[[], None] | None = None

    def run(self) -> None:
        """Do what rank 0 says. Raises `RanksError` if it is lost."""
        while (message := self._next()) is not None:
            match message:
                case Whole():
                    self._become(message)
                case Work():
                    self._work(message)
                case Query():
                    self._ranks.answer(answer(self._tables, message))
                case Learn():
                    assert self._due is not None, "there is a step to learn"
                    self._due()
                case _:
                    self._adopt(message)

    def _next(self) -> Any:
        return self._kept.pop() if self._kept else self._ranks.take()

    @property
    def _tables(self) -> dict[str, EmbeddingTable]:
        assert self.network is not None, "rank 0 sends the network first"
        return self.network.tables

    def _become(self, whole: Whole) -> None:
        config = whole.trainer
        keep_in(config.tables_folder)
        tables = {name: empty_table(name, width, config, self._device) for name, width in whole.widths.items()}
        if whole.share != WHOLE:
            for table in tables.values():
                table.divide(whole.share)
        self.network, self._due = network_of(whole.model, config, tables, self._device), None
        self.network.optimiser.load_state_dict(whole.dense)

    def _adopt(self, renewed: Renewed) -> None:
        for name, parts in renewed.items():
            for rows in parts:
                adopt(self._tables[name], rows)

    def _work(self, work: Work) -> None:
        ranks = self._ranks
        self._adopt(work.renewed)
        network = self.network
        assert network is not None, "rank 0 sends the network first"
        digest, step, givers = digest_of(network), work.step, work.givers
        if work.wanted is None:
            run = ShardRun(network, step, work.shards, ranks.size)
            run(lambda: ranks.answer(Done.of(run.outputs, digest, run.failure)))
            ranks.start_sum(run.layout.flat, givers)
            run.layout.flat = ranks.summed()
            apply(network, step, run.layout)
            return
        exchange = Exchange(ranks, network.tables, step.rows, work.wanted)
        run = ShardRun(network, step, work.shards, 1, exchange.leaves())

        def predicted() -> None:
            ranks.answer(Done.of(run.outputs, digest, run.failure))
            self._answer_query()

        run(predicted)
        self._due = lambda: apply_divided(network, step, run.layout, sum_divided(ranks, run.layout, exchange, givers))

    def _answer_query(self) -> None:
        """Rank 0 asks for logits before it counts; it should not wait for this rank's gradients."""
        message = self._next()
        while isinstance(message, dict):
            self._adopt(message)
            message = self._next()
        if isinstance(message, Query):
            self._ranks.answer(answer(self._tables, message))
        else:
            self._kept.append(message)


def apply_divided(
    network: Network, step: ShardedStep, layout: SummedGradients, rows: dict[str, tuple[Int64, Tensor]]
) -> None:
    """Learn the summed gradients of the dense weights, and those of the rows that this rank owns."""
    scale = lr_scale(network.config, step.step)
    for name, (places, gradient_MD) in rows.items():
        network.tables[name].store.learn(places, gradient_MD, network.config.table_lr * scale, step.step)
    network.optimiser.gradient.copy_(layout.dense(layout.flat))
    network.optimiser.step(network.config.dense_lr * scale)


def adopt(table: EmbeddingTable, rows: TableRows) -> None:
    """Copy rows into a table as they are."""
    state_U = None if rows.state_U is None else torch.from_numpy(rows.state_U)
    table.put(rows.rows_U, rows.live_U, torch.from_numpy(rows.weight_UD), state_U)


def rows_of(table: EmbeddingTable, rows_U: Int64) -> TableRows:
    """A copy of rows."""
    weight_UD, state_U = table.read(rows_U)
    return TableRows(rows_U, table.live[rows_U], weight_UD, state_U)
