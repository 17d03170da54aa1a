"""The inputs to the newest interactions' first predictions, kept until their outcomes are known (`model.arrivals`).

The odds (`kernels.odds`) learn an interaction from these inputs when almost all of its kinds have arrived, or at once
if kinds are hardly ever late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.odds import OddsArrays, OddsKept

Int64 = NDArray[np.int64]
KEPT_BYTES = 1 << 25
"""Memory for the kept inputs, which bounds their number."""


class KeptInputs:
    """A ring: the inputs of the interaction with number n (`Arrivals.number`) are at place n modulo its length."""

    def __init__(self, odds: OddsArrays, most: int | None = None) -> None:
        row_bytes = 4 * odds.num_kept + 13
        self.rows = OddsKept.empty(odds, most or max(2, KEPT_BYTES // row_bytes))

    def __len__(self) -> int:
        return len(self.rows.bits_P)

    def place(self, number_R: Int64, is_new_R: NDArray[np.bool_]) -> NDArray[np.int32]:
        """(R,) where the inputs of a step's earlier interactions are; -1 for those that are not kept until its end, and
        for new ones, which follow in the order of their numbers."""
        if is_new_R.all():
            return np.full(len(number_R), -1, np.int32)
        num = int(self.rows.count_2[0]) + int(is_new_R.sum())
        is_kept_R = ~is_new_R & (number_R >= max(0, num - len(self)))
        return np.where(is_kept_R, number_R % len(self), -1).astype(np.int32)

    def copy(self, odds: OddsArrays) -> KeptInputs:
        """The same, sharing nothing that changes."""
        other = KeptInputs(odds, len(self))
        if self.rows.num_used:  # otherwise its pages need not be touched
            other.rows = self.rows.copy()
        return other

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint stores for each place."""
        return {"log": self.rows.log_PI, "bits": self.rows.bits_P}

    def small(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint stores besides."""
        return {"kept_count": self.rows.count_2}

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All of it."""
        used = self.rows.num_used
        return self.small() | {f"kept_{name}": column[:used] for name, column in self.columns.items()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`."""
        self.rows.count_2[:] = state["kept_count"]
        for name, column in self.columns.items() if self.rows.num_used else ():
            column[: len(state[f"kept_{name}"])] = state[f"kept_{name}"]
