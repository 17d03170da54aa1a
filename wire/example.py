"""What goes from the worker to the trainer and the servers: a segment of one user's sequence, and what of it is new.

A user's sequence is the list of his interactions in the order in which they began. It is cut into segments of
``segment_len``: segment s holds interactions [s·segment_len, (s+1)·segment_len) of his lifetime. A record of
``headrace.sequences.v1`` holds one segment as it stands after a run of his actions that touched no other one, so that
the newest record of each segment is all there is to know, and each record says by itself what was learned by it.

Shapes: n interactions of the segment, F configured item features, f pieces of feedback.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class Counts(NamedTuple):
    """What became of a partition's actions. A well-formed action is accepted or a duplicate; late ones are accepted."""

    num_accepted: int = 0
    num_duplicate: int = 0
    num_dead: int = 0
    num_late: int = 0
    num_ticks: int = 0
    """Always 0: a place in the layout."""


ZERO_COUNTS = Counts()


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Columns of a user's interactions, oldest first.

    ``item_hash`` (n,) int64 (`wire.hashing.item_hash`), never 0; ``action_bits`` (n,) uint32, bit b = kind b of the
    configured action kinds; ``timestamp_ms`` (n,) int64, not decreasing; ``domain_hash`` (n,) int64, 0 where none was
    given; ``value`` (n,) float32, NaN where none was given; ``feature_hash`` (n, F) int64, 0 where absent.
    """

    item_hash: Int64
    action_bits: NDArray[np.uint32]
    timestamp_ms: Int64
    domain_hash: Int64
    value: NDArray[np.float32]
    feature_hash: Int64

    def __len__(self) -> int:
        return len(self.item_hash)


def no_interactions(num_features: int = 0) -> Interactions:
    """Empty columns."""
    none = np.empty(0, np.int64)
    return Interactions(
        none, np.empty(0, np.uint32), none, none, np.empty(0, np.float32), np.empty((0, num_features), np.int64)
    )


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One record of ``headrace.sequences.v1`` (or, with ``is_fence``, the mark of a new writer: then only
    ``partition``, ``writer_epoch`` and ``number`` mean anything).

    What it teaches: the last ``num_new`` interactions of the segment are new, with the kinds that they have; and the
    interactions at ``feedback_index`` (f,) (places in the segment, all before the new ones, ascending) have got the
    kinds ``feedback_bits`` (f,) uint32, which they did not have before. Over all of a user's accepted examples each
    interaction is new once, and each of its later kinds is feedback once.
    """

    user: str
    partition: int
    writer_epoch: int
    number: int
    """The partition's outbox number: 0, 1, 2, … without holes."""
    segment: int
    """The number of the segment in the user's lifetime."""
    segment_len: int
    interactions: Interactions
    """The whole segment as it stands; empty only in a fence."""
    num_new: int
    """0 if the example only brings feedback, or only rewrites a segment (`ExampleLog.overwritten`)."""
    feedback_index: Int64
    feedback_bits: NDArray[np.uint32]
    session_hash: Int64
    """(n,) the session of each interaction, 0 if none was given. Used for joining, not for training."""
    action_ids: Int64
    """Hashes of the ids of the actions in this segment, oldest first, where ids were given."""
    user_feature_hash: Int64
    """(F_user,) int64, the user's latest categorical features; 0 where absent."""
    user_offset: int
    """Highest action offset of this user in this record or an earlier one. 0 or more actions of the record at that
    offset may be missing still: ``user_index`` says up to which."""
    user_index: int
    """Position, in the list of actions at ``user_offset``, of the last one that is in."""
    applied_offset: int
    """The highest action offset of the partition that has been applied."""
    replay_from_offset: int
    """Where a restoring worker must begin to apply actions again once it has all examples up to this number: all
    before is in examples up to this one (`state.restore`)."""
    newest_event_ms: int
    """The newest event time among the partition's applied actions."""
    newest_record_ms: int
    """Kafka timestamp of the newest action covered: a wall-clock time, whatever the event times are."""
    names: dict[int, str | int] = field(default_factory=dict)
    """Item hash → the producer's id, for items that this partition names for the first time."""
    is_fence: bool = False
    counted_offset: int = -1
    """``counts`` are those of the partition's actions up to here."""
    counts: Counts = ZERO_COUNTS

    @property
    def first_index(self) -> int:
        """Place of the segment's first interaction in the user's lifetime."""
        return self.segment * self.segment_len

    @property
    def first_new_index(self) -> int:
        """Place of the first new interaction in the user's lifetime; those of a user's examples tile his lifetime."""
        return self.first_index + len(self.interactions) - self.num_new

    @property
    def num_feedback(self) -> int:
        """Indices of earlier interactions that received feedback."""
        return len(self.feedback_index)


def fence(partition: int, writer_epoch: int, number: int = -1) -> Example:
    """The mark of a new writer. ``number``: the next example number that it will write; -1 while it does not know."""
    none = np.empty(0, np.int64)
    return Example(
        user="", partition=partition, writer_epoch=writer_epoch, number=number, segment=0, segment_len=1,
        interactions=no_interactions(), num_new=0, feedback_index=none, feedback_bits=np.empty(0, np.uint32),
        session_hash=none, action_ids=none, user_feature_hash=none, user_offset=-1, user_index=-1, applied_offset=-1,
        replay_from_offset=0, newest_event_ms=-1, newest_record_ms=-1, is_fence=True,
    )  # fmt: skip
