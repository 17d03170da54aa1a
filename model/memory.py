"""The memory as trainer and servers hold it: its arrays grow with the item table and are published with the weights.

Its rows are the item table's. The trainer learns, publishes what changed and clears evicted rows; a server applies what
was published. Both score with the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.memory import (
    MemoryAnswers,
    MemoryArrays,
    MemoryCandidates,
    MemoryEvents,
    MemoryOutcome,
    MemoryRules,
    MemoryStanding,
    memory_best,
    memory_candidates,
    memory_forget,
    memory_learn,
    memory_learn_given,
    memory_learn_sampled,
    memory_scores,
    memory_stand,
)
from model.config import ModelConfig
from model.dirty import CHANGED, UNPUBLISHED, clear
from model.growing import GrowingColumns
from model.memory_form import in_form
from model.memory_groups import GroupNumbers, clear_groups, least_chosen, rows_in, with_room
from model.memory_pairs import PAIR_CHANGES, PAIRS, empty_pairs, pairs_at
from model.memory_room import (
    CHANGES,
    CHECKPOINTED,
    FIRST_CAPACITY,
    NUM_BUCKETS,
    capacity_for,
    clear_changed,
    clear_rows,
    copied,
    empty_memory,
    neighbours_at,
    reshaped,
    with_counts_of,
    with_hours,
)
from model.memory_version import (
    LEARNED,
    NEIGHBOURS,
    ROWS,
    changes_of,
    counted_alike,
    num_columns_of,
    num_hours_of,
    size_of,
    take_over,
)
from model.upgrade import upgraded

if TYPE_CHECKING:
    from kernels.memory.device import DeviceMemory, DeviceOutcome

Int64 = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]

MOST_LOGITS = 1 << 24


class Memory:
    """Counts and gains of one model. The same calls in the same order give the same memory; one writer at a time.

    The features of items are its groups. ``group``: how many events `learn_together` predicts from one state, on a GPU
    (``device``). ``rules`` and ``backend``: as `kernels.memory` takes them.
    """

    def __init__(
        self,
        config: ModelConfig,
        rules: MemoryRules | None = None,
        *,
        backend: str = "auto",
        device: torch.device | None = None,
        group: int = 1,
    ) -> None:
        self._most, self.rules = config.memory_neighbours, rules or MemoryRules()
        self.backend = "reference" if backend == "reference" else "auto"
        self._device, self._group = device, group
        self._there: DeviceMemory | None = None
        self._numbers: GroupNumbers | None = None
        self._here = empty_memory(FIRST_CAPACITY, self._most, config.num_features)
        self.num_rows = 1
        self._columns = GrowingColumns()

    @property
    def arrays(self) -> MemoryArrays:
        """The arrays on the host, updated from the GPU if they are there."""
        if self._there is not None:
            self._there.fetch(self._here)
        return self._here

    @arrays.setter
    def arrays(self, arrays: MemoryArrays) -> None:
        self._here, self._there, self._numbers = arrays, None, None

    def _take_back(self) -> MemoryArrays:
        """The arrays, to be changed on the host; they are then copied to the GPU again."""
        self.arrays = self.arrays
        return self._here

    def grow(self, num_rows: int) -> None:
        """Make room for rows below ``num_rows``."""
        self.num_rows = max(self.num_rows, num_rows)
        # Not `arrays`, which would bring what has changed on a GPU.
        capacity = capacity_for(self.num_rows, self._here.capacity)
        if capacity > self._here.capacity:
            width = neighbours_at(capacity, self._most)
            self.arrays = reshaped(self.arrays, capacity, width, self._columns)

    def groups_of(self, key_RC: Int64) -> NDArray[np.int32]:
        """(R, C) groups of items with these features (hashes; 0 for none): see `model.memory_groups`."""
        numbers = self._numbers or GroupNumbers(self._here)
        group_RC = numbers.number(key_RC)
        if (most := int(group_RC.max(initial=0))) >= self._here.num_groups:
            self.arrays = with_room(self.arrays, most)
        if numbers.has_new:
            numbers.write(self._here.group_key)  # which only the host has
        self._numbers = numbers
        return group_RC

    def give_back_groups(self, before_change: Callable[[Int64], None]) -> None:
        """Forget the groups that were chosen least of columns where new ones get no number. ``before_change``: called
        with the rows that are in some of them."""
        if not least_chosen(self._here).any():
            return
        arrays = self._take_back()
        group_CG = least_chosen(arrays)  # by what a GPU has counted too
        is_in_VC = rows_in(arrays, group_CG)
        before_change(np.flatnonzero(is_in_VC.any(axis=1)))
        clear_groups(arrays, group_CG, is_in_VC)

    @property
    def leaves_out_repeats(self) -> bool:
        """Whether the stream has so few repeats that items a user has met are left out."""
        return self.arrays.leaves_out_repeats

    @property
    def leaves_out(self) -> bool:
        """Whether items that a user has met are left out; on a GPU, as of the last outcome that was waited for."""
        of = self._here if self._there is None else self._there
        return self.rules.exclude == "always" or (self.rules.exclude == "auto" and of.leaves_out_repeats)

    def learn(self, events: MemoryEvents, logit_AV: NDArray[np.float32]) -> MemoryOutcome:
        """Predict, learn and count events of rows below ``num_rows``, in order. Repeats that are left out are misses,
        since no server recommends them; they are learned all the same."""
        leaves_out = self.leaves_out
        outcome = memory_learn(self.arrays, self.num_rows, events, logit_AV, self.rules, backend=self.backend)
        return outcome.missed(events.is_repeat_R) if leaves_out else outcome

    def learn_sampled(
        self, events: MemoryEvents, query_AD: NDArray[np.float32], table_VD: NDArray[np.float32], unit_width: int
    ) -> MemoryOutcome:
        """The same from a sample of the rows: see `kernels.memory.memory_learn_sampled`."""
        return memory_learn_sampled(
            self.arrays, self.num_rows, events, query_AD, table_VD, unit_width, self.rules, backend=self.backend
        )

    def candidates(self, events: MemoryEvents) -> tuple[NDArray[np.int32], Int64]:
        """Which rows' logits `learn_sampled` may read: see `kernels.memory.memory_candidates`."""
        return memory_candidates(self.arrays, self.num_rows, events, backend=self.backend)

    def learn_given(
        self, events: MemoryEvents, row: NDArray[np.int32], begin_A1: Int64, logit: NDArray[np.float32]
    ) -> MemoryOutcome:
        """`learn_sampled` with the logits of `candidates`."""
        return memory_learn_given(
            self.arrays, self.num_rows, events, row, begin_A1, logit, self.rules, backend=self.backend
        )

    def learn_together(self, events: MemoryEvents, logit_AV: Tensor) -> DeviceOutcome:
        """The same on a GPU, where ``logit_AV`` is: up to ``group`` events from one state. Does not wait for it."""
        from kernels.memory.device import DeviceMemory

        assert self._device is not None
        if self._there is None:
            self._there = DeviceMemory(self._here, self.rules, self._device, self._group)
        return self._there.learn(self.num_rows, events, logit_AV)

    def score(self, events: MemoryEvents, logit_AV: NDArray[np.float32]) -> None:
        """Turn the network's logits into scores, in place."""
        memory_scores(self.arrays, self.num_rows, events, logit_AV, backend=self.backend)

    def stand(self) -> MemoryStanding:
        """What `best` needs; valid until this memory changes."""
        return memory_stand(self.arrays, self.num_rows, backend=self.backend)

    def best(
        self,
        standing: MemoryStanding,
        events: MemoryEvents,
        query_RD: NDArray[np.float32],
        table_VD: NDArray[np.float32],
        answers: MemoryAnswers,
        candidates: MemoryCandidates | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The best rows for each query, and their scores: see `kernels.memory.memory_best`."""
        return memory_best(self.arrays, standing, events, query_RD, table_VD, answers, candidates, backend=self.backend)

    def forget(self, rows_N: Int64) -> None:
        """Clear rows that were evicted and will be reused, also as neighbours of other rows."""
        if not len(rows_N):
            return
        arrays = self._take_back()
        gone_V = np.zeros(arrays.capacity, np.bool_)
        gone_V[rows_N] = True
        clear_rows(arrays, rows_N)
        memory_forget(arrays, self.num_rows, gone_V, backend=self.backend)
        arrays.dirty[rows_N] = CHANGED

    def changes(self, *, everything: bool) -> Arrays:
        """What a version carries (`changes_of`): everything, or what changed since `mark_published`; and all gains."""
        return changes_of(self.arrays, self.num_rows, everything=everything)

    def mark_published(self) -> None:
        """Start collecting the next changes: the caller delivers what `changes` returned."""
        clear(self.arrays.dirty, UNPUBLISHED)
        clear(self.arrays.pair_dirty, UNPUBLISHED)
        self.arrays.moved[:] = 0
        self.arrays.pair_moved[:] = 0

    def apply(self, changes: Mapping[str, NDArray[Any]], *, is_base: bool) -> None:
        """Apply what a version carries, which may be nothing; a base replaces everything. Raises as `in_form` does."""
        if not changes:
            return
        changes = in_form(changes)
        num_rows, capacity, width = size_of(changes)
        if is_base or capacity != self.arrays.capacity or width != self.arrays.width:
            self._resize(capacity, width, num_columns_of(changes), num_hours_of(changes), keep=not is_base)
        self.arrays = with_hours(self.arrays, num_hours_of(changes))
        take_over(self._take_back(), changes)
        self.num_rows = num_rows

    def _resize(self, capacity: int, width: int, num_columns: int, num_hours: int, *, keep: bool) -> None:
        """When the width changes, every row is published again, so it does not matter what a narrower one cuts off. So
        are all pairs in another table, from which some are gone that this one still has.
        Weights that are published as steps then start from zero (`trainer.versions.rounding`)."""
        if keep:
            is_other, old = width != self.arrays.width, self.arrays
            if old.num_pairs and pairs_at(capacity) != old.num_pairs:  # all that the trainer has moved are published
                old = replace(old, **empty_pairs(0))
            self.arrays = reshaped(old, capacity, width, self._columns)
            if is_other:
                self.arrays.weight[:] = 0.0
        else:
            nothing = MemoryArrays.empty(0, width, NUM_BUCKETS, num_columns, num_hours=num_hours)
            self.arrays = reshaped(nothing, capacity, width, self._columns)

    def adopt(self, published: Memory) -> None:
        """Continue from a reader's memory: everything except the gains' Adagrad state and the last choices. Versions of
        earlier builds have no groups, pairs and times of day; they are counted from here on."""
        arrays = with_counts_of(self._here, published.arrays)
        self.arrays, self.num_rows = copied(arrays, self._columns), published.num_rows
        clear_changed(self.arrays)

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        arrays = self.arrays
        learned = (getattr(arrays, name) for name in (*LEARNED, *CHECKPOINTED))
        numbers = (*learned, arrays.seen, arrays.heat, arrays.weight, arrays.pair_count)
        return all(bool(np.isfinite(each).all()) for each in numbers)

    def copy(self) -> Memory:
        """A copy that shares no mutable state."""
        other = object.__new__(Memory)
        other._most, other.rules, other.backend = self._most, self.rules, self.backend
        other._device, other._group = self._device, self._group
        other._columns, other.num_rows = GrowingColumns(), self.num_rows
        other.arrays = copied(self.arrays, other._columns)
        return other

    def learned(self) -> Arrays:
        """The arrays that belong to no row, with the optimiser's state."""
        return {name: getattr(self.arrays, name) for name in (*LEARNED, *CHECKPOINTED)}

    def state_dict(self) -> Arrays:
        """Everything, as arrays."""
        arrays, num = self.arrays, self.num_rows
        state = {each.name: getattr(arrays, each.name) for each in fields(arrays)}
        cut = {name: state[name][:num] for name in (*ROWS, *NEIGHBOURS, *CHANGES)}
        unpublished = {name: {**state, **cut}[name] & UNPUBLISHED for name in ("dirty", "pair_dirty")}
        return {**state, **cut, "heat": arrays.heat[:, :num], **unpublished}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Become the memory that ``state`` was taken from."""
        state, num = upgraded(state), len(state["seen"])
        self.grow(num)
        self._take_back()
        if (width := state["neighbour_row"].shape[1]) != self._here.width:  # of an earlier build
            self.arrays = reshaped(self._here, self._here.capacity, width, self._columns)
        state = counted_alike(self._here, state)
        for name in {*ROWS, *NEIGHBOURS, *CHANGES} & state.keys():
            getattr(self.arrays, name)[:num] = state[name]
        self.arrays.heat[:, :num] = state["heat"]
        whole = {*LEARNED, *CHECKPOINTED, *PAIRS, *PAIR_CHANGES}
        for name in whole & state.keys():  # what was `upgraded` has no shortlist, earlier builds had no pairs
            setattr(self.arrays, name, state[name].copy())
