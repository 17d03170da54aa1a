"""What users did, as far as the worker has it: every accepted record of the sequences topic is folded in as it comes.

The topic is compacted by segment, so reading it from its start gives every user's present history, and following it
keeps it present: an action is here as soon as its record is. A user costs 32 bytes an interaction, 8 more a feature,
and about 400 around them. Beyond ``max_bytes`` the users that have been quiet longest are forgotten; one who acts again
begins with the segment that he acts in.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.domains import ItemDomains
from wire import history
from wire.example import Example, Int64, Interactions
from wire.example_log import ExampleLog, Verdict
from wire.example_reader import ExampleReader
from wire.history import interactions_of

MAX_FEATURED_ITEMS = 1_000_000
"""Items whose features are remembered; beyond that, those that were not met longest are forgotten."""


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """What a user did, oldest first, and his categorical features: copies, which nobody changes."""

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
        self._decoder = ExampleReader(topic)
        self.clock_ms = -1
        """Newest event time of any partition; -1 before the first."""

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Memory of the histories."""
        return self._kept.num_bytes

    @property
    def num_foreign(self) -> int:
        """Records that were no examples."""
        return self._decoder.num_foreign

    def feed(self, partition: int, value: bytes | None, offset: int = -1) -> None:
        """One record of the sequences topic, in the order of offsets within its partition."""
        example = self._decoder.read(partition, offset, value)
        if example is None:
            return
        log = self._logs.setdefault(partition, ExampleLog(None, allow_holes=True))
        if log.feed(example) is Verdict.ACCEPT:
            self._keep(example)

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
        if not rows.feature_hash.shape[1] or not rows.feature_hash.any():
            return
        for item, features in zip(rows.item_hash.tolist(), map(tuple, rows.feature_hash.tolist()), strict=True):
            self._features[item] = features
            self._features.move_to_end(item)
        while len(self._features) > MAX_FEATURED_ITEMS:
            self._features.popitem(last=False)

    def forget_partitions(self) -> None:
        """Start to read the topic again from its beginning: what comes is judged anew."""
        self._logs.clear()

    def begin_anew(self) -> None:
        """Another topic: users begin their lives again in it, and what is here would cover what they do there."""
        self.forget_partitions()
        with self._lock:
            for user in list(self._kept.users):
                self._kept.drop(user)

    def get(self, user: str) -> Past | None:
        """What is here of a user (canonical key), or None. Whole segments: ``max_context`` interactions and up to a
        segment more, so that what was computed of a long history stays good while it grows."""
        with self._lock:
            kept = self._kept.users.get(user)
            if kept is None:
                return None
            rows, features = kept.rows(kept.start, kept.end).copy(), kept.user_features
        return Past(_contiguous(interactions_of(rows)), features)

    def newest_users(self, num: int) -> list[str]:
        """Users who acted last, the newest first."""
        with self._lock:
            return list(itertools.islice(reversed(self._kept.users), num))

    def features_of(self, item_hash_n: NDArray[np.int64], num_features: int) -> NDArray[np.int64]:
        """(n, F) the features that items came with last; 0 where none were seen."""
        nothing = (0,) * num_features
        rows = [self._features.get(key, nothing) if num_features else () for key in item_hash_n.tolist()]
        return np.array(rows, np.int64).reshape(len(item_hash_n), num_features)


def _contiguous(rows: Interactions) -> Interactions:
    return Interactions(
        np.ascontiguousarray(rows.item_hash),
        np.ascontiguousarray(rows.action_bits),
        np.ascontiguousarray(rows.timestamp_ms),
        np.ascontiguousarray(rows.domain_hash),
        np.ascontiguousarray(rows.value),
        np.ascontiguousarray(rows.feature_hash),
    )
