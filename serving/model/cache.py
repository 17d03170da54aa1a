"""An LRU cache of keys and values of users' histories, bounded in bytes.

An entry also holds the interactions that it was computed from: for a given history, the tokens of their common prefix
can be used. Every version changes all keys and values, so an entry also says under which version its oldest tokens were
computed (`Born`); the caller decides how old that may be (`serving.answering.reuse`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from serving.model.columns import Columns
from serving.model.network import KeysValues

MAX_REQUESTED = 4096
"""How many of the users with the most recent requests are remembered."""


@dataclass(frozen=True, slots=True)
class Born:
    """The version under which tokens were computed: a line of versions that follow each other, and a count of swaps."""

    line: tuple[int, int]
    swap: int

    def age(self, now: Born) -> int:
        """How many swaps ago that was; -1 if the two belong to different lines."""
        return now.swap - self.swap if self.line == now.line else -1


@dataclass(frozen=True, slots=True, eq=False)
class CacheEntry:
    """Keys and values of a user's interactions (of all tokens but the last action's), and those interactions."""

    user: str
    columns: Columns
    past: KeysValues
    born: Born

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return self.past.num_bytes + self.columns.num_bytes


class HistoryCache:
    """User → `CacheEntry`. Safe for any number of threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._requested: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0
        self.num_reused = 0
        """Hits of entries computed under an earlier version."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, user: str) -> CacheEntry | None:
        """The user's entry, if any. The caller must check that it fits the version and the history."""
        with self._lock:
            entry = self._entries.get(user)
            if entry is not None:
                self._entries.move_to_end(user)
            self._requested[user] = None
            self._requested.move_to_end(user)
            if len(self._requested) > MAX_REQUESTED:
                self._requested.popitem(last=False)
            return entry

    def requested(self) -> list[CacheEntry]:
        """The entries requested since the last call, the most recent first."""
        with self._lock:
            users, self._requested = list(reversed(self._requested)), OrderedDict()
            return [self._entries[user] for user in users if user in self._entries]

    def count(self, *, hit: bool, reused: bool = False) -> None:
        """Count a request: whether an entry could be used, and whether that was an earlier version's."""
        with self._lock:
            self.num_hits += hit
            self.num_misses += not hit
            self.num_reused += reused

    def put(self, entry: CacheEntry) -> None:
        """Store an entry, unless there is one of a later version; the least recently used entries make room for it."""
        user, size = entry.user, entry.num_bytes
        if size > self._max_bytes:
            return
        with self._lock:
            before = self._entries.get(user)
            if before is not None and entry.born.age(before.born) > 0:
                return
            self._drop(user)
            self._entries[user] = entry
            self.num_bytes += size
            while self.num_bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def drop(self, user: str) -> None:
        """Forget a user."""
        with self._lock:
            self._requested.pop(user, None)
            self._drop(user)

    def _drop(self, user: str) -> None:
        entry = self._entries.pop(user, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes
