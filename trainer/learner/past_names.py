"""Which items' names are forgotten: of those that have had no row for a day, by the broker's clock, and no example has
named since.

Producers' ids of items would otherwise be all that a trainer keeps of an item after its eviction, for ever, and every
base would carry them. An item that comes back brings its name along, because workers send each name once a day
(`state.names`). So a name may not be forgotten on the day that it came: the item's other examples of that day are
without it. Where interactions wait for feedback, a name comes with the example, and the item is learned a window later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.embedding import EmbeddingTable
from wire.moment import MS_PER_DAY

Int64 = NDArray[np.int64]


class PastNames:
    """Looks at the names when a day begins. A function of the steps alone, like everything that a learner keeps.
    ``window_ms``: for how long interactions wait before they are learned."""

    def __init__(self, window_ms: int) -> None:
        self._num_days = 1 + -(-window_ms // MS_PER_DAY)
        self._day = -1
        self._past: dict[int, int] = {}
        """Named items without a row, and the day at whose beginning that was first seen."""

    def keep(self, items: Iterable[int]) -> None:
        """Count from anew for these items, which an example names."""
        for item in items:
            self._past.pop(item, None)

    def take_past(self, named: Iterable[int], items: EmbeddingTable, record_ms: int) -> list[int]:
        """The items to forget, ascending, if a day has begun with this Kafka timestamp."""
        day = record_ms // MS_PER_DAY
        if day <= self._day:
            return []
        self._day = day
        named_N = np.sort(np.fromiter(named, np.int64))
        past = {item: self._past.get(item, day) for item in named_N[items.lookup(named_N) == 0].tolist()}
        gone = [item for item, since in past.items() if day - since >= self._num_days]
        for item in gone:
            del past[item]
        self._past = past
        return gone

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint."""
        return {
            "day": np.array([self._day], np.int64),
            "item": np.fromiter(self._past, np.int64),
            "since": np.fromiter(self._past.values(), np.int64),
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state_dict`; checkpoints of earlier builds have nothing, or items without days."""
        if state:
            self._day = int(state["day"][0])
            since_N = state.get("since", np.full(len(state["item"]), self._day))
            self._past = dict(zip(state["item"].tolist(), since_N.tolist(), strict=True))
