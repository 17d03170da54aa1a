"""The numbers of groups: each column of items' features counts its values from 1, in the order in which they come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryArrays

Int64 = NDArray[np.int64]

FIRST_GROUPS, MOST_GROUPS = 64, 1024
"""For how many groups a column has room, at first and at most: each takes 140 bytes of every version."""


class GroupNumbers:
    """Values of features (their hashes; 0 for none) → groups, as ``group_key`` of a memory says."""

    def __init__(self, memory: MemoryArrays) -> None:
        self._group_of = [{key: group for group, key in enumerate(key_G) if key} for key_G in memory.group_key.tolist()]
        self._num_written = self._num

    @property
    def _num(self) -> int:
        return sum(map(len, self._group_of))

    @property
    def has_new(self) -> bool:
        """Whether there are numbers whose keys were not written."""
        return self._num > self._num_written

    def number(self, key_RC: Int64) -> NDArray[np.int32]:
        """(R, C) groups. New values get the next numbers; those that come when no number is left are in no group."""
        columns = zip(self._group_of, key_RC.T.tolist(), strict=False)
        groups = [[_number(group_of, key) for key in key_R] for group_of, key_R in columns]
        return np.array(groups, np.int32).reshape(len(self._group_of), len(key_RC)).T.copy()

    @property
    def num_groups(self) -> int:
        """The fewest that a memory needs room for, with the one that stands for none."""
        return 1 + max(map(len, self._group_of), default=0)

    def with_room(self, memory: MemoryArrays) -> MemoryArrays:
        """The memory with room for all groups."""
        num_groups = memory.num_groups
        while num_groups < self.num_groups:
            num_groups *= 2
        return _with_groups(memory, num_groups)

    def write(self, key_CG: Int64) -> None:
        """Write the keys of all groups."""
        for key_G, group_of in zip(key_CG, self._group_of, strict=True):
            key_G[1 : 1 + len(group_of)] = list(group_of)
        self._num_written = self._num


def _number(group_of: dict[int, int], key: int) -> int:
    if not key or (len(group_of) == MOST_GROUPS - 1 and key not in group_of):
        return 0
    return group_of.setdefault(key, len(group_of) + 1)


def _with_groups(old: MemoryArrays, num_groups: int) -> MemoryArrays:
    longer = {name: getattr(old, name) for name in ("group_key", "group_seen", "group_next", "group_count")}
    for name, array in longer.items():
        longer[name] = np.zeros((array.shape[0], num_groups, *array.shape[2:]), array.dtype)
        longer[name][:, : old.num_groups] = array
    return replace(old, **longer)
