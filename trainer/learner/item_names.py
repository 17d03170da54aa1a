"""Producers' own ids of items, which versions and checkpoints carry."""

from __future__ import annotations

from collections.abc import Mapping

from model.embedding import EmbeddingTable
from trainer.learner.past_names import PastNames

Names = dict[int, str | int]


class ItemNames:
    """Item hash → the producer's id. ``window_ms``: see `PastNames`."""

    def __init__(self, window_ms: int) -> None:
        self.all = Names()
        """The newest stand last, as in a checkpoint that is put together from what has changed."""
        self.unpublished = Names()
        """Those that have come or changed since a version carried them."""
        self.unsaved = Names()
        """Those that have come, changed or gone since a checkpoint had them."""
        self.past = PastNames(window_ms)

    def learn(self, names: Mapping[int, str | int]) -> None:
        """Learn names that an example has: those that are new or differ."""
        self.past.keep(names)
        fresh = {item: name for item, name in names.items() if self.all.get(item) != name}
        for known in (self.all, self.unpublished, self.unsaved):
            for item, name in fresh.items():
                known.pop(item, None)
                known[item] = name

    def forget_past(self, items: EmbeddingTable, record_ms: int) -> None:
        """Forget the names that are past at this Kafka timestamp."""
        for item in self.past.take_past(self.all, items, record_ms):
            for known in (self.unpublished, self.unsaved):
                known.pop(item, None)
            self.unsaved[item] = self.all.pop(item)
