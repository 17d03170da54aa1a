"""Users' histories as the worker knows them: every accepted record of the sequences topic is folded in as it arrives.

The topic is compacted by segment, so reading it from its start gives every user's present history, and following it
keeps that up to date: an action is in the history as soon as its record arrives. A user costs 32 bytes per interaction,
8 more per feature, and about 250 in all besides. Beyond ``max_bytes`` the users that have been quiet longest are
forgotten; the history of one who returns starts with the segment of the new action.

A server that holds some partitions alone reads the others too, for what is known of items (`Catalogue`, those that were
removed) and for the clock: these do not depend on where a user is. It keeps no user of theirs.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.examples import GOOD, TOMBSTONE, Block, decode_block
from kernels.histories import UserHistories
from model.key_set import KeySet
from serving.users.catalogue import Catalogue
from wire.errors import ConfigError
from wire.example import Example, Int64, Interactions, Mark, interactions_of, num_features_of, row_type
from wire.example_codec import FENCE, MARKS
from wire.example_log import ExampleLog, Verdict
from wire.example_reader import ExampleReader
from wire.kafka.batches import Batch, readable_part
from wire.shape import SHAPE, Shape, disagreement


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What a user did, oldest first, and the user's categorical features: copies that do not change."""

    interactions: Interactions
    user_features: Int64


class Histories:
    """User → `Past`. Fed by one thread for each partition, read by any."""

    def __init__(
        self, max_bytes: int, max_context: int = 200, topic: str = "", num_features: int | None = None,
        columns: tuple[int, int] | None = None, catalogue_items: int = 10_000_000, shape: Shape | None = None,
    ) -> None:  # fmt: skip
        """``num_features``: how many of an interaction's columns are features of its item; None: all. ``columns``: how
        many columns an interaction has, and how many features a user; None: as many as the first example has.
        ``catalogue_items``: of how many items `items` knows something. ``shape``: what the bits and columns mean here;
        None: whatever the workers say."""
        self._max_bytes, self._max_context = max_bytes, max_context
        self._kept: UserHistories | None = None
        """Made once it is known how many features an item has: from the first example on."""
        self._logs: dict[int, ExampleLog] = {}
        self._unread = set[int]()
        """The partitions in which a record that is not an example stood after the last one that is."""
        self.is_complete = False
        """Whether all that the topic held at first is read, so that every example from now on must be there."""
        self.missing = ""
        """Which examples were not, in words; empty as long as all were."""
        self.items = Catalogue(catalogue_items, num_features)
        self._lock = threading.Lock()
        self.num_forgotten = 0
        self.num_erased = 0
        """Users whose histories were removed because somebody asked for it."""
        self.removed = KeySet()
        """Hashes of items that were removed, which are in no answer."""
        self.on_erased: Callable[[str], None] = lambda _: None
        """Called with a user whose history was removed."""
        self._columns, self._shape = columns, shape
        self._decoder = ExampleReader(topic, columns)
        self.held: frozenset[int] | None = None
        """The partitions whose users are kept; None: all."""
        self.clock_ms = -1
        """Newest event time of any partition; -1 before the first."""

    def __len__(self) -> int:
        return len(self._kept) if self._kept is not None else 0

    @property
    def num_bytes(self) -> int:
        """Memory used by the histories."""
        return self._kept.num_bytes if self._kept is not None else 0

    @property
    def num_foreign(self) -> int:
        """Records that were not examples."""
        return self._decoder.num_foreign

    def feed(self, partition: int, value: bytes | None, offset: int = -1) -> None:
        """Take a record of the sequences topic, in the order of offsets within its partition."""
        example = self._decoder.read(partition, offset, value)
        if example is None:
            if value is not None:
                self._unread.add(partition)
            return
        log = self._log(partition)
        due = log.next_number
        if log.feed(example) is not Verdict.ACCEPT:
            return
        self._look_for_gap(partition, due, example.number, 1)
        if example.mark is None:
            self._keep(example)
        else:
            self._apply_mark(example)

    def _look_for_gap(self, partition: int, due: int | None, last: int, num: int) -> None:
        """Note if ``num`` accepted examples up to number ``last`` are not all from number ``due`` on. Among those that
        compaction has removed before they were read may be the mark of a user who is forgotten."""
        if self.is_complete and due is not None and last - due + 1 != num and partition not in self._unread:
            self.missing = f"partition {partition} lacks {last - due + 1 - num} examples from number {due} on"
        self._unread.discard(partition)

    def _apply_mark(self, mark: Example) -> None:
        with self._lock:
            if mark.mark is Mark.ITEM:
                self.removed.add(mark.marked_item)
            elif mark.mark is Mark.ITEM_BACK:
                self.removed.discard(mark.marked_item)
            elif self._kept is not None:
                for user in mark.forgotten:
                    self._kept.drop(user)
                    self.num_erased += 1
        for user in mark.forgotten:
            self.on_erased(user)

    def feed_batches(self, partition: int, batches: Sequence[Batch]) -> None:
        """Take batches of records in their order, like `feed` for each record. Raises `ConfigError` if a worker's fence
        gives bits and columns another meaning than they have here."""
        while batches and self._kept is None:  # one by one, until there is an example
            block = _decoded(batches[:1], row_type(0))
            for record in range(len(block.heads)):
                self._feed_one(partition, block, record)
            batches = batches[1:]
        if not batches or self._kept is None:
            return
        block = _decoded(batches, self._kept.row_type)
        heads = block.heads
        is_plain = (heads["status"] == GOOD) & (heads["flags"] & MARKS == 0) & (heads["partition"] == partition)
        if self._decoder.columns is not None:
            is_plain &= heads["num_user_features"] == self._decoder.columns[1]
        edges = [0, *(np.flatnonzero(np.diff(is_plain)) + 1).tolist(), len(heads)] if len(heads) else []
        for begin, end in itertools.pairwise(edges):
            numbers, epochs = heads["number"][begin:end], heads["writer_epoch"][begin:end]
            log = self._log(partition)
            due = log.next_number
            if is_plain[begin] and log.take_run(numbers, epochs):
                self._look_for_gap(partition, due, int(numbers[-1]), end - begin)
                self._keep_run(block, begin, end)
                continue
            for record in range(begin, end):
                self._feed_one(partition, block, record)

    def _feed_one(self, partition: int, block: Block, record: int) -> None:
        if block.heads["status"][record] == TOMBSTONE:
            return
        offset = int(block.heads["offset"][record])
        if block.heads["flags"][record] & FENCE:
            self._check_shape(partition, offset, block.headers(record).get(SHAPE))
        self.feed(partition, block.value(record), offset)

    def _check_shape(self, partition: int, offset: int, said: bytes | None) -> None:
        if self._shape is not None and (otherwise := disagreement(said, self._shape)):
            raise ConfigError(
                f"{self._decoder.topic} partition {partition} offset {offset}: {otherwise}; give every process of a "
                "deployment the same configuration"
            )

    def _holds(self, partition: int) -> bool:
        return self.held is None or partition in self.held

    def _log(self, partition: int) -> ExampleLog:
        return self._logs.setdefault(partition, ExampleLog(None, allow_gaps=True))

    def _keep_run(self, block: Block, begin: int, end: int) -> None:
        """Fold records that are all valid."""
        assert self._kept is not None
        heads = block.heads[begin:end]
        with self._lock:
            if self._holds(int(heads["partition"][0])):
                self.num_forgotten += self._kept.fold(block, begin, end, self._max_bytes)
            self.clock_ms = max(self.clock_ms, int(heads["newest_event_ms"].max()))
        rows = block.rows[heads["rows_at"][0] : heads["rows_at"][-1] + heads["num"][-1]]
        self.items.note(int(heads["partition"][0]), interactions_of(rows))

    def _keep(self, example: Example) -> None:
        rows = example.rows
        with self._lock:
            if self._kept is None:
                self._kept = UserHistories(rows.dtype, self._max_context)
                self._decoder.columns = num_features_of(rows), len(example.user_feature_hash)
            if self._holds(example.partition):
                self.num_forgotten += self._kept.put(
                    example.user, example.segment_len, example.first_index, rows, example.user_feature_hash,
                    self._max_bytes,
                )  # fmt: skip
            self.clock_ms = max(self.clock_ms, example.newest_event_ms)
        self.items.note(example.partition, example.interactions)

    def begin_anew(self) -> None:
        """Drop all that was read, as in a server that starts now: the topic was created again, or has lost its end, or
        records that were not read yet. The clock too, since requests without a time would be asked at that of the old
        topic, for ever if it was ahead."""
        self._logs.clear()
        self._unread.clear()
        self.is_complete, self.missing = False, ""
        self.removed = KeySet()
        self.items.clear()
        with self._lock:
            self._kept, self._decoder.columns, self.clock_ms = None, self._columns, -1

    def get(self, user: str) -> Past | None:
        """A user's history (by canonical key), or None. In whole segments: ``max_context`` interactions and up to a
        segment more, so that keys and values cached for a long history stay valid while it grows."""
        with self._lock:
            found = self._kept.get(user) if self._kept is not None else None
        if found is None:
            return None
        rows, features = found
        return Past(_contiguous(interactions_of(rows)), features)

    def is_removed(self, item_hash_n: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) which items were removed."""
        return self.removed.holds(item_hash_n)

    def newest_users(self, num: int) -> list[str]:
        """The users that acted most recently, newest first."""
        with self._lock:
            return self._kept.newest(num) if self._kept is not None else []


def _decoded(batches: Sequence[Batch], rows: np.dtype[np.void]) -> Block:
    """`decode_block`, of what can be read: a broker that does not look into batches takes any bytes."""
    try:
        return decode_block([each[:3] for each in batches], rows)
    except ValueError:
        return decode_block([readable_part(each)[:3] for each in batches], rows)


def _contiguous(rows: Interactions) -> Interactions:
    return Interactions(
        np.ascontiguousarray(rows.item_hash),
        np.ascontiguousarray(rows.action_bits),
        np.ascontiguousarray(rows.timestamp_ms),
        np.ascontiguousarray(rows.domain_hash),
        np.ascontiguousarray(rows.value),
        np.ascontiguousarray(rows.feature_hash),
    )
