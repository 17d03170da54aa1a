"""The inputs to the newest interactions' first predictions, kept until their outcomes are known.

A click arrives seconds after its impression, a like after the click. So the odds (`kernels.odds`) learn an interaction
when almost all of its kinds have arrived: after as many interactions as `COME_BY_THEN` percent of the last late kinds
took, or at once if kinds are hardly ever late. They learn it from the inputs to its first prediction.

At the start of a stream only the quickest of the late kinds have arrived, and learning then would teach that nothing is
ever done. So the odds wait until enough kinds have arrived, the slow ones among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.odds import OddsArrays, OddsEvents, OddsKept

Int64 = NDArray[np.int64]
KEPT_BYTES = 1 << 25
"""Memory for the kept inputs, which bounds their number."""
MOST_LATE, DELAY_DECAY = 0.05, 0.9999
"""A kind counts as late if more than this share of it came late, in about the last ten thousand events."""
NUM_LAGS, COME_BY_THEN = 1000, 95
LEAST_OUTCOMES, LEAST_LAGS, SETTLED = 50, 100, 2
"""Nothing is learned before so many outcomes have differed, and where kinds are late, before so many late ones have
come and the stream is `SETTLED` times as long as they take: a shorter one has shown only the quickest of them."""


class KeptInputs:
    """A ring of the newest interactions, found by their keys. Deterministic in the order of calls."""

    def __init__(self, odds: OddsArrays, most: int | None = None) -> None:
        row_bytes = 4 * odds.num_kept + 13
        self.rows = OddsKept.empty(odds, most or max(2, KEPT_BYTES // row_bytes))
        self.key_P = np.zeros(len(self.rows.bits_P), np.int64)
        self.lags = np.zeros(0, np.int64)
        """For each of the last late kinds, how many interactions after its own it came."""
        self._place_of: dict[int, int] = {}

    def horizon(self, late_K: NDArray[np.bool_], num_outcomes: float) -> int:
        """After how many interactions the odds may learn one.

        ``late_K``: which kinds are often late. ``num_outcomes``: how often a kind came to one interaction and not to
        another.
        """
        most = len(self.key_P) // 2
        if num_outcomes < LEAST_OUTCOMES:
            return most
        if not late_K.any():
            return 0
        if len(self.lags) < LEAST_LAGS:
            return most
        at = (len(self.lags) - 1) * COME_BY_THEN // 100
        lag = int(np.partition(self.lags, at)[at])
        return min(lag, most) if int(self.rows.count_2[0]) >= SETTLED * lag else most

    def place(self, events: OddsEvents, key_R: Int64) -> NDArray[np.int32]:
        """(R,) where the earlier interactions are; -1 for those that are not kept any more, and for new ones, which
        take their places in the events' order."""
        most, num_before = len(self.key_P), int(self.rows.count_2[0])
        is_new_R = events.is_new_R > 0
        new = events.order_R[is_new_R[events.order_R]]
        place_R = np.full(len(key_R), -1, np.int32)
        for r in np.flatnonzero(~is_new_R).tolist():
            place_R[r] = self._place_of.get(int(key_R[r]), -1)
        lag_R = (num_before - 1 - place_R) % most
        place_R[lag_R + len(new) >= most] = -1  # would be overwritten in this step
        self.lags = np.concatenate([self.lags, lag_R[place_R >= 0]])[-NUM_LAGS:]
        self._take(key_R[new[-most:]], (num_before + np.arange(len(new)))[-most:] % most)
        return place_R

    def _take(self, key_N: Int64, place_N: Int64) -> None:
        for gone, place in zip(self.key_P[place_N].tolist(), place_N.tolist(), strict=True):
            if self._place_of.get(gone) == place:
                del self._place_of[gone]
        self.key_P[place_N] = key_N
        self._place_of.update(zip(key_N.tolist(), place_N.tolist(), strict=True))

    def copy(self, odds: OddsArrays) -> KeptInputs:
        """The same, sharing nothing that changes."""
        other = KeptInputs(odds, len(self.key_P))
        if self.rows.num_used:  # otherwise its pages need not be touched
            other.rows, other.key_P = self.rows.copy(), self.key_P.copy()
        other.lags, other._place_of = self.lags, dict(self._place_of)
        return other

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint stores for each place."""
        return {"key": self.key_P, "log": self.rows.log_PI, "bits": self.rows.bits_P}

    def small(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint stores besides."""
        return {"kept_count": self.rows.count_2, "kept_lags": self.lags}

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All of it."""
        used = self.rows.num_used
        return self.small() | {f"kept_{name}": column[:used] for name, column in self.columns.items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`."""
        self.rows.count_2[:], self.lags = state["kept_count"], state["kept_lags"].copy()
        for name, column in self.columns.items() if self.rows.num_used else ():
            column[: len(state[f"kept_{name}"])] = state[f"kept_{name}"]
        most, num, used = len(self.key_P), int(self.rows.count_2[0]), self.rows.num_used
        oldest_first = (num - used + np.arange(used)) % most
        self._place_of = dict(zip(self.key_P[oldest_first].tolist(), oldest_first.tolist(), strict=True))
