"""The newest interactions, numbered in the order in which they happened, and how late their kinds arrive.

A click arrives seconds after its impression, a like after the click. Whatever learns from outcomes, or judges
predictions by them, has to leave out the interactions whose kinds are still to come: as many of the newest ones as
`COME_BY_THEN` percent of the last late kinds took (`Arrivals.lag`).

At the start of a stream only the quickest of the late kinds have arrived, so that number is too small. A stream is
**settled** once it is `SETTLED` times as long as late kinds take, and at least `LEAST_LAGS` of them have arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.arrivals import NumberedKeys

Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
MOST_REMEMBERED = 1 << 17
"""For how many of the newest interactions a late kind still counts."""
NUM_LAGS, COME_BY_THEN = 1000, 95
LEAST_LAGS, SETTLED = 100, 2


class Arrivals:
    """The keys of the newest interactions in a ring. Deterministic in the order of calls."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self.num = 0
        """How many interactions there were."""
        self.lags = np.zeros(0, np.int64)
        """For each of the last late kinds, how many interactions after its own it arrived."""
        self._keys = NumberedKeys(most)

    @property
    def num_remembered(self) -> int:
        """How many of the newest interactions have numbers."""
        return self._keys.num_known

    def number(self, key_R: Int64, is_new_R: Bools, order_R: Int64 | None = None) -> Int64:
        """(R,) numbers of interactions; -1 for earlier ones that are forgotten.

        New ones get the next numbers, in the order ``order_R`` (else in theirs); the others have received late kinds.
        """
        number_R, num_found = self._keys.number(key_R, is_new_R, order_R, self.num)
        if num_found:
            late_R = number_R[~is_new_R & (number_R >= 0)]
            self.lags = np.concatenate([self.lags, self.num - 1 - late_R])[-NUM_LAGS:]
        self.num += int(np.count_nonzero(is_new_R))
        return number_R

    @property
    def lag(self) -> int:
        """How many of the newest interactions lack kinds that are still to come; 0 where none ever came late."""
        if not len(self.lags):
            return 0
        at = (len(self.lags) - 1) * COME_BY_THEN // 100
        return int(np.partition(self.lags, at)[at])

    def is_settled(self, num: int) -> bool:
        """Whether the stream is settled, and was before its last ``num`` interactions."""
        return len(self.lags) >= LEAST_LAGS and self.num - num >= SETTLED * self.lag

    def copy(self) -> Arrivals:
        """The same, sharing nothing that changes."""
        other = Arrivals(len(self._keys.key_P))
        other.num, other.lags = self.num, self.lags
        if self.num:  # otherwise its pages need not be touched
            other._keys = self._keys.copy()
        return other

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """For a checkpoint: the keys with the oldest first."""
        most = len(self._keys.key_P)
        number_N = np.arange(max(0, self.num - most), self.num)
        return {"num": np.array([self.num]), "lags": self.lags, "key": self._keys.key_P[number_N % most]}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`."""
        key_N = state["key"]
        self.num, self.lags = int(state["num"][0]) - len(key_N), state["lags"].copy()
        self._keys.clear()
        self.number(key_N, np.ones(len(key_N), np.bool_))
