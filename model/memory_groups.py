"""The numbers of groups: each column of items' features counts its values from 1, in the order in which they come. A
column that had to turn a value away gives back those of the values that were chosen least. ``group_key`` says at 0, the
number for none, which value was turned away last."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryArrays
from model.dirty import CHANGED

Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

FIRST_GROUPS, MOST_GROUPS = 64, 1024
"""For how many groups a column has room, at first and at most: each takes 140 bytes of every version."""
GIVEN_BACK = 128
"""How many numbers a full column gives back at a time: an eighth, so that values that are chosen often stay."""


class GroupNumbers:
    """Values of features (their hashes; 0 for none) → groups, as ``group_key`` of a memory says."""

    def __init__(self, memory: MemoryArrays) -> None:
        self._group_of = [
            {0: 0} | {key: group for group, key in enumerate(key_G) if group and key}
            for key_G in memory.group_key.tolist()
        ]
        self._free = [
            sorted(set(range(MOST_GROUPS)).difference(group_of.values()), reverse=True) for group_of in self._group_of
        ]
        self._new: list[tuple[int, int, int]] = []

    @property
    def has_new(self) -> bool:
        """Whether there are keys to `write`."""
        return bool(self._new)

    def number(self, key_RC: Int64) -> NDArray[np.int32]:
        """(R, C) groups. New values get the lowest free numbers; those that come when none is left are in no group."""
        columns = zip(range(len(self._group_of)), self._group_of, key_RC.T.tolist(), strict=False)
        groups = [
            [group_of[key] if key in group_of else self._give(column, key) for key in key_R]
            for column, group_of, key_R in columns
        ]
        return np.array(groups, np.int32).reshape(len(self._group_of), len(key_RC)).T.copy()

    def _give(self, column: int, key: int) -> int:
        group = 0
        if self._free[column]:
            group = self._group_of[column][key] = self._free[column].pop()
        self._new.append((column, group, key))
        return group

    def write(self, key_CG: Int64) -> None:
        """Write the keys of new groups, and of the values that were turned away."""
        for column, group, key in self._new:
            key_CG[column, group] = key
        self._new.clear()


def with_room(old: MemoryArrays, most: int) -> MemoryArrays:
    """The memory with room for groups up to the number ``most``."""
    num_groups = old.num_groups
    while num_groups <= most:
        num_groups *= 2
    longer = {name: getattr(old, name) for name in ("group_key", "group_seen", "group_next", "group_count")}
    for name, array in longer.items():
        longer[name] = np.zeros((array.shape[0], num_groups, *array.shape[2:]), array.dtype)
        longer[name][:, : old.num_groups] = array
    return replace(old, **longer)


def least_chosen(memory: MemoryArrays) -> Bools:
    """(C, G) the groups to give back, in columns that turned a value away; of equals, the lower ones."""
    is_given_CG = np.zeros(memory.group_key.shape, np.bool_)
    for column in np.flatnonzero(memory.group_key[:, 0]).tolist():
        numbers = 1 + np.flatnonzero(memory.group_key[column, 1:])
        in_order = np.argsort(memory.group_seen[column, numbers], kind="stable")
        is_given_CG[column, numbers[in_order[:GIVEN_BACK]]] = True
    return is_given_CG


def rows_in(memory: MemoryArrays, group_CG: Bools) -> Bools:
    """(V, C) which rows are in one of these groups."""
    return np.stack([group_G[group_V] for group_G, group_V in zip(group_CG, memory.group.T, strict=True)], axis=1)


def clear_groups(memory: MemoryArrays, group_CG: Bools, is_in_VC: Bools) -> None:
    """Forget these groups, and that rows are in them. What was chosen of them stays in the columns' totals."""
    for name in ("group_key", "group_seen", "group_next", "group_count"):
        getattr(memory, name)[group_CG] = 0
    for group_G, next_GN, count_GN in zip(group_CG, memory.group_next, memory.group_count, strict=True):
        is_next_GN = group_G[next_GN]
        next_GN[is_next_GN], count_GN[is_next_GN] = 0, 0.0
    memory.group_key[:, 0] = 0
    memory.group[is_in_VC] = 0
    memory.dirty[is_in_VC.any(axis=1)] = CHANGED
