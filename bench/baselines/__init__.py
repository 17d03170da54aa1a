"""What Headrace must beat: simple recommenders, each asked before it is told, on the very events that Headrace met.

Rows are Headrace's, so that what is known, what came before and what is left out is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.baselines.cooccurrence import Cooccurrence
from bench.baselines.markov import Markov
from bench.baselines.own import Own
from bench.baselines.popular import DecayedPopular, Popular
from kernels.memory import MemoryArrays, MemoryEvents

Int32 = NDArray[np.int32]


class Baseline(Protocol):
    """A recommender that learns from one choice at a time. ``past``: rows that the user chose before, oldest first."""

    def score(self, past: Int32) -> NDArray[Any]:
        """(V,) a score for every row."""

    def learn(self, row: int, past: Int32) -> None:
        """The user chose ``row``."""


def baselines(num_rows: int) -> dict[str, Callable[[], Baseline]]:
    """Every baseline in each of its settings."""
    found: dict[str, Callable[[], Baseline]] = {
        "most popular": lambda: Popular(num_rows),
        "the user's own most frequent": lambda: Own(num_rows),
        "last-item Markov": lambda: Markov(num_rows),
    }
    for half_life in (100, 300, 1_000, 3_000, 10_000):
        found[f"decayed popular, half-life {half_life}"] = partial(DecayedPopular, num_rows, half_life)
    for lags, decay in ((20, 0.9), (10, 0.8), (5, 0.6)):
        found[f"item co-occurrence, {lags} lags, {decay}"] = partial(Cooccurrence, num_rows, lags, decay)
    return found


@dataclass(slots=True, eq=False)
class Recording:
    """The events that a memory met, in order."""

    parts: list[MemoryEvents]

    @property
    def num_rows(self) -> int:
        """One above the highest row."""
        return 1 + max((int(part.target_R.max(initial=0)) for part in self.parts), default=0)


def judge(baseline: Baseline, recording: Recording, memory: MemoryArrays, *, leaves_out: bool) -> NDArray[np.int64]:
    """The rank of every choice, 0 for one that was not known; ties count half, as in `kernels.rank_of_target`."""
    known_V = np.zeros(memory.capacity, np.bool_)
    ranks: list[int] = []
    for part in recording.parts:
        for r in range(len(part)):
            row = int(part.target_R[r])
            past = part.past_rows[part.past_begin_R[r] : part.past_end_R[r]]
            met = part.met_rows[part.met_begin_R[r] : part.met_end_R[r]]
            if part.chosen_R[r]:
                left_out, known = met if leaves_out else met[:0], known_V[row]
                ranks.append(rank(baseline.score(past), known_V, row, left_out) if known else 0)
                if row:
                    baseline.learn(row, past)
            known_V[row] |= row > 0
    return np.array(ranks, np.int64)


def rank(score_V: NDArray[Any], known_V: NDArray[np.bool_], row: int, left_out: Int32) -> int:
    """1 + the better competitors + half of the equal ones, rounded up."""
    competes_V = known_V[: len(score_V)].copy()
    competes_V[left_out] = False
    competes_V[row] = False
    rivals = score_V[competes_V]
    return int(1 + (rivals > score_V[row]).sum() + ((rivals == score_V[row]).sum() + 1) // 2)
