"""Which items a partition has named today: each name is sent once a day.

Once would do for a reader that reads everything and forgets nothing. But compaction removes the example that had the
name, and a trainer forgets the names of items that have long had no row (`trainer.learner.past_names`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wire.moment import MS_PER_DAY

NO_DAY = -(1 << 31)
"""Before every day: that of names of which nobody knows when they were sent."""


class Names:
    """The items that the partition has named on ``day``. ``look_up`` finds those that are no longer in memory."""

    MAX_CACHED = 1_000_000
    MAX_EARLIER = 10_000

    def __init__(self, look_up: Callable[[int, int], bool] | None = None) -> None:
        """``look_up``: whether an item was named on a day."""
        self.known: set[int] = set()
        """Those in memory."""
        self._look_up = look_up
        self.fresh: list[int] = []
        """Named since the owner last emptied this list."""
        self.day = NO_DAY
        """Days since 1970 by Kafka timestamps."""
        self._num_earlier = 0

    def day_of(self, record_ms: int) -> int:
        """The day of the next record, by its Kafka timestamp: the current one also if that is earlier. A backfill
        beside live records would otherwise begin a day with each. Only many in a row lead back, as after a record with
        a time in the future."""
        day = record_ms // MS_PER_DAY
        self._num_earlier = self._num_earlier + 1 if day < self.day else 0
        return self.day if 0 < self._num_earlier < self.MAX_EARLIER else day

    def are_of_day(self, times_ms: Sequence[int]) -> bool:
        """Whether the next records, of which these are the Kafka timestamps, are all of the current day: nearly always,
        so `day_of` need not look at each."""
        begin_ms = self.day * MS_PER_DAY
        are_all = begin_ms <= min(times_ms) and max(times_ms) < begin_ms + MS_PER_DAY
        self._num_earlier = 0 if are_all else self._num_earlier
        return are_all

    def begin(self, day: int) -> None:
        """From here on records are of another day, on which every name is sent again."""
        self.day, self._num_earlier = day, 0
        self.known.clear()

    def __contains__(self, item_hash: int) -> bool:
        if item_hash in self.known:
            return True
        if self._look_up is None or not self._look_up(item_hash, self.day):
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
