"""Which users this server holds: those of its partitions. Kafka's partitioner decides where a user is."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from wire.errors import ConfigError
from wire.hashing import Key, canonical
from wire.holding import EVERY, NONE, beyond, partitions_held
from wire.partitioner import partition_of

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Shard:
    """``partitions``: as configured (`wire.holding`). `place` says of how many, before anything is read."""

    partitions: str = EVERY
    num_partitions: int = 0
    """0 until it is known."""
    held: frozenset[int] = frozenset()
    caught_up: threading.Event = field(default_factory=threading.Event)
    """Set when the histories of all held partitions are complete."""

    @property
    def is_whole(self) -> bool:
        """Whether every user is held, however many partitions there are."""
        return self.partitions == EVERY

    def place(self, num_partitions: int) -> None:
        """Learn how many partitions there are. Raises `ConfigError` if this server shall hold others."""
        if beyond(self.partitions, num_partitions):
            raise ConfigError(
                f"serving.partitions: expected numbers below {num_partitions}, the topic's number of partitions, got "
                f"{self.partitions!r}; correct it"
            )
        self.held, self.num_partitions = partitions_held(self.partitions, num_partitions), num_partitions
        if not self.held:
            logger.warning("serving.partitions = %s: no user of %d partitions is held here", self.partitions,
                           num_partitions)  # fmt: skip

    def partition_of(self, user: Key) -> int:
        """The user's partition, once their number is known."""
        return partition_of(canonical(user).encode(), self.num_partitions)

    @property
    def told(self) -> str:
        """What other servers are told: ``none`` until requests can be answered as they should."""
        return self.partitions if self.caught_up.is_set() else NONE
