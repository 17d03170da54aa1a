"""One partition of the actions topic, applied again from its first record: what should have become of it.

The state machine is `state.sequencer`, fed in one go, without a database, a crash or a rebalance.
"""

from __future__ import annotations

from typing import Any

from headrace.ledger import newest
from state.sequencer import Sequencer
from wire.action import Action, Rejection, Tick, decode_record
from wire.config import ActionConfig, SequenceConfig
from wire.example import Counts, Interactions
from wire.partitioner import partition_of

DRAIN_EVERY = 512


class Recount:
    """Feed it every record in order; ``watch`` offsets whose counts are wanted on the way."""

    def __init__(self, action: ActionConfig, sequence: SequenceConfig, partition: int, num_partitions: int) -> None:
        self.action = action
        self.partition = partition
        self.num_partitions = num_partitions
        self.sequencer = Sequencer(action, sequence, partition)
        self.num_records = 0
        self.num_produced = 0
        """Actions and what should have been one; ticks are not counted."""
        self.dead: set[tuple[int, int]] = set()
        """(offset, index) of everything that belongs to the dead letters."""
        self.parts: dict[str, list[Interactions]] = {}
        """Each user's sealed interactions, in pieces."""
        self.num_sealed = 0
        self.watch: set[int] = set()
        self.counts_at: dict[int, Counts] = {}

    def feed(self, record: Any) -> None:
        """Apply one Kafka record."""
        self.num_records += 1
        self.sequencer.advance(record.offset, record.timestamp)
        decoded = decode_record(record.value, record.timestamp, self.action)
        listed = record.value is not None and record.value.lstrip(b" \t\r\n")[:1] == b"["
        for index, each in enumerate(decoded):
            if isinstance(each, Tick):
                self._tick(each)
                continue
            self.num_produced += 1
            if isinstance(each, Rejection):
                self._refuse(record.offset, each.index)
            elif partition_of(each.user.encode(), self.num_partitions) != self.partition:
                self._refuse(record.offset, index if listed else -1)
            else:
                self._apply(each, record)
        if self.num_records % DRAIN_EVERY == 0:
            self.drain()
        if record.offset in self.watch:
            self.counts_at[record.offset] = self.sequencer.counts

    def _tick(self, tick: Tick) -> None:
        self.sequencer.clock_ms = max(self.sequencer.clock_ms, tick.timestamp_ms)
        self.sequencer.num_ticks += 1

    def _apply(self, action: Action, record: Any) -> None:
        self.sequencer.apply(action, record.offset, record.timestamp)

    def _refuse(self, offset: int, index: int) -> None:
        self.sequencer.reject()
        self.dead.add((offset, index))

    def drain(self) -> None:
        """Take what is sealed by now."""
        for example in self.sequencer.drain():
            self.parts.setdefault(example.user, []).append(newest(example))
            self.num_sealed += example.num_new

    @property
    def num_open(self) -> int:
        """Interactions that may still be joined."""
        return sum(len(user.opens) for user in self.sequencer.users.values())
