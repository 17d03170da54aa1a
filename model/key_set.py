"""Keys that are asked about many at a time, such as the items that were removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSet

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class KeySet(MutableSet[int]):
    """A set that is also a sorted array. Neither a change nor a look takes time for each key, but for the first look
    after changes, which sorts all keys (a quarter of a second for a million): they change when a person asks for it.
    One writer; any thread may look."""

    def __init__(self, keys: Iterable[int] = ()) -> None:
        self._keys = set(keys)
        self._num_changes = 0
        self._sorted = -1, np.zeros(0, np.int64)
        """At which number of changes it was made."""

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, value: int) -> None:
        """Add a key."""
        self._keys.add(value)
        self._num_changes += 1

    def discard(self, value: int) -> None:
        """Remove a key, if it is there."""
        self._keys.discard(value)
        self._num_changes += 1

    @property
    def array(self) -> Int64:
        """All keys, ascending."""
        num_changes = self._num_changes  # read first: what changes after it is looked at again
        if self._sorted[0] != num_changes:
            self._sorted = num_changes, np.sort(np.fromiter(self._keys.copy(), np.int64))
        return self._sorted[1]

    def holds(self, keys_N: Int64) -> NDArray[np.bool_]:
        """(N,) which of these keys are there."""
        array = self.array
        if not len(array):
            return np.zeros(len(keys_N), np.bool_)
        place_N = np.minimum(np.searchsorted(array, keys_N), len(array) - 1)
        return np.asarray(array[place_N] == keys_N)
