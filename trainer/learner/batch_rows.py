"""The rows of a batch's items: before the batch, and with it.

What a GPU's memory is told of a batch are lists of all rows that its users have met before. Nothing else of a step
needs them, so on a GPU they are made on a thread of their own, beside the network's inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kernels.beside import Beside
from kernels.windows import RowLists, list_rows, list_rows_beside
from model.config import ModelConfig
from model.embedding import EmbeddingTable
from model.kinds import negative_bits, positive_bits
from trainer.examples.batch import JaggedBatch

Int64 = NDArray[np.int64]
LEAST_BESIDE = 1 << 14
"""Fewer interactions are listed in less time than it takes to wake a thread."""


class BatchRows:
    """Of a batch whose own items have no rows in ``items`` yet. ``seen_R`` (R,): the rows of its targets, 0 for an item
    that has none.

    ``beside``: where to look up and list the rows of all interactions, if they are many.
    """

    def __init__(
        self, items: EmbeddingTable, batch: JaggedBatch, config: ModelConfig, beside: Beside | None = None
    ) -> None:
        self._items, self._batch = items, batch
        self._kinds = positive_bits(config), negative_bits(config)
        self._beside = beside if len(batch.item_n) >= LEAST_BESIDE else None
        self._wait: Callable[[], tuple[Int64, RowLists]] | None = None
        self._found: tuple[Int64, RowLists] | None = None
        self._target_row_R = np.zeros(0, np.int64)
        self.seen_R = items.lookup(batch.item_n[batch.target_R])

    def begin(self, target_row_R: Int64) -> None:
        """The batch's own items have their rows now, these of its targets (R,), and none changes until `listed`."""
        self._target_row_R, batch, beside = target_row_R, self._batch, self._beside
        if beside is not None and self._items.map.address is not None:
            self._wait = list_rows_beside(
                beside, self._items.map, batch.item_n, batch.bits_n, batch.time_ms_n, self._kinds,
                batch.starts_B1[batch.owner_R], batch.target_R,
            )  # fmt: skip

    def listed(self) -> tuple[Int64, RowLists]:
        """(n,) the rows of all interactions, with the batch's own items; and the lists of them, with what belongs to
        each target."""
        if self._found is None:
            self._found = self._listed_here() if self._wait is None else self._wait()
        return self._found

    def _listed_here(self) -> tuple[Int64, RowLists]:
        batch, rows_n = self._batch, self._items.lookup(self._batch.item_n)
        first_R = batch.starts_B1[batch.owner_R]
        return rows_n, list_rows(rows_n, batch.bits_n, batch.time_ms_n, self._kinds, first_R, batch.target_R)

    def seen_n(self) -> Int64:
        """(n,) the rows of all interactions as they were before the batch."""
        (rows_n, _), new_R = self.listed(), self._target_row_R[self.seen_R == 0]
        if not new_R.any():
            return rows_n
        is_new_V = np.zeros(self._items.num_rows, np.bool_)
        is_new_V[new_R] = True
        return np.where(is_new_V[rows_n], 0, rows_n)
