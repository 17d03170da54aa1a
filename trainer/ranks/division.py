"""A step on tables whose rows are divided among the ranks (`model.share`), and rank 0's queries to the owners.

Each rank gets the rows that its shards read, from their owners, and returns the sums of their gradients; the owner of a
row adds up what the ranks return for it, in a tree over ranks, as `trainer.ranks.messages` does. Each direction is one
all-to-all, in which a row is sent once to each rank that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kernels.memory import memory_logits, memory_logits_of
from model.distinct import distinct
from model.embedding import EmbeddingTable
from model.share import Float32, Int32, Int64, Listed, Share
from trainer.ranks.shards import added

if TYPE_CHECKING:
    from trainer.ranks.messages import Ranks

Tables = dict[str, EmbeddingTable]
CHECKED_ROWS = 1 << 20
"""Of so many rows an owner says at a time whether they are finite."""


class Exchange:
    """The rows of one step. ``rows``: by table, those that this rank reads, ascending. ``wanted``: by table, the places
    at this rank of the rows that each rank reads."""

    def __init__(self, ranks: Ranks, tables: Tables, rows: dict[str, Int64], wanted: dict[str, list[Int64]]) -> None:
        self._ranks, self._tables, self._rows, self._wanted = ranks, tables, rows, wanted
        self._from = {
            name: [np.flatnonzero(rows_U % ranks.size == rank) for rank in range(ranks.size)]
            for name, rows_U in rows.items()
        }
        """By table, for each owner: where its rows are among those that this rank reads."""

    def leaves(self) -> dict[str, Tensor]:
        """(U, D) of each table: the rows that this rank reads, to collect gradients."""
        weights = {name: table.weight for name, table in self._tables.items() if name in self._rows}
        parts = self._swapped(weights, self._wanted, self._from)
        found = {name: torch.empty((len(rows), weights[name].shape[1])) for name, rows in self._rows.items()}
        for name, leaf_UD in found.items():
            for at, part in zip(self._from[name], parts[name], strict=True):
                leaf_UD[torch.from_numpy(at)] = part
            leaf_UD.requires_grad_()
        return found

    def summed(self, gradients: dict[str, Tensor], givers: Sequence[int]) -> dict[str, tuple[Int64, Tensor]]:
        """The rows that this rank owns and any rank reads: by table their places, ascending, and (M, D) the sum of the
        gradients of the ranks ``givers``; others read no rows. ``gradients``: (U, D) of what this rank reads."""
        parts = self._swapped(gradients, self._from, self._wanted)
        found = dict[str, tuple[Int64, Tensor]]()
        for name, wanted in self._wanted.items():
            places = distinct(np.concatenate(wanted))
            all_NMD = torch.zeros((len(wanted), len(places), gradients[name].shape[1]))
            for one_MD, mine, part in zip(all_NMD, wanted, parts[name], strict=True):
                one_MD[torch.from_numpy(np.searchsorted(places, mine))] = part
            found[name] = places, added(all_NMD, givers)
        return found

    def _swapped(
        self, rows: dict[str, Tensor], sent: dict[str, list[Int64]], got: dict[str, list[Int64]]
    ) -> dict[str, list[Tensor]]:
        """Send each rank the rows of each table at ``sent``; returns what each has sent, as many rows as in ``got``."""
        ranks, names = range(self._ranks.size), list(self._rows)
        parts = [
            torch.cat([rows[name].detach()[torch.from_numpy(sent[name][rank])].float().flatten() for name in names])
            for rank in ranks
        ]
        widths = {name: rows[name].shape[1] for name in names}
        lengths = [[len(got[name][rank]) * widths[name] for name in names] for rank in ranks]
        flats = self._ranks.swapped(parts, [sum(each) for each in lengths])
        pieces = [torch.split(flat, each) for flat, each in zip(flats, lengths, strict=True)]
        return {name: [piece[index].view(-1, widths[name]) for piece in pieces] for index, name in enumerate(names)}


def wanted_of(reads: Sequence[Int64], share: Share) -> list[Int64]:
    """For each rank, the places at one owner of the rows that it reads. ``reads``: (U,) of each rank."""
    return [share.places(rows_U[share.is_own(rows_U)]) for rows_U in reads]


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """Rank 0's query to the owners of a table: a method of `model.share.Owners` with its arguments, by places."""

    table: str
    what: str
    given: tuple[Any, ...]


def answer(tables: Tables, query: Query) -> Any:
    """This owner's answer."""
    store = tables[query.table].store
    weight_VD = store.array
    if query.what == "read":
        return store.read(*query.given)
    if query.what == "logits":
        query_AD, num, unit_width = query.given
        return memory_logits(query_AD, weight_VD, num, unit_width)
    if query.what == "both_logits":
        all_of, some_of = query.given
        return memory_logits(all_of[0], weight_VD, *all_of[1:]), memory_logits_of(some_of[0], weight_VD, *some_of[1:])
    return store.is_finite(*query.given)


class DividedRows:
    """The rows of one table wherever they are, for rank 0: `model.share.Owners`.

    ``before``: called before each query, to tell the others what they must know first.
    """

    def __init__(self, ranks: Ranks, tables: Tables, name: str, before: Callable[[], None]) -> None:
        self._ranks, self._tables, self._name, self._before = ranks, tables, name, before

    def read(self, rows_U: Int64) -> tuple[Float32, Float32]:
        """See `Owners`."""
        table = self._tables[self._name]
        weight_UD, state_U = np.empty((len(rows_U), table.width), np.float32), np.empty(len(rows_U), np.float32)
        owner_U = rows_U % self._ranks.size
        at = [np.flatnonzero(owner_U == rank) for rank in range(self._ranks.size)]
        found = self._asked("read", [(rows_U[each] // self._ranks.size,) for each in at])
        for where, (weights, states) in zip(at, found, strict=True):
            weight_UD[where], state_U[where] = weights, states
        return weight_UD, state_U

    def logits(self, query_AD: Float32, unit_width: int) -> Float32:
        """See `Owners`."""
        return self._joined(query_AD, self._asked("logits", self._of_all(query_AD, unit_width)))

    def listed(self, row: Int32, begin_B1: Int64) -> Listed:
        """See `Owners`."""
        size, query = self._ranks.size, np.repeat(np.arange(len(begin_B1) - 1), np.diff(begin_B1))
        at = [np.flatnonzero(row % size == rank) for rank in range(size)]
        begins = [np.searchsorted(query[each], np.arange(len(begin_B1))) for each in at]
        return Listed(at, [row[each] // size for each in at], begins)

    def both_logits(
        self, all_of_AD: Float32, some_of_BD: Float32, listed: Listed, unit_width: int
    ) -> tuple[Float32, Float32]:
        """See `Owners`."""
        each = zip(self._of_all(all_of_AD, unit_width), listed.place, listed.begin_B1, strict=True)
        given = [(all_of, (some_of_BD, place, begin_B1, unit_width)) for all_of, place, begin_B1 in each]
        found, logit = self._asked("both_logits", given), np.empty(sum(map(len, listed.at)), np.float32)
        for at, (_, part) in zip(listed.at, found, strict=True):
            logit[at] = part
        return self._joined(all_of_AD, [part for part, _ in found]), logit

    def _of_all(self, query_AD: Float32, unit_width: int) -> list[tuple[Float32, int, int]]:
        """What each owner is asked for the logits of all of its rows."""
        size, num_rows = self._ranks.size, self._tables[self._name].num_rows
        return [(query_AD, len(range(rank, num_rows, size)), unit_width) for rank in range(size)]

    def _joined(self, query_AD: Float32, parts: Sequence[Float32]) -> Float32:
        logit_AV = np.empty((len(query_AD), self._tables[self._name].num_rows), np.float32)
        for rank, part in enumerate(parts):
            logit_AV[:, rank :: self._ranks.size] = part
        return logit_AV

    def is_finite(self) -> bool:
        """See `Owners`. Asked in parts: a rank whose rows are on a slow disk should not seem to hang."""
        num_rows, size = self._tables[self._name].num_rows, self._ranks.size
        parts = [
            (first, min(num_rows, first + size * CHECKED_ROWS)) for first in range(0, num_rows, size * CHECKED_ROWS)
        ]
        return all(all(self._asked("is_finite", [part] * size)) for part in parts)

    def _asked(self, what: str, given: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The owners' answers, rank 0's first."""
        self._before()
        queries = [Query(self._name, what, each) for each in given]
        self._ranks.ask(queries[1:])
        return [answer(self._tables, queries[0]), *self._ranks.answers()]
