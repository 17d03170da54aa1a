"""A step in shards: groups of consecutive users, whose gradients are computed separately and summed in a fixed order.

Several ranks (`trainer.ranks.messages`) share a step's shards. How a batch is cut depends only on the batch and the
number of shards, and gradients are summed as a balanced binary tree of which every rank has a whole branch. So the sum
has the same bits whether one process computes all shards, or several share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.embedding import EmbeddingTable
from model.tokens import ITEMS
from trainer.examples.batch import JaggedBatch

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """Some of a step's users, as the network needs them: rows instead of keys.

    ``row_n``: the interactions' items; ``target_row_R``: the targets', 0 if there is none; ``side_nF``: for each other
    table, the rows that are added to an interaction's token. ``seed``: for dropout.
    """

    seed: int
    batch: JaggedBatch
    row_n: Int64
    target_row_R: Int64
    prior_RPK: NDArray[np.float32]
    side_nF: dict[str, Int64]


@dataclass(frozen=True, slots=True, eq=False)
class ShardedStep:
    """What all shards of a step have in common.

    ``num_targets``, ``num_learned``: the targets, and the choices that are learned, of all shards. ``num_rows``: of the
    item table, all of which compete; 0 if negatives are drawn. ``rows``: which rows of a table the step reads,
    ascending. ``drawn_S``, ``log_draws_S``: the negatives' rows, and the log of how often each is expected.
    """

    step: int
    num_targets: int
    num_learned: int
    num_rows: int
    rows: dict[str, Int64]
    drawn_S: Int64
    log_draws_S: NDArray[np.float32]

    @property
    def exact(self) -> bool:
        """Whether the whole catalogue competes."""
        return self.num_rows > 0

    def rows_of(self, table: str) -> Int64:
        """(U,) the rows that the step reads."""
        return np.arange(self.num_rows) if table == ITEMS and self.exact else self.rows[table]

    def places(self, table: str, rows_N: Int64) -> Int64:
        """(N,) where these rows stand in `rows_of`."""
        return rows_N if table == ITEMS and self.exact else np.searchsorted(self.rows[table], rows_N)


@dataclass(frozen=True, slots=True, eq=False)
class ShardOutputs:
    """Predictions of a shard's S choices and R targets. ``logit_SV``: over the whole catalogue, if computed.
    ``loss_2``: the shard's parts of the step's losses, of retrieval and of ranking."""

    query_SD: Tensor
    logits_RK: Tensor
    logit_SV: Tensor | None
    loss_2: Tensor


class SummedGradients:
    """A step's gradients as one vector (``flat``): the sum over shards is the sum of vectors.

    The vector's length is a multiple of ``multiple``.
    """

    def __init__(
        self, step: ShardedStep, tables: dict[str, EmbeddingTable], num_dense: int, multiple: int, device: torch.device
    ) -> None:
        shapes = {name: (len(step.rows_of(name)), tables[name].width) for name in tables_of(step)}
        length = num_dense + sum(rows * width for rows, width in shapes.values())

        self._num_dense, self._shapes = num_dense, shapes
        self._length, self._device = -(-length // multiple) * multiple, device
        self.flat = torch.zeros(0, device=device)

    def new(self) -> Tensor:
        """A vector of zeros, for one shard."""
        return torch.zeros(self._length, device=self._device)

    def dense(self, flat: Tensor) -> Tensor:
        """The dense weights' gradient, which is summed for every rank, even where rows are divided."""
        return flat[: self._num_dense]

    def rows(self, flat: Tensor) -> dict[str, Tensor]:
        """(U, D) the gradient of each table's rows."""
        found, start = dict[str, Tensor](), self._num_dense
        for name, (num, width) in self._shapes.items():
            found[name] = flat[start : start + num * width].view(num, width)
            start += num * width
        return found


def tables_of(step: ShardedStep) -> list[str]:
    """The tables that a step reads."""
    return [ITEMS, *(name for name in step.rows if name != ITEMS)]


class TreeSum:
    """Adds vectors up as a balanced binary tree, in the order in which they are added; their number is a power of 2.

    One that is missing (None) leaves the others as they are, also in the signs of their zeros.
    """

    def __init__(self) -> None:
        self._branches: list[tuple[int, Tensor | None]] = []

    def add(self, flat: Tensor | None) -> None:
        """Add one more; it is overwritten."""
        size = 1
        while self._branches and self._branches[-1][0] == size:
            before = self._branches.pop()[1]
            flat = before if flat is None else flat if before is None else before.add_(flat)
            size *= 2
        self._branches.append((size, flat))

    @property
    def total(self) -> Tensor | None:
        """The sum; None if all are missing."""
        ((_, flat),) = self._branches
        return flat


def added(parts: Sequence[Tensor] | Tensor, givers: Sequence[int]) -> Tensor:
    """The sum of those parts, as a tree of which the others are missing; overwrites them."""
    total = TreeSum()
    for number, part in enumerate(parts):
        total.add(part if number in givers else None)
    assert total.total is not None, "somebody has something to add"
    return total.total


COUNTING_TOKENS = 20
"""What rank 0 does alone for a target (memory, odds, metrics) takes about as long as both passes of so many tokens."""
LEAST_SHARE = 0.5
"""The first shard has at least this part of what the others have, or nothing: each shard has costs of its own."""


def first_tokens(num_tokens: int, num_targets: int, num_shards: int) -> int:
    """How many of a step's tokens the first shard has. It is rank 0's, which counts the targets besides."""
    counting = COUNTING_TOKENS * num_targets
    first = (num_tokens + counting) // num_shards - counting
    others = (num_tokens - max(0, first)) // max(1, num_shards - 1)
    return first if first >= LEAST_SHARE * others else 0


def bounds_of(batch: JaggedBatch, num_shards: int) -> Int64:
    """(num_shards + 1,) the first user of each shard, so that each has about as much to do, given that rank 0 has the
    first one; some may have no user."""
    num = int(batch.starts_B1[-1])
    first = first_tokens(2 * num, batch.num_targets, num_shards) // 2 if num_shards > 1 else num
    others = (num - first) * np.arange(num_shards) // max(1, num_shards - 1)
    bounds: Int64 = np.searchsorted(batch.starts_B1, [0, *(first + others)])
    return bounds


def take_users(batch: JaggedBatch, first: int, stop: int) -> JaggedBatch:
    """The batch of the users ``first`` to ``stop`` (exclusive)."""
    start, end = batch.starts_B1[[first, stop]]
    targets = slice(*np.searchsorted(batch.target_R, [start, end]))
    parts = {"n": slice(start, end), "B": slice(first, stop), "R": targets}
    columns: dict[str, Any] = {}
    for each in fields(batch):
        suffix = each.name.rpartition("_")[2]
        if suffix[0] in parts and each.name != "starts_B1" and isinstance(getattr(batch, each.name), np.ndarray):
            columns[each.name] = getattr(batch, each.name)[parts[suffix[0]]]
    previous_R = columns["previous_R"]
    columns["owner_R"] = columns["owner_R"] - first
    columns["target_R"] = columns["target_R"] - start
    columns["previous_R"] = np.where(previous_R < 0, -1, previous_R - start)
    return replace(batch, starts_B1=batch.starts_B1[first : stop + 1] - start, **columns)


def cut(
    batch: JaggedBatch, step: int, num_shards: int, row_n: Int64, target_row_R: Int64, prior_RPK: NDArray[np.float32],
    side_nF: dict[str, Int64],
) -> list[Shard]:  # fmt: skip
    """The shards of a step, in order."""
    bounds, shards = bounds_of(batch, num_shards), list[Shard]()
    for number, (first, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        start, end = batch.starts_B1[[first, stop]]
        targets = slice(*np.searchsorted(batch.target_R, [start, end]))
        sides = {name: rows_nF[start:end] for name, rows_nF in side_nF.items()}
        shards.append(
            Shard(
                step * num_shards + number, take_users(batch, first, stop), row_n[start:end], target_row_R[targets],
                prior_RPK[targets], sides,
            )
        )  # fmt: skip
    return shards


def joined(outputs: Sequence[ShardOutputs]) -> ShardOutputs:
    """The outputs of all shards as those of one."""
    logits = [each.logit_SV for each in outputs if each.logit_SV is not None]
    return ShardOutputs(
        torch.cat([each.query_SD for each in outputs]),
        torch.cat([each.logits_RK for each in outputs]),
        torch.cat(logits) if len(logits) == len(outputs) else None,
        added([each.loss_2 for each in outputs], [at for at, each in enumerate(outputs) if len(each.logits_RK)]),
    )
