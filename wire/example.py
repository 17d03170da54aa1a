"""What goes from the worker to the trainer and the servers: one user's interactions, and where they come from.

Shapes: n interactions, F configured item features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CLOCK_START_MS = -(1 << 62)
"""The event clock of a partition that has applied nothing: below every timestamp."""


class Counts(NamedTuple):
    """What a partition's actions came to. Every well-formed action is accepted or duplicate; late ones are accepted."""

    num_accepted: int = 0
    num_duplicate: int = 0
    num_dead: int = 0
    num_late: int = 0
    num_ticks: int = 0


ZERO_COUNTS = Counts()


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Columns of a user's interactions, oldest first.

    ``item_hash`` (n,) int64 (`wire.hashing.item_hash`); ``action_bits`` (n,) uint32, bit b = kind b of the configured
    action kinds; ``timestamp_ms`` (n,) int64, not decreasing; ``domain_hash`` (n,) int64, 0 where none was given;
    ``value`` (n,) float32, NaN where none was given; ``feature_hash`` (n, F) int64, 0 where absent.
    """

    item_hash: NDArray[np.int64]
    action_bits: NDArray[np.uint32]
    timestamp_ms: NDArray[np.int64]
    domain_hash: NDArray[np.int64]
    value: NDArray[np.float32]
    feature_hash: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.item_hash)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One record of ``headrace.sequences.v1`` (or, with ``is_fence``, the mark of a new writer: then only
    ``partition``, ``writer_epoch`` and ``number`` mean anything)."""

    user: str
    partition: int
    writer_epoch: int
    number: int
    """The partition's outbox number: 0, 1, 2, … without holes."""
    interactions: Interactions
    """Sealed: context first, then the new ones. Never empty but in a fence."""
    num_new: int
    """0 in an example that only writes a user's state again (`wire.example_log.ExampleLog.overwritten`)."""
    first_new_index: int
    """Index of the first new interaction in the user's lifetime; a user's examples tile [0, lifetime count)."""
    open_interactions: Interactions
    open_first_offsets: NDArray[np.int64]
    """Not for training: what a restoring worker needs, and what a server may answer from."""
    recent_ids: NDArray[np.int64]
    """Hashes of the last action ids, oldest first."""
    user_feature_hash: NDArray[np.int64]
    """(F_user,) int64, the user's latest categorical features; 0 where absent."""
    user_offset: int
    """Highest action offset of this user applied."""
    applied_offset: int
    """Highest action offset of the partition applied."""
    replay_from_offset: int
    """Lowest action offset whose effect is in no user's newest example (applied_offset + 1 when there is none)."""
    clock_ms: int
    newest_event_ms: int
    newest_record_ms: int
    """Kafka timestamp of the newest action covered: wall clock, whatever the event times are."""
    names: dict[int, str | int] = field(default_factory=dict)
    """Item hash → the producer's own id, for items that this partition has not named before."""
    is_fence: bool = False
    num_unsent: int = 0
    """The first so many of ``open_interactions`` are sealed already: the new ones of this user's next examples, which
    the same batch makes. More than 0 only where the new ones did not fit in one example."""
    open_record_ms: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """(open,) Kafka timestamp of the newest action in each open interaction."""
    replay_clock_ms: int = CLOCK_START_MS
    """The event clock just before ``replay_from_offset``."""
    counted_offset: int = -1
    """``counts`` are those of the partition's actions up to here."""
    counts: Counts = ZERO_COUNTS

    @property
    def num_context(self) -> int:
        """Interactions before the new ones. What restores the history is the last ``max_context`` of all."""
        return len(self.interactions) - self.num_new
