"""On which day each item was last named, on disk (`state.names`).

Key: n <item hash:8>, big-endian. Value: the day, four bytes, big-endian and signed; nothing in stores of earlier
builds, which sent each name once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from rocksdict import WriteBatch

from state.database import Database
from state.names import NO_DAY

_PREFIX = b"n"
SWEPT, SWEPT_A_NAME = 1000, 4
"""Keys of past days are looked for among this many in each write batch, and this many more for each name in it."""
MANY_REMOVED = 10_000
"""After a sweep that removed more, RocksDB's memory is flushed."""


class NameStore:
    """The named items of one partition. Changes go into the caller's write batch."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._swept_day = NO_DAY
        self._next: bytes | None = None
        """Where to go on to sweep; None: all is swept."""
        self._num_removed = 0

    def save(self, batch: WriteBatch, item_hashes: Iterable[int], day: int) -> None:
        """Record that these items were named on this day."""
        for item_hash in item_hashes:
            batch.put(_key(item_hash), encode_day(day))

    def named(self, item_hashes: Sequence[int], day: int) -> list[int]:
        """The items among these that were named on this day."""
        found = self._db.get_many([_key(item) for item in item_hashes]) if item_hashes else []
        return [item for item, stored in zip(item_hashes, found, strict=True) if _is_of(stored, day)]

    def is_named(self, item_hash: int, day: int) -> bool:
        """Whether the item was named on this day."""
        return _is_of(self._db.get(_key(item_hash)), day)

    def sweep(self, batch: WriteBatch, day: int, num_named: int) -> None:
        """Remove some of the items that were last named before yesterday; once a day, all of them are looked at.
        ``num_named``: how many the batch names; they are saved after this."""
        if self._next is None:
            if day == self._swept_day:
                return
            self._swept_day, self._next = day, _PREFIX
        most = SWEPT + SWEPT_A_NAME * num_named
        found = list(islice(self._db.under(_PREFIX, self._next), most))
        past = [key for key, stored in found if _day_of(stored) < day - 1]
        for key in past:
            batch.delete(key)
        self._num_removed += len(past)
        if len(found) == most:
            self._next = found[-1][0] + b"\x00"
            return
        self._next = None
        if self._num_removed > MANY_REMOVED:
            self._db.begin_flush()  # the next sweep would pass their tombstones, which only compacting a file drops
        self._num_removed = 0


def encode_day(day: int) -> bytes:
    """The value of a key. A Kafka timestamp may state any time, so a day may not fit."""
    return min(max(day, NO_DAY), -NO_DAY - 1).to_bytes(4, "big", signed=True)


def _day_of(stored: bytes) -> int:
    return int.from_bytes(stored, "big", signed=True) if stored else NO_DAY


def _is_of(stored: bytes | None, day: int) -> bool:
    """Named on this day, or on the next one, as where records around midnight are not in order of time."""
    return stored is not None and 0 <= _day_of(stored) - day <= 1


def _key(item_hash: int) -> bytes:
    return _PREFIX + item_hash.to_bytes(8, "big", signed=True)
