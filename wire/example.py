"""What the worker sends to the trainer and the servers: what has changed in one user's sequence.

A user's sequence is the list of the user's interactions in the order in which they began. It is divided into segments
of ``segment_len``: segment s holds interactions [s·segment_len, (s+1)·segment_len) of the user's lifetime. A record of
``headrace.sequences.v1`` holds interactions of one segment as they are after a run of the user's actions that touched
no other segment: those that the run has touched, or the whole segment once the user is two segments further. A reader
that folds all records in order, or the newest of each key (`Address`), has the complete state; and each record says by
itself what it teaches.

Shapes: n interactions of the record, F configured item features, f pieces of feedback, i ids of actions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
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


ZERO_COUNTS = Counts()


@dataclass(slots=True, eq=False)
class Interactions:
    """Columns of a user's interactions, oldest first.

    ``item_hash`` (n,) int64 (`wire.hashing.item_hash`), never 0; ``action_bits`` (n,) uint32, bit b = kind b of the
    configured action kinds; ``timestamp_ms`` (n,) int64, not decreasing; ``domain_hash`` (n,) int64, 0 where none was
    given; ``value`` (n,) float32, NaN where none was given; ``feature_hash`` (n, F) int64, 0 where absent: the hashes
    of item features, then with ``action.propensity`` the bits of the propensity as a double, then with
    ``action.user_tokens`` the hashes of the user's features when the interaction began.
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


Rows = NDArray[np.void]
"""(n,) structured: item, time, domain, bits, value, features (`row_type`). The same as `Interactions`, row by row."""


@cache
def row_type(num_features: int) -> np.dtype[np.void]:
    """The layout of one interaction: 32 bytes, and 8 per feature."""
    fields = [("item", "<i8"), ("time", "<i8"), ("domain", "<i8"), ("bits", "<u4"), ("value", "<f4")]
    return np.dtype([*fields, ("features", "<i8", (num_features,))])


def rows_of(source: Interactions) -> Rows:
    """The rows of interactions."""
    rows = np.empty(len(source), row_type(source.feature_hash.shape[1]))
    rows["item"], rows["time"], rows["domain"] = source.item_hash, source.timestamp_ms, source.domain_hash
    rows["bits"], rows["value"] = source.action_bits, source.value
    if source.feature_hash.shape[1]:
        rows["features"] = source.feature_hash
    return rows


def interactions_of(rows: Rows) -> Interactions:
    """The columns of rows; views of them."""
    if not len(rows):
        return no_interactions(num_features_of(rows))
    return Interactions(rows["item"], rows["bits"], rows["time"], rows["domain"], rows["value"], rows["features"])


def num_features_of(rows: Rows) -> int:
    """How many features each row has."""
    return (rows.dtype.itemsize - row_type(0).itemsize) // 8


NUM_OPEN = 2
"""How many of a user's last segments are written in pieces. Most feedback is about interactions in them."""
PIECE = -1
"""In an `Address`: part of a segment."""


MARK_USER, MARK_ITEM = -2, -3
"""In an `Address`: a mark instead of a segment."""


class Mark(IntEnum):
    """The meaning of an example without interactions, at its place in the log. The values are the codec's flags."""

    USER = 128
    """Forget everything about the user; later examples start over. Without a user: nothing."""
    ITEM = 256
    """Forget the named item: from here on, it is neither recommended nor learned."""
    ITEM_BACK = 512
    """Learn the named item again, as a new one."""
    USERS = 1024
    """As ``USER``, of several: ``user`` is a list of them, in JSON."""


class Address(NamedTuple):
    """What a record's key stands for: compaction keeps the newest record of each.

    A whole segment has its own address. A piece of one has that of its first interaction's place in a ring of
    ``NUM_OPEN`` segments, and holds at least what an earlier piece of the same segment held there (`state.user`).
    """

    user: str
    segment: int
    first: int


def address_of_mark(mark: int, item_hash: int) -> Address:
    """The address of a mark. Compaction keeps the last mark of users, and the last one of each item."""
    return Address("", MARK_USER, 0) if mark in (Mark.USER, Mark.USERS) else Address("", MARK_ITEM, item_hash)


def address_of(user: str, segment: int, first: int, num_interactions: int, segment_len: int) -> Address:
    """The address of ``num_interactions`` of a segment, from place ``first`` in it on."""
    if num_interactions == segment_len:
        return Address(user, segment, 0)
    return Address(user, PIECE, segment % NUM_OPEN * segment_len + first)


@dataclass(slots=True, eq=False)  # frozen would take 2 us more to make
class Lesson:
    """What a record of ``headrace.sequences.v1`` teaches, and about whom (or, with ``is_fence``, the mark of a new
    writer: then only ``partition``, ``writer_epoch`` and ``number`` mean anything).

    The last ``num_new`` interactions of the record are new, with the kinds that they have; and the
    interactions at ``feedback_index`` (f,) (places in the record, all before the new ones, ascending) have got the
    kinds ``feedback_bits`` (f,) uint32, which they did not have before. Over all of a user's accepted records each
    interaction is new once, and each of its later kinds is feedback once.
    """

    user: str
    partition: int
    writer_epoch: int
    number: int
    """The partition's outbox number: 0, 1, 2, … without gaps."""
    segment: int
    """The number of the segment in the user's lifetime."""
    segment_len: int
    rows: Rows
    """Interactions of the segment in their present state, from place ``first`` on; empty only in a fence or a mark."""
    num_new: int
    """0 if the record only brings feedback, or is only written again (`ExampleLog.overwritten`)."""
    feedback_index: Int64
    feedback_bits: NDArray[np.uint32]
    user_feature_hash: Int64
    """(F_user,) int64, the user's latest categorical features; 0 where absent."""
    resume_from_offset: int
    """Where a restoring worker that has all examples up to this number must begin to apply actions again: examples up
    to this one cover everything before (`state.restore`)."""
    newest_record_ms: int
    """Kafka timestamp of the newest action covered: a wall-clock time, whatever the event times are."""
    first: int = field(default=0, kw_only=True)
    """The place in the segment of the record's first interaction."""
    names: dict[int, str | int] = field(default_factory=dict, kw_only=True)
    """Item hash → the producer's id, for items that this partition names for the first time."""
    is_fence: bool = field(default=False, kw_only=True)
    mark: Mark | None = field(default=None, kw_only=True)
    """The meaning of a mark, which has no interactions; None for other records. If it is about an item, ``names`` has
    it."""

    @property
    def interactions(self) -> Interactions:
        """The columns of ``rows``; views of them."""
        return interactions_of(self.rows)

    @property
    def marked_item(self) -> int:
        """The hash of a mark's item; 0 if this is not a mark of an item."""
        return next(iter(self.names), 0) if self.mark is not None else 0

    @property
    def forgotten(self) -> list[str]:
        """The users whom a mark forgets."""
        if self.mark is Mark.USERS:
            return list(json.loads(self.user))
        return [self.user] if self.mark is Mark.USER and self.user else []

    @property
    def address(self) -> Address:
        """What the record's key stands for."""
        if self.mark is not None:
            return address_of_mark(self.mark, self.marked_item)
        return address_of(self.user, self.segment, self.first, len(self.rows), self.segment_len)

    @property
    def first_index(self) -> int:
        """Place of the record's first interaction in the user's lifetime."""
        return self.segment * self.segment_len + self.first

    @property
    def first_new_index(self) -> int:
        """Place of the first new interaction in the user's lifetime. A user's records cover each place once."""
        return self.first_index + len(self.rows) - self.num_new

    @property
    def num_feedback(self) -> int:
        """Indices of earlier interactions that received feedback."""
        return len(self.feedback_index)


@dataclass(slots=True, eq=False)
class Example(Lesson):
    """All of a record: what it teaches, and what a worker needs to go on from it."""

    session_hash: Int64
    """(n,) the session of each interaction, 0 if none was given. Used for joining, not for training."""
    action_ids: Int64
    """(i,) hashes of the ids of the actions in these interactions, if ids were given: by interaction, and within each
    the oldest first."""
    user_offset: int
    """Highest action offset of this user in this example or an earlier one. Later actions of the record at that offset
    may still be missing: see ``user_index``."""
    user_index: int
    """Position, in the list of actions at ``user_offset``, of the last one that is included."""
    applied_offset: int
    """The highest action offset of the partition that has been applied."""
    newest_event_ms: int
    """The newest event time among the partition's applied actions."""
    counted_offset: int = field(default=-1, kw_only=True)
    """``counts`` are those of the partition's actions up to here."""
    counts: Counts = field(default=ZERO_COUNTS, kw_only=True)
    id_counts: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8), kw_only=True)
    """(n,) how many of ``action_ids`` belong to each interaction; (0,) where there are none."""

    @property
    def is_migrated(self) -> bool:
        """Whether its user was migrated from another deployment (`headrace.migration`): it covers no action of this
        one, and teaches nothing."""
        return self.user_offset < 0 and not self.is_fence


_NO_ROWS = np.empty(0, row_type(0))


def fence(partition: int, writer_epoch: int, number: int = -1) -> Example:
    """The mark of a new writer. ``number``: the next example number that it will write; -1 if it does not know yet."""
    none = np.empty(0, np.int64)
    return Example(
        user="", partition=partition, writer_epoch=writer_epoch, number=number, segment=0, segment_len=1,
        rows=_NO_ROWS, num_new=0, feedback_index=none, feedback_bits=np.empty(0, np.uint32),
        session_hash=none, action_ids=none, user_feature_hash=none, user_offset=-1, user_index=-1, applied_offset=-1,
        resume_from_offset=0, newest_event_ms=-1, newest_record_ms=-1, is_fence=True,
    )  # fmt: skip
