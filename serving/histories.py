"""Users' histories as the worker knows them: every accepted record of the sequences topic is folded in as it arrives.

The topic is compacted by segment, so reading it from its start gives every user's present history, and following it
keeps that up to date: an action is in the history as soon as its record arrives. A user costs 32 bytes per interaction,
8 more per feature, and about 400 in all besides. Beyond ``max_bytes`` the users that have been quiet longest are
forgotten; the history of one who returns starts with the segment of the new action.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.examples import GOOD, TOMBSTONE, Block, decode_block
from serving.domains import ItemDomains
from wire import history
from wire.example import Example, Int64, Interactions, Mark
from wire.example_codec import MARKS
from wire.example_log import ExampleLog, Verdict
from wire.example_reader import ExampleReader
from wire.history import Rows, interactions_of, row_type
from wire.kafka.batches import Batch

MAX_FEATURED_ITEMS = 1_000_000
"""How many items' features are remembered; beyond that, those not seen for longest are forgotten."""


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What a user did, oldest first, and the user's categorical features: copies that do not change."""

    interactions: Interactions
    user_features: Int64


class Histories:
    """User → `Past`. Fed by one thread, read by any."""

    def __init__(self, max_bytes: int, max_context: int = 200, topic: str = "") -> None:
        self._max_bytes = max_bytes
        self._kept = history.Histories(max_context)
        self._logs: dict[int, ExampleLog] = {}
        self.domains = ItemDomains()
        self._features: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._lock = threading.Lock()
        self.num_forgotten = 0
        self.removed: set[int] = set()
        """Hashes of items that somebody had removed: no answers any more."""
        self.on_erased: Callable[[str], None] = lambda _: None
        """Called with a user whose history somebody had removed."""
        self._num_features: int | None = None
        """Features of an item; known from the first example on."""
        self._decoder = ExampleReader(topic)
        self.clock_ms = -1
        """Newest event time of any partition; -1 before the first."""

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Memory used by the histories."""
        return self._kept.num_bytes

    @property
    def num_foreign(self) -> int:
        """Records that were not examples."""
        return self._decoder.num_foreign

    def feed(self, partition: int, value: bytes | None, offset: int = -1) -> None:
        """Take a record of the sequences topic, in the order of offsets within its partition."""
        example = self._decoder.read(partition, offset, value)
        if example is None:
            return
        if len(example.interactions):
            self._num_features = example.interactions.feature_hash.shape[1]
        if self._log(partition).feed(example) is not Verdict.ACCEPT:
            return
        if example.mark is None:
            self._keep(example)
        else:
            self._obey(example)

    def _obey(self, mark: Example) -> None:
        if mark.mark is Mark.ITEM:
            self.removed = self.removed | {mark.marked_item}  # whoever reads the other one may go on
        elif mark.mark is Mark.ITEM_BACK:
            self.removed = self.removed - {mark.marked_item}
        elif mark.user:
            with self._lock:
                if mark.user in self._kept.users:
                    self._kept.drop(mark.user)
            self.on_erased(mark.user)

    def feed_batches(self, partition: int, batches: Sequence[Batch], first: int = 0) -> None:
        """Take batches of records in their order, like `feed` for each record; those before ``first`` are skipped."""
        if self._num_features is None:
            for record in range(len((block := decode_block(batches, row_type(0))).heads)):
                self._feed_one(partition, block, record, first)
            return
        block = decode_block(batches, row_type(self._num_features))
        heads = block.heads
        if (
            (heads["status"] == GOOD).all()
            and not (heads["flags"] & MARKS).any()
            and (heads["partition"] == partition).all()
            and heads["offset"][0] >= first
            and self._log(partition).take_run(heads["number"], heads["writer_epoch"])
        ):
            self._keep_block(block)
            return
        for record in range(len(heads)):
            self._feed_one(partition, block, record, first)

    def _feed_one(self, partition: int, block: Block, record: int, first: int) -> None:
        if block.heads["offset"][record] >= first and block.heads["status"][record] != TOMBSTONE:
            self.feed(partition, block.value(record), int(block.heads["offset"][record]))

    def _log(self, partition: int) -> ExampleLog:
        return self._logs.setdefault(partition, ExampleLog(None, allow_gaps=True))

    def _keep_block(self, block: Block) -> None:
        """Fold records that are all valid."""
        heads, rows, data, users = block.heads, block.rows, block.data, self._kept.users
        columns = [heads[name].tolist() for name in ("user_at", "user_len", "segment_len", "rows_at", "num")]
        firsts = (heads["segment"] * heads["segment_len"] + heads["first"]).tolist()
        features = _user_features(block)
        with self._lock:
            for at, size, segment_len, row, num, first, own in zip(*columns, firsts, features, strict=True):
                user = data[at : at + size].decode()
                self._kept.put(user, segment_len, first, rows[row : row + num], own)
                users.move_to_end(user)
            while self.num_bytes > self._max_bytes and len(users) > 1:
                self._kept.drop(next(iter(users)))
                self.num_forgotten += 1
        self.clock_ms = max(self.clock_ms, int(heads["newest_event_ms"].max()))
        named = _newest(rows[rows["domain"] != 0])
        given = rows[rows["features"].any(axis=1)]
        self._note_features(interactions_of(_newest(given)))
        self.domains.note(named["item"], named["domain"])

    def _keep(self, example: Example) -> None:
        users = self._kept.users
        with self._lock:
            self._kept.fold(example)
            users.move_to_end(example.user)
            while self.num_bytes > self._max_bytes and len(users) > 1:
                self._kept.drop(next(iter(users)))
                self.num_forgotten += 1
        self.clock_ms = max(self.clock_ms, example.newest_event_ms)
        self._note_features(example.interactions)
        self.domains.note(example.interactions.item_hash, example.interactions.domain_hash)

    def _note_features(self, rows: Interactions) -> None:
        given = rows.feature_hash.any(axis=1)
        if not given.any():
            return
        items, all_features = rows.item_hash[given], rows.feature_hash[given]
        for item, features in zip(items.tolist(), map(tuple, all_features.tolist()), strict=True):
            self._features[item] = features
            self._features.move_to_end(item)
        while len(self._features) > MAX_FEATURED_ITEMS:
            self._features.popitem(last=False)

    def forget_partitions(self) -> None:
        """Forget which numbers were seen, because the topic is being read from its start again."""
        self._logs.clear()

    def begin_anew(self) -> None:
        """Forget everything, because a new topic has the old one's name: users' histories start over in it."""
        self.forget_partitions()
        self.removed = set()
        with self._lock:
            for user in list(self._kept.users):
                self._kept.drop(user)

    def get(self, user: str) -> Past | None:
        """A user's history (by canonical key), or None. In whole segments: ``max_context`` interactions and up to a
        segment more, so that keys and values cached for a long history stay valid while it grows."""
        with self._lock:
            kept = self._kept.users.get(user)
            if kept is None:
                return None
            rows, features = kept.rows(kept.start, kept.end).copy(), kept.user_features
        return Past(_contiguous(interactions_of(rows)), features)

    def is_removed(self, item_hash_n: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) which items somebody had removed."""
        removed = self.removed
        return np.isin(item_hash_n, np.fromiter(removed, np.int64)) if removed else np.zeros(len(item_hash_n), np.bool_)

    def newest_users(self, num: int) -> list[str]:
        """The users that acted most recently, newest first."""
        with self._lock:
            return list(itertools.islice(reversed(self._kept.users), num))

    def features_of(self, item_hash_n: NDArray[np.int64], num_features: int) -> NDArray[np.int64]:
        """(n, F) the features last seen with each item; 0 if none were."""
        nothing = (0,) * num_features
        rows = [self._features.get(key, nothing) if num_features else () for key in item_hash_n.tolist()]
        return np.array(rows, np.int64).reshape(len(item_hash_n), num_features)


def _newest(rows: Rows) -> Rows:
    """The last row of each item."""
    last = np.unique(rows["item"][::-1], return_index=True)[1]
    return rows[np.sort(len(rows) - 1 - last)]


def _user_features(block: Block) -> Iterable[Int64]:
    """For each record, its user's features."""
    none, heads = np.empty(0, np.int64), block.heads
    if not heads["num_user_features"].any():
        return itertools.repeat(none, len(heads))
    places = zip(heads["user_features_at"].tolist(), heads["num_user_features"].tolist(), strict=True)
    return [np.frombuffer(block.data, np.int64, num, at).copy() for at, num in places]


def _contiguous(rows: Interactions) -> Interactions:
    return Interactions(
        np.ascontiguousarray(rows.item_hash),
        np.ascontiguousarray(rows.action_bits),
        np.ascontiguousarray(rows.timestamp_ms),
        np.ascontiguousarray(rows.domain_hash),
        np.ascontiguousarray(rows.value),
        np.ascontiguousarray(rows.feature_hash),
    )
