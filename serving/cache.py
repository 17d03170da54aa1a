"""Cached keys and values of users' histories: least recently used first out, bounded in bytes.

An entry belongs to one version and one run of interactions, which it holds: as many of its first tokens are good for a
history as both have in common. Weights change every key and value, so an entry of one version is never right under
another; the version is part of the key.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from serving.network import Columns, KeysValues

Which = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class CacheEntry:
    """Keys and values of a user's interactions (of all tokens but the last action's), and what these were."""

    columns: Columns
    past: KeysValues

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return self.past.num_bytes + self.columns.num_bytes


class HistoryCache:
    """(version, user) → `CacheEntry`. For any number of threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[Which, str], CacheEntry] = OrderedDict()
        self._newest: Which = (-1, -1)
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, which: Which, user: str) -> CacheEntry | None:
        """The entry of this user under this version, if any. Whether it fits the history is the caller's to check."""
        with self._lock:
            entry = self._entries.get((which, user))
            if entry is not None:
                self._entries.move_to_end((which, user))
            return entry

    def count(self, *, hit: bool) -> None:
        """Note whether an entry could be used."""
        with self._lock:
            self.num_hits += hit
            self.num_misses += not hit

    def put(self, which: Which, user: str, entry: CacheEntry) -> None:
        """Keep an entry; what is older than the newest version, then what was not used longest, makes room for it."""
        size = entry.num_bytes
        if size > self._max_bytes:
            return
        with self._lock:
            self._drop((which, user))
            if which > self._newest:
                self._newest = which
                for key in [key for key in self._entries if key[0] < which]:
                    self._drop(key)
            self._entries[which, user] = entry
            self.num_bytes += size
            while self.num_bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: tuple[Which, str]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes
