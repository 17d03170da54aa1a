"""Which items' names are forgotten: of those that have had no row for a day, by the broker's clock.

Producers' ids of items would otherwise be all that a trainer keeps of an item after its eviction, for ever, and every
base would carry them. An item that comes back brings its name along, because workers send each name once a day
(`state.names`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.embedding import EmbeddingTable

Int64 = NDArray[np.int64]
MS_PER_DAY = 86_400_000


class PastNames:
    """Looks at the names when a day begins. A function of the steps alone, like everything that a learner keeps."""

    def __init__(self) -> None:
        self._day = -1
        self._past_N = np.zeros(0, np.int64)
        """Named items that had no row when the day began."""

    def take_past(self, named: Iterable[int], items: EmbeddingTable, record_ms: int) -> Int64:
        """The items to forget, ascending: if a day has begun with this Kafka timestamp, those that have no row and had
        none when the day before began."""
        if record_ms // MS_PER_DAY <= self._day:
            return np.zeros(0, np.int64)
        self._day = record_ms // MS_PER_DAY
        named_N = np.sort(np.fromiter(named, np.int64))
        past_N = named_N[items.lookup(named_N) == 0]
        is_gone_N = np.isin(past_N, self._past_N, assume_unique=True)
        self._past_N = past_N[~is_gone_N]
        return np.asarray(past_N[is_gone_N])

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint."""
        return {"day": np.array([self._day], np.int64), "item": self._past_N}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`; checkpoints of earlier builds have nothing."""
        if state:
            self._day, self._past_N = int(state["day"][0]), state["item"].copy()
