"""How to read a partition of ``headrace.sequences.v1``: which records count, and whether any is missing.

A partition may hold records that a reader must not use: repeats (from a relay of an earlier build that was killed after
the broker's acknowledgement, before it had recorded that) and records of a worker that has lost the partition without
knowing it. Fences deal with the latter: a fence raises the partition's writer epoch, and whatever a lower epoch writes
after it is stale. Each epoch's fence has its own key (`wire.topics.fence_key`), so compaction keeps all of them.

Compaction knows nothing of this: if a stale record, a repeat or a tombstone is a key's last, it will keep that one and
drop the one that counts. `ExampleLog.overwritten` and `buried` list what these keys stand for. The partition's owner
writes those records again (`state.store.PartitionStore.refresh`), within the topic's ``min.compaction.lag.ms``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from wire.example import Address, Lesson


class Verdict(Enum):
    """What a reader does with one record."""

    ACCEPT = "accept"
    """Use it."""
    DUPLICATE = "duplicate"
    """Seen before: skip it."""
    STALE = "stale"
    """Written by a worker that had lost the partition: skip it."""
    FENCE = "fence"
    """A new writer's mark; it carries no data."""
    GAP = "gap"
    """Records are missing before it (`ExampleLog.gap`): something was lost. The log does not advance."""


@dataclass(frozen=True)
class Gap:
    """Example number ``expected`` was due, but number ``got`` came."""

    expected: int
    got: int


class ExampleLog:
    """A filter for one partition. Feed it every record in offset order.

    ``next_number`` is where to continue (None: with whatever comes first). ``allow_gaps`` is for readers of a compacted
    topic that want each key's newest state, not every example: they take any number above the highest seen.
    """

    def __init__(self, next_number: int | None = 0, *, writer_epoch: int = 0, allow_gaps: bool = False) -> None:
        self.next_number = next_number
        self.writer_epoch = writer_epoch
        self.gap: Gap | None = None
        self.allow_gaps = allow_gaps
        self.overwritten: set[Address] = set()
        """The addresses whose last record does not count."""
        self.buried: set[Address] = set()
        """The addresses whose last record is a tombstone; only its writer knew whether it is right."""

    @property
    def last_number(self) -> int:
        """The highest number accepted; -1 before the first."""
        return -1 if self.next_number is None else self.next_number - 1

    def feed(self, example: Lesson) -> Verdict:
        """Classify one record, and advance if it is accepted."""
        if example.writer_epoch < self.writer_epoch:
            return self._drop(example, Verdict.STALE)
        if example.is_fence:
            self.writer_epoch = example.writer_epoch
            return Verdict.FENCE
        if self.next_number is not None:
            if example.number < self.next_number:
                return self._drop(example, Verdict.DUPLICATE)
            if example.number > self.next_number and not self.allow_gaps:
                self.gap = Gap(self.next_number, example.number)
                return Verdict.GAP
        self.take(example)
        return Verdict.ACCEPT

    def take(self, example: Lesson) -> None:
        """Continue after this example, whatever is missing before it."""
        self.writer_epoch = max(self.writer_epoch, example.writer_epoch)
        self.next_number = example.number + 1
        self.gap = None
        if self.overwritten or self.buried:
            self.overwritten.discard(example.address)
            self.buried.discard(example.address)

    def take_run(self, numbers: NDArray[np.int64], writer_epochs: NDArray[np.int64]) -> bool:
        """Accept a run of examples if `feed` would accept each, for a reader that allows gaps; otherwise accept nothing
        and return False."""
        due = -1 if self.next_number is None else self.next_number
        if not self.allow_gaps or len(numbers) == 0 or numbers[0] < due or (np.diff(numbers) <= 0).any():
            return False
        if (writer_epochs != self.writer_epoch).any():
            return False
        self.next_number, self.gap = int(numbers[-1]) + 1, None
        self.overwritten.clear()
        self.buried.clear()
        return True

    def bury(self, address: Address | None) -> None:
        """Note a tombstone: the record that it hides may count."""
        if address is not None:
            self.overwritten.discard(address)
            self.buried.add(address)

    def _drop(self, example: Lesson, verdict: Verdict) -> Verdict:
        if not example.is_fence:
            self.overwritten.add(example.address)
            self.buried.discard(example.address)
        return verdict
