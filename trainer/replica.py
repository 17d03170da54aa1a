"""The ranks without a learner: each keeps a copy of the network, or its share of the rows, and computes shards.

A replica knows no keys, users or topics. It gets its part of the network once, and with each step the rows that were
added or removed since the last one. Of the summed gradients every rank applies those of what it has: at once where it
has everything, and when rank 0 says so where rows are divided, since rank 0 asks for them as they were before the step.
A replica stores nothing: after a restart, rank 0 has the checkpoint.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

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
from trainer.direct_step import DirectStep
from trainer.division import Exchange, Query, answer
from trainer.optim import AdamW, lr_scale
from trainer.shard_pass import Network, ShardPass, apply, empty_table
from trainer.shards import Shard, ShardedStep, ShardOutputs, SummedGradients, TreeSum

if TYPE_CHECKING:
    from trainer.ranks import Ranks

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
FAILURES = (ArithmeticError, ValueError, IndexError)
"""Errors of a step that the trainer sets aside (`trainer.loop`)."""


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

    ``wanted``: where rows are divided, by table, the places at this rank of the rows that each rank reads (`Exchange`).
    """

    step: ShardedStep
    shards: list[Shard]
    renewed: Renewed
    wanted: dict[str, list[Int64]] | None = None


@dataclass(frozen=True, slots=True)
class Learn:
    """Apply the gradients of the step."""


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """The results of a rank's work. ``digest``: of the dense weights before the step, which must be equal everywhere.

    Results are arrays, since pickling a tensor takes half a millisecond.
    """

    arrays: list[tuple[Float32, Float32, Float32 | None]]
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
            )
            for each in outputs
        ]
        return Done(arrays, digest, "" if failure is None else f"{type(failure).__name__} ({failure})")

    def outputs(self, device: torch.device) -> list[ShardOutputs]:
        """The outputs as they were before they were sent."""
        return [
            ShardOutputs(
                torch.from_numpy(query_SD).to(device), torch.from_numpy(logits_RK).to(device),
                None if logit_SV is None else torch.from_numpy(logit_SV).to(device),
            )
            for query_SD, logits_RK, logit_SV in self.arrays
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


def run_shards(
    network: Network, step: ShardedStep, shards: list[Shard], size: int, leaves: dict[str, Tensor] | None = None
) -> tuple[SummedGradients, list[ShardOutputs], Exception | None]:
    """A rank's passes, its gradients added up. If one fails, they are NaN: no rank waits for another, and the
    step is set aside. ``leaves``: the rows of each table that the step reads, where they come from elsewhere."""
    layout = SummedGradients(step, network.tables, len(network.optimiser.flat), size, network.device)
    total, outputs = TreeSum(), list[ShardOutputs]()
    try:
        one = ShardPass(network, step, layout, leaves)
        for shard in shards:
            flat = layout.new()
            outputs.append(one(shard, flat))
            total.add(flat)
    except FAILURES as error:
        layout.flat = layout.new().fill_(float("nan"))
        return layout, [], error
    layout.flat = total.total
    return layout, outputs, None


def sum_divided(ranks: Ranks, layout: SummedGradients, exchange: Exchange) -> dict[str, tuple[Int64, Tensor]]:
    """Add up all ranks' gradients: those of the dense weights and the losses in ``layout``, and by table those of the
    rows that this rank owns (`Exchange.summed`)."""
    head = layout.head(layout.flat)
    head.copy_(ranks.summed(F.pad(head, (0, -len(head) % ranks.size)))[: len(head)])
    return exchange.summed(layout.rows(layout.flat))


class Replica:
    """One rank without a learner: `run` until rank 0 ends it."""

    def __init__(self, ranks: Ranks, device: torch.device | str = "cpu") -> None:
        self._ranks, self._device = ranks, torch.device(device)
        self.network: Network | None = None
        self._due: Callable[[], None] | None = None

    def run(self) -> None:
        """Do what rank 0 says. Raises `RanksError` if it is lost."""
        while (message := self._ranks.take()) is not None:
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
        digest = digest_of(network)
        if work.wanted is None:
            layout, outputs, failure = run_shards(network, work.step, work.shards, ranks.size)
            ranks.answer(Done.of(outputs, digest, failure))
            layout.flat = ranks.summed(layout.flat)
            apply(network, work.step, layout)
            return
        exchange = Exchange(ranks, network.tables, work.step.rows, work.wanted)
        layout, outputs, failure = run_shards(network, work.step, work.shards, 1, exchange.leaves())
        ranks.answer(Done.of(outputs, digest, failure))
        rows = sum_divided(ranks, layout, exchange)
        self._due = partial(apply_divided, network, work.step, layout, rows)


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
