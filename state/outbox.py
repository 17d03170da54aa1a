"""A partition's outbox: examples and dead letters that wait to be produced, in order.

Its keys in the partition's database are

    x <index:8>     an entry, by its big-endian index; `state.meta.Meta` says which are waiting
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from rocksdict import WriteBatch

from state.database import Database
from state.meta import corrupt
from wire.action import Rejection
from wire.dead_letter import DeadLetter
from wire.errors import CodecError
from wire.example_codec import Header, pack, restamp, unpack
from wire.topics import example_key

MAX_RECENT_BYTES = 4 << 20
RECENT_OVERHEAD_BYTES = 300
"""Memory that an entry takes besides its value."""
_EXAMPLE = b"\x01"
_DEAD_LETTER = b"\x02"
_TOMBSTONE = b"\x03"


class OutboxEntry(msgspec.Struct, frozen=True, gc=False):
    """One record to produce. ``number``: the example's number; -1 for a dead letter, and for the tombstone of an
    example's key, which has no ``value`` and goes to the same topic as examples. ``record_ms``: Kafka timestamp of the
    newest action that it comes from. Only dead letters have ``headers``."""

    index: int
    is_example: bool
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]]
    number: int
    record_ms: int


class _StoredLetter(msgspec.Struct, array_like=True):
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    record_ms: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_StoredLetter)


def stored_dead_letter(rejection: Rejection, topic: str, partition: int, offset: int, record_ms: int) -> bytes:
    """What the store keeps of a rejection."""
    letter = DeadLetter(rejection.reason, rejection.message, topic, partition, offset, rejection.index)
    return _DEAD_LETTER + _encoder.encode(_StoredLetter(letter.key, rejection.raw, letter.headers(), record_ms))


def entry_of(index: int, stored: bytes, writer_epoch: int, num_slots: int) -> OutboxEntry:
    """The record to produce; an example gets the current ``writer_epoch``. Raises CodecError, msgspec.DecodeError."""
    if stored[:1] == _DEAD_LETTER:
        letter = _decoder.decode(memoryview(stored)[1:])
        return OutboxEntry(index, False, letter.key, letter.value, letter.headers, -1, letter.record_ms)
    value = stored[1:]
    if stored[:1] == _TOMBSTONE:
        return OutboxEntry(index, True, value[8:], None, [], -1, int.from_bytes(value[:8], "big", signed=True))
    header, _ = unpack(value)
    if header.writer_epoch != writer_epoch:
        value = restamp(value, writer_epoch)
    key = example_key(header.address, num_slots)
    return OutboxEntry(index, True, key, value, [], header.number, header.newest_record_ms)


class Outbox:
    """The entries of one database, by index. Writes go into the caller's batch."""

    def __init__(self, db: Database, num_slots: int) -> None:
        self._db = db
        self._num_slots = num_slots
        self._recent: dict[int, OutboxEntry] = {}
        """The newest entries, written under ``_recent_epoch``, so that most need not be read back."""
        self._recent_epoch = -1
        self._recent_bytes = 0

    def put_draft(self, batch: WriteBatch, index: int, header: Header, columns: bytes) -> None:
        """Add an example."""
        key = example_key(header.address, self._num_slots)
        entry = OutboxEntry(index, True, key, pack(header, columns), [], header.number, header.newest_record_ms)
        self.put_example(batch, entry, header.writer_epoch)

    def put_example(self, batch: WriteBatch, entry: OutboxEntry, writer_epoch: int) -> None:
        """Add an example that was written under this epoch."""
        assert entry.value is not None
        batch.put(_key(entry.index), _EXAMPLE + entry.value)
        if writer_epoch != self._recent_epoch or self._recent_bytes > MAX_RECENT_BYTES:
            self.forget()
            self._recent_epoch = writer_epoch
        self._recent[entry.index] = entry
        self._recent_bytes += len(entry.value) + RECENT_OVERHEAD_BYTES

    def put_tombstone(self, batch: WriteBatch, index: int, key: bytes, record_ms: int) -> None:
        """Add the tombstone of an example's key."""
        batch.put(_key(index), _TOMBSTONE + record_ms.to_bytes(8, "big", signed=True) + key)

    def put_dead_letters(self, batch: WriteBatch, index: int, letters: Iterable[bytes]) -> int:
        """Add each `stored_dead_letter` from ``index`` on; returns the next index."""
        for stored in letters:
            batch.put(_key(index), stored)
            index += 1
        return index

    def forget(self) -> None:
        """Drop the entries in memory; from now on, they are read from the database."""
        self._recent.clear()
        self._recent_bytes = 0

    def delete(self, batch: WriteBatch, indices: range) -> None:
        """Delete entries that the broker has acknowledged."""
        for index in indices:
            batch.delete(_key(index))
            entry = self._recent.pop(index, None)
            if entry is not None:
                self._recent_bytes -= len(entry.value or b"") + RECENT_OVERHEAD_BYTES

    def read(self, indices: range, writer_epoch: int) -> list[OutboxEntry]:
        """These entries, up to the first example that directly follows a dead letter."""
        if writer_epoch != self._recent_epoch:
            self.forget()
        recent = self._recent
        unread = [index for index in indices if index not in recent]
        found = dict(zip(unread, self._db.get_many([_key(index) for index in unread]), strict=True)) if unread else {}
        entries: list[OutboxEntry] = []
        for index in indices:
            entry = recent.get(index) or self._entry(index, found[index], writer_epoch)
            if entry.is_example and entries and not entries[-1].is_example:
                break
            entries.append(entry)
        return entries

    def newest_number(self, indices: range, writer_epoch: int) -> int:
        """The number of the last example among these entries; -1 if there is none."""
        for index in reversed(indices):
            entry = self._recent.get(index) or self._entry(index, self._db.get(_key(index)), writer_epoch)
            if entry.number >= 0:
                return entry.number
        return -1

    def index_upto(self, number: int, indices: range, writer_epoch: int) -> int:
        """The index of the last example among these entries whose number is at most ``number``; -1 if there is none."""
        found = -1
        for index in indices:
            entry = self._recent.get(index) or self._entry(index, self._db.get(_key(index)), writer_epoch)
            if entry.number > number:
                break
            found = index if entry.number >= 0 else found
        return found

    def _entry(self, index: int, stored: bytes | None, writer_epoch: int) -> OutboxEntry:
        try:
            if stored is not None:
                return entry_of(index, stored, writer_epoch, self._num_slots)
        except (CodecError, msgspec.DecodeError) as error:
            raise corrupt(self._db.path, f"outbox entry {index}", str(error)) from error
        raise corrupt(self._db.path, f"outbox entry {index}", "nothing")


def _key(index: int) -> bytes:
    return b"x" + index.to_bytes(8, "big")
