"""Which items a partition has named already: each name is sent once."""

from __future__ import annotations

from collections.abc import Callable


class Names:
    """The items that the partition has named. ``look_up`` finds those that are no longer in memory."""

    MAX_CACHED = 1_000_000

    def __init__(self, look_up: Callable[[int], bool] | None = None) -> None:
        self.known: set[int] = set()
        """Those in memory."""
        self._look_up = look_up
        self.fresh: list[int] = []
        """Named since the owner last emptied this list."""

    def __contains__(self, item_hash: int) -> bool:
        if item_hash in self.known:
            return True
        if self._look_up is None or not self._look_up(item_hash):
            return False
        self.known.add(item_hash)
        return True

    def add(self, item_hash: int) -> None:
        """Remember that an example carries this item's name."""
        self.known.add(item_hash)
        self.fresh.append(item_hash)

    def shrink(self) -> None:
        """Bound the memory in use, if items can be looked up."""
        if self._look_up is not None and len(self.known) > self.MAX_CACHED:
            self.known.clear()
