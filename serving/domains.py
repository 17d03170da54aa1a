"""Which items belong to which domain: the one in which the item was last seen."""

from __future__ import annotations

import threading

import numpy as np

from wire.example import Int64


class ItemDomains:
    """Hash of a domain → hashes of its items. Fed by one thread, read by any. An item costs about 200 bytes."""

    def __init__(self, max_items: int = 2_000_000) -> None:
        self._max_items = max_items
        self._domain_of: dict[int, int] = {}
        self._members: dict[int, dict[int, None]] = {}
        self._arrays: dict[int, Int64] = {}
        self._lock = threading.Lock()

    def note(self, item_hash_n: Int64, domain_hash_n: Int64) -> None:
        """Note the domains in which items were seen; 0: none was given. Beyond ``max_items``, new items are ignored."""
        if not domain_hash_n.any():
            return
        with self._lock:
            for item, domain in zip(item_hash_n.tolist(), domain_hash_n.tolist(), strict=True):
                before = self._domain_of.get(item, 0)
                if domain and domain != before and (before or len(self._domain_of) < self._max_items):
                    self._move(item, before, domain)

    def _move(self, item: int, before: int, domain: int) -> None:
        if before:
            self._members[before].pop(item)
            self._arrays.pop(before, None)
        self._domain_of[item] = domain
        self._members.setdefault(domain, {})[item] = None
        self._arrays.pop(domain, None)

    def items_of(self, domain_hash: int) -> Int64:
        """(n,) the items of a domain, none if it is unknown. The caller must not change the array."""
        with self._lock:
            found = self._arrays.get(domain_hash)
            if found is None:
                members = self._members.get(domain_hash, {})
                found = self._arrays[domain_hash] = np.fromiter(members, np.int64, len(members))
                if not members:
                    del self._arrays[domain_hash]
            return found
