"""What a server knows of items besides the weights: the domain and features that each was last seen with, and when it
was first seen, as far back as the histories in the sequences topic reach.

"Last" is by the time of the interaction, not by the order in which records are read: an old segment is written again
whenever one of its interactions changes, and servers read partitions in different orders. Of interactions at the same
time, that of the higher partition counts, and in one partition the later record. An action that is dated ahead, which
only a topic with producers' times accepts (`stream.drift`), therefore counts until its time has come.

Kept in columns, so that a filter is a few comparisons over all items (`Conditions`). An item costs about 76 bytes, and
8 for each feature.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kernels.id_map import IdMap
from wire.example import Int64, Interactions
from wire.moment import MAX_TIMESTAMP_MS

NEVER = np.iinfo(np.int64).max
FIRST_CAPACITY = 1024
PARTITION_BITS = 15
"""The low bits of when something was seen, which is its time and its partition in one number."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions that an item must fulfil, all of them. ``domains``: hashes, of which it must have one (None: any
    domain); ``features``: the same by column; ``first_from_ms`` and ``first_until_ms``: when it was first seen."""

    domains: tuple[int, ...] | None = None
    features: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    first_from_ms: int = -NEVER
    first_until_ms: int = NEVER - 1


class Catalogue:
    """Finds the items that fulfil `Conditions`. Fed by one thread, read by any.

    Beyond ``max_items``, the quarter of the items that has not been seen for longest is forgotten.
    """

    def __init__(self, max_items: int = 10_000_000, num_features: int | None = None) -> None:
        self._max_items, self._num_features = max_items, num_features
        self.num_forgotten = 0
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Drop all items."""
        with self._lock:
            self._place_of, self._num_notes, self._num_used = IdMap(), 0, 0
            self._first = np.zeros(FIRST_CAPACITY, np.int64)
            self._domain = np.zeros(FIRST_CAPACITY, np.int64)
            self._domain_seen = np.zeros(FIRST_CAPACITY, np.int64)
            self._features_seen = np.zeros(FIRST_CAPACITY, np.int64)
            self._features = np.zeros((FIRST_CAPACITY, 0), np.int64)

    def __len__(self) -> int:
        return len(self._place_of)

    def note(self, partition: int, rows: Interactions) -> None:
        """Note interactions in the order of their partition's log; a domain or feature of 0 means none."""
        step = max(1, self._max_items // 4)
        with self._lock:
            for at in range(0, len(rows), step):
                part = slice(at, at + step)
                self._note(
                    partition,
                    rows.item_hash[part],
                    rows.timestamp_ms[part],
                    rows.domain_hash[part],
                    rows.feature_hash[part, : self._num_features],
                )

    def _note(self, partition: int, item_n: Int64, time_ms_n: Int64, domain_n: Int64, features_nF: Int64) -> None:
        self._num_notes += 1
        place_n = self._place_of.insert(np.ascontiguousarray(item_n), self._num_notes)
        self._grow(self._place_of.num_rows, features_nF.shape[1])
        np.minimum.at(self._first, place_n, time_ms_n)
        seen_n = np.clip(time_ms_n, 0, MAX_TIMESTAMP_MS) << PARTITION_BITS | partition % (1 << PARTITION_BITS)
        newest = _newest(self._domain_seen, place_n, seen_n, domain_n != 0)
        self._domain[place_n[newest]] = domain_n[newest]  # of repeated places, the last one counts
        newest = _newest(self._features_seen, place_n, seen_n, np.asarray(features_nF.any(axis=1)))
        self._features[place_n[newest]] = features_nF[newest]
        if len(self._place_of) > self._max_items:
            self._forget()

    def _grow(self, num: int, num_features: int) -> None:
        capacity = len(self._first)
        while capacity < num:
            capacity *= 2
        if capacity > len(self._first) or num_features > self._features.shape[1]:
            self._first, self._domain = _longer(self._first, capacity), _longer(self._domain, capacity)
            self._domain_seen = _longer(self._domain_seen, capacity)
            self._features_seen = _longer(self._features_seen, capacity)
            features = np.zeros((capacity, max(num_features, self._features.shape[1])), np.int64)
            features[: len(self._features), : self._features.shape[1]] = self._features
            self._features = features
        self._first[self._num_used : num] = NEVER
        self._num_used = max(self._num_used, num)

    def _forget(self) -> None:
        rows = self._place_of.live_rows()
        last_n = self._place_of.of_rows(rows)[1]
        oldest_kept = int(np.partition(last_n, len(rows) // 4)[len(rows) // 4])
        _, gone = self._place_of.evict(oldest_kept if oldest_kept > last_n.min() else oldest_kept + 1)
        self.num_forgotten += len(gone)
        self._first[gone], self._domain[gone], self._features[gone] = NEVER, 0, 0
        self._domain_seen[gone], self._features_seen[gone] = 0, 0

    def fulfilling(self, conditions: Conditions, among: Int64 | None = None) -> Int64:
        """(n,) hashes of the items, of ``among`` or of all, that fulfil the conditions."""
        with self._lock:
            place = self._place_of.live_rows() if among is None else self._place_of.lookup(among)
            place = place[place >= 0]
            kept = place[self._fulfil(conditions, place)]
            return self._place_of.ids_of_rows(kept)

    def _fulfil(self, conditions: Conditions, place: Int64) -> NDArray[np.bool_]:
        first = self._first[place]
        kept = (first >= conditions.first_from_ms) & (first <= conditions.first_until_ms)
        if conditions.domains is not None:
            kept &= np.isin(self._domain[place], conditions.domains)
        for column, hashes in conditions.features.items():
            is_known = column < self._features.shape[1]  # otherwise no item has had features yet
            kept &= np.isin(self._features[place, column], hashes) if is_known else False
        return np.asarray(kept)

    def features_of(self, item_n: Int64, num_features: int) -> Int64:
        """(n, F) the features last seen with each item; 0 if none were."""
        found = np.zeros((len(item_n), num_features), np.int64)
        with self._lock:
            if self._features.shape[1] >= num_features > 0:
                place = self._place_of.lookup(np.ascontiguousarray(item_n))
                found[place >= 0] = self._features[place[place >= 0], :num_features]
        return found


def _newest(seen: Int64, place_n: Int64, seen_n: Int64, is_given_n: NDArray[np.bool_]) -> Int64:
    """Which of n rows say something at least as new as all that was seen of their places; ``seen`` is brought up to
    date."""
    given = np.flatnonzero(is_given_n)
    np.maximum.at(seen, place_n[given], seen_n[given])
    return np.asarray(given[seen_n[given] == seen[place_n[given]]], np.int64)


def _longer(column: Int64, capacity: int) -> Int64:
    longer = np.zeros(capacity, np.int64)
    longer[: len(column)] = column
    return longer
