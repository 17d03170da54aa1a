"""What the memory needs of a table that is divided, asked for in one message for each batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryEvents
from model.share import Listed, Owners
from trainer.examples.batch import JaggedBatch

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Given = tuple[NDArray[np.int32], Int64, Float32]
"""Rows that may be in the samples of some choices, where those of each choice begin, and the network's logits of them:
see `kernels.memory.memory_learn_given`."""


@dataclass(frozen=True, slots=True, eq=False)
class Foreseen:
    """What is known of a batch's ``events`` before their predictions: which rows may be in the samples of its choices
    (`kernels.memory.memory_candidates`), by owner too."""

    batch: JaggedBatch
    events: MemoryEvents
    owners: Owners
    row: NDArray[np.int32]
    begin_A1: Int64
    listed: Listed

    def ask(
        self, query_AD: Float32, is_ranked_A: NDArray[np.bool_], most_ranked: int, unit_width: int
    ) -> Callable[[int, int], tuple[Given, Float32 | None]]:
        """Ask the owners for the logits of the rows that may be in samples, and of all rows for the choices that are
        ranked, unless these are more than ``most_ranked``.

        Returns a function that gives those of choices ``first`` … ``last`` - 1, and of all rows for the first of them.
        """
        fits = bool(np.count_nonzero(is_ranked_A) <= most_ranked)
        logit_BV, logit = self.owners.both_logits(query_AD[is_ranked_A & fits], query_AD, self.listed, unit_width)

        def of(first: int, last: int) -> tuple[Given, Float32 | None]:
            start, stop = self.begin_A1[[first, last]]
            given = self.row[start:stop], self.begin_A1[first : last + 1] - start, logit[start:stop]
            is_known = fits and first < last and is_ranked_A[first]
            return given, logit_BV[np.count_nonzero(is_ranked_A[:first])] if is_known else None

        return of
