"""The ranks without a learner: each keeps a copy of the network and computes shards of each step.

A replica knows no keys, users or topics. It gets the whole network once, and with each step the rows that were added or
removed since the last one; every rank applies the summed gradients by itself. A replica stores nothing: after a
restart, rank 0 has the checkpoint.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import ModelConfig
from model.embedding import EmbeddingTable
from model.hstu import HSTU
from trainer.config import TrainerConfig
from trainer.direct_step import DirectStep
from trainer.optim import AdamW
from trainer.shard_pass import Network, ShardPass, apply
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


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """The whole network. ``dense``: the optimiser's state."""

    model: ModelConfig
    trainer: TrainerConfig
    dense: dict[str, Float32]
    tables: dict[str, tuple[int, TableRows]]
    """The rows of each table, and its width."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A rank's shards of a step, and how the tables' rows have changed since the last step."""

    step: ShardedStep
    shards: list[Shard]
    renewed: dict[str, TableRows]


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
    network: Network, step: ShardedStep, shards: list[Shard], size: int
) -> tuple[SummedGradients, list[ShardOutputs], Exception | None]:
    """A rank's passes, its gradients added up. If one fails, they are NaN: no rank waits for another, and the
    step is set aside."""
    layout = SummedGradients(step, network.tables, len(network.optimiser.flat), size, network.device)
    total, outputs = TreeSum(), list[ShardOutputs]()
    try:
        one = ShardPass(network, step, layout)
        for shard in shards:
            flat = layout.new()
            outputs.append(one(shard, flat))
            total.add(flat)
    except FAILURES as error:
        layout.flat = layout.new().fill_(float("nan"))
        return layout, [], error
    layout.flat = total.total
    return layout, outputs, None


class Replica:
    """One rank without a learner: `run` until rank 0 ends it."""

    def __init__(self, ranks: Ranks, device: torch.device | str = "cpu") -> None:
        self._ranks, self._device = ranks, torch.device(device)
        self.network: Network | None = None

    def run(self) -> None:
        """Do what rank 0 says. Raises `RanksError` if it is lost."""
        while (message := self._ranks.take()) is not None:
            if isinstance(message, Whole):
                self._become(message)
            else:
                self._work(message)

    def _become(self, whole: Whole) -> None:
        config = whole.trainer
        tables = {
            name: EmbeddingTable(width, init_std=0.0, seed=0, salt=0, device=self._device, backend=config.backend)
            for name, (width, _) in whole.tables.items()
        }
        self.network = network_of(whole.model, config, tables, self._device)
        self.network.optimiser.load_state_dict(whole.dense)
        for name, (_, rows) in whole.tables.items():
            adopt(tables[name], rows)

    def _work(self, work: Work) -> None:
        network, ranks = self.network, self._ranks
        assert network is not None, "rank 0 sends the whole network first"
        for name, rows in work.renewed.items():
            adopt(network.tables[name], rows)
        digest = digest_of(network)
        layout, outputs, failure = run_shards(network, work.step, work.shards, ranks.size)
        ranks.answer(Done.of(outputs, digest, failure))
        layout.flat = ranks.summed(layout.flat)
        apply(network, work.step, layout)


def adopt(table: EmbeddingTable, rows: TableRows) -> None:
    """Copy rows into a table as they are."""
    state_U = None if rows.state_U is None else torch.from_numpy(rows.state_U)
    table.put(rows.rows_U, rows.live_U, torch.from_numpy(rows.weight_UD), state_U)


def rows_of(table: EmbeddingTable, rows_U: Int64, *, with_state: bool) -> TableRows:
    """A copy of rows."""
    where = torch.from_numpy(rows_U).to(table.weight.device)
    state_U = table.state[where].cpu().numpy() if with_state else None
    return TableRows(rows_U, table.live[rows_U], table.weight[where].cpu().numpy(), state_U)
