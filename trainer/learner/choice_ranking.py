"""The choice that is being ranked among all rows, in slices over the next steps (`kernels.memory.ranking`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakMethod

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryEvents, MemoryOutcome, Ranks
from kernels.memory.ranking import (
    memory_rank_begin,
    memory_rank_end,
    memory_rank_next,
    memory_rank_rows,
)
from kernels.memory.ranking_state import MemoryRanking
from kernels.row_types import Rows
from model.embedding import EmbeddingTable
from model.memory import Memory

Int64 = NDArray[np.int64]


class ChoiceRanking:
    """At most one choice at a time. It hears of every row of ``items`` before its weights change.

    ``rows_per_event``: how many rows are scored after each event that is learned.
    """

    def __init__(self, memory: Memory, items: EmbeddingTable, unit_width: int, rows_per_event: int) -> None:
        self._memory, self._items, self._unit_width = memory, items, unit_width
        self._rows_per_event = rows_per_event
        self._ranking: MemoryRanking | None = None
        self._num_due = 0
        """How many rows the events since the beginning have paid for. When a ranking ends depends on this alone: rows
        may be scored earlier, whenever a table is divided."""
        heard = WeakMethod(self.before_change)  # a learner that is dropped must be freed at once
        items.before_change = lambda row_N: None if (hear := heard()) is None else hear(row_N)

    @property
    def is_begun(self) -> bool:
        """Whether there is a choice whose ranks are not known yet."""
        return self._ranking is not None

    @property
    def is_scored(self) -> bool:
        """Whether there is one of which only `end` is left."""
        return self._ranking is not None and self._num_due >= self._ranking.num_rows

    def begin(
        self, event: MemoryEvents, query_D: NDArray[np.float32], logit_V: NDArray[np.float32] | None = None
    ) -> None:
        """Predict the only choice of ``event``, of a row that the memory has met. ``logit_V``: its logits of all rows;
        if there are none, and others hold rows, they are asked for."""
        memory, query_D, owners = self._memory, query_D.copy(), self._items.owners
        if owners is not None:
            logit_V = owners.logits(query_D[None], self._unit_width)[0] if logit_V is None else logit_V.copy()
        table_VD = self._items.store.array if owners is None else None
        self._num_due = 0
        self._ranking = memory_rank_begin(
            memory.arrays, memory.num_rows, event, query_D, table_VD, self._unit_width, memory.rules,
            logit_V=logit_V, backend=memory.backend,
        )  # fmt: skip

    def beside(self, events: MemoryEvents, learn: Callable[[], MemoryOutcome]) -> MemoryOutcome:
        """Have the memory ``learn`` these events, then score the next rows."""
        ranking = self._ranking
        if ranking is None:
            return learn()
        self.before_change(events.target_R)
        before = self._memory.arrays.clock.copy()
        outcome = learn()
        num_counted = int(((events.chosen_R > 0) & (events.target_R > 0)).sum())
        ranking.follow_units(before, self._memory.arrays, num_counted, self._memory.rules)
        self._num_due += self._rows_per_event * len(events)
        self._score_next(ranking, self._num_due - (ranking.num_rows - ranking.num_left))
        return outcome

    def before_change(self, row_N: NDArray[np.integer] | None) -> None:
        """Score these rows, which are about to change; None: all that are left."""
        if self._ranking is None:
            return
        if row_N is None:
            self._score_next(self._ranking, self._ranking.num_left)
        elif self._ranking.num_left:
            memory = self._memory
            rows = np.asarray(row_N, np.int64)
            memory_rank_rows(
                memory.arrays, self._ranking, rows, self._table(self._ranking), self._unit_width, backend=memory.backend
            )

    def _score_next(self, ranking: MemoryRanking, num: int) -> None:
        if ranking.num_left and num > 0:
            memory, table_VD = self._memory, self._table(ranking)
            memory_rank_next(memory.arrays, ranking, num, table_VD, self._unit_width, backend=memory.backend)

    def _table(self, ranking: MemoryRanking) -> Rows | None:
        return None if len(ranking.logit_V) else self._items.store.array

    def end(self) -> Ranks:
        """The ranks, of a choice that was begun."""
        assert self._ranking is not None, "begin() comes first"
        self.before_change(None)
        memory = self._memory
        ranks = memory_rank_end(memory.arrays, self._ranking, memory.rules, backend=memory.backend)
        self._ranking = None
        return ranks

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint; none if no choice was begun."""
        if self._ranking is None:
            return {}
        return {**self._ranking.state_dict(), "num_due": np.array([self._num_due], np.int64)}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`."""
        self._ranking = MemoryRanking.from_state(state) if "score_V" in state else None
        self._num_due = int(state["num_due"][0]) if self._ranking is not None else 0
