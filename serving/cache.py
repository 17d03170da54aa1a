"""Cached keys and values of users' histories: least recently used first out, bounded in bytes.

An entry holds the run of interactions that it is of: as many of its first tokens are good for a history as both have in
common. Weights change every key and value, so an entry also says of which version the oldest of its tokens are
(`Born`); whether that is near enough is the caller's to decide (`serving.reuse`), and by default only the same is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from serving.network import Columns, KeysValues

MAX_ASKED = 4096
"""So many of the users who asked are remembered."""


@dataclass(frozen=True, slots=True)
class Born:
    """Under what tokens were computed: a line of versions that follow each other, and the how-manieth swap it was."""

    line: tuple[int, int]
    swap: int

    def age(self, now: Born) -> int:
        """How many swaps ago that was; -1 where the two do not follow each other."""
        return now.swap - self.swap if self.line == now.line else -1


@dataclass(frozen=True, slots=True, eq=False)
class CacheEntry:
    """Keys and values of a user's interactions (of all tokens but the last action's), and what these were."""

    user: str
    columns: Columns
    past: KeysValues
    born: Born

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return self.past.num_bytes + self.columns.num_bytes


class HistoryCache:
    """User → `CacheEntry`. For any number of threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._asked: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0
        self.num_reused = 0
        """Hits of an entry that an earlier version left."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, user: str) -> CacheEntry | None:
        """This user's entry, if any. Whether it fits the version and the history is the caller's to check."""
        with self._lock:
            entry = self._entries.get(user)
            if entry is not None:
                self._entries.move_to_end(user)
            self._asked[user] = None
            self._asked.move_to_end(user)
            if len(self._asked) > MAX_ASKED:
                self._asked.popitem(last=False)
            return entry

    def asked(self) -> list[CacheEntry]:
        """Entries asked for since the last call, the latest first."""
        with self._lock:
            users, self._asked = list(reversed(self._asked)), OrderedDict()
            return [self._entries[user] for user in users if user in self._entries]

    def count(self, *, hit: bool, reused: bool = False) -> None:
        """Note whether an entry could be used, and whether it was an earlier version's."""
        with self._lock:
            self.num_hits += hit
            self.num_misses += not hit
            self.num_reused += reused

    def put(self, entry: CacheEntry) -> None:
        """Keep an entry, but for one of a later version that is here; what was not used longest makes room for it."""
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
            self._asked.pop(user, None)
            self._drop(user)

    def _drop(self, user: str) -> None:
        entry = self._entries.pop(user, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes
