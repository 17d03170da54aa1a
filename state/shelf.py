"""Users on disk: records, segments of columns, the index of who holds open interactions, names of items.

Keys (integers in keys are big-endian):

    u <user>                `state.user.UserRecord`
    s <user> <segment:4>    columns of the interactions [segment·segment_len, (segment+1)·segment_len) of a lifetime;
                            only the tail is rewritten, those that no example needs any more are deleted
    o <user>                of a user with open interactions: due_ms, first uncovered offset or -1, clock before it
    n <item hash:8>         the item has been named in an example
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec
from rocksdict import WriteBatch

from state.database import Database
from state.errors import StoreMismatch
from state.meta import corrupt
from state.user import User
from wire.config import ActionConfig, SequenceConfig
from wire.example import Example

_HELD = struct.Struct("<qqq")


class Shelf:
    """The users of one partition. Changes go into the caller's write batch."""

    def __init__(self, db: Database, partition: int, action: ActionConfig, sequence: SequenceConfig) -> None:
        self._db = db
        self._partition = partition
        self._num_features = len(action.features)
        self._num_user_features = len(action.user_features)
        self._segment_len = sequence.segment_len
        self._join_window_ms = sequence.join_window_ms

    def load(self, name: str, *, is_held: bool) -> User | None:
        """A user with his segments; None where there is none. Raises `StoreCorrupt`."""
        key = name.encode()
        record = self._db.get(b"u" + key)
        if record is None:
            return None
        try:
            user = User.decode(name, record, self._num_features)
        except (msgspec.DecodeError, TypeError, ValueError) as error:
            raise corrupt(self._db.path, f"user {name!r}", str(error)) from error
        segments = self._segments(user.start, user.num_sealed)
        stored = self._db.get_many([_segment_key(key, segment) for segment in segments])
        for segment, columns in zip(segments, stored, strict=True):
            first, last = self._bounds(user, segment)
            if columns is None or len(columns) != (last - first) * (32 + 8 * self._num_features):
                what = f"segment {segment} of user {name!r}"
                raise corrupt(self._db.path, what, f"{len(columns or b'')} bytes")
            user.extend(columns, last - first)
        user.is_held = is_held
        return user

    def save(self, batch: WriteBatch, user: User, due_ms: int | None, uncovered: tuple[int, int] | None) -> None:
        """Put what has changed of a user: his record, the tail of his columns, his place in the index."""
        key = user.name.encode()
        self._save_columns(batch, user, key)
        batch.put(b"u" + key, user.encode())
        if due_ms is not None:
            batch.put(b"o" + key, _HELD.pack(due_ms, *(uncovered or (-1, 0))))
        elif user.is_held:
            batch.delete(b"o" + key)
        user.is_held = due_ms is not None

    def adopt(self, batch: WriteBatch, example: Example) -> None:
        """Put the user of an example in the place of whatever was there. Raises `StoreMismatch`."""
        self._check_shape(example)
        user, key = User.from_example(example), example.user.encode()
        older = self._db.get(b"u" + key)
        if older is not None:
            stale = User.decode(example.user, older, 0)
            for segment in self._segments(stale.start, stale.num_sealed):
                batch.delete(_segment_key(key, segment))
            user.is_held = True
        user.saved_start = user.saved_upto = user.start
        due_ms = min((opened.timestamp_ms for opened in user.opens.values()), default=None)
        self.save(batch, user, None if due_ms is None else due_ms + self._join_window_ms, None)
        self.save_names(batch, example.names)

    def held(self) -> list[tuple[str, int, tuple[int, int] | None]]:
        """Who holds open interactions: name, when the oldest is due, the first uncovered offset and the clock before
        it; in the order of these offsets. As much work as there are such users."""
        found = [(key[1:].decode(), *_HELD.unpack(value)) for key, value in self._db.under(b"o")]
        found.sort(key=lambda one: one[2])
        return [(name, due_ms, None if offset < 0 else (offset, clock)) for name, due_ms, offset, clock in found]

    def save_names(self, batch: WriteBatch, item_hashes: Iterable[int]) -> None:
        """These items have been named."""
        for item_hash in item_hashes:
            batch.put(_name_key(item_hash), b"")

    def is_named(self, item_hash: int) -> bool:
        """Whether the item has been named."""
        return self._db.get(_name_key(item_hash)) is not None

    def _check_shape(self, example: Example) -> None:
        got = (example.partition, example.interactions.feature_hash.shape[1], len(example.user_feature_hash))
        expected = (self._partition, self._num_features, self._num_user_features)
        if got != expected:
            raise StoreMismatch(
                f"example of {example.user[:40]!r}: expected (partition, features, user features) {expected}, "
                f"got {got}; keep the configuration that the topic was written under, or use a new kafka.prefix"
            )

    def _save_columns(self, batch: WriteBatch, user: User, key: bytes) -> None:
        for segment in self._segments(max(user.saved_upto, user.start), user.num_sealed):
            batch.put(_segment_key(key, segment), b"".join(user.columns(*self._bounds(user, segment))))
        kept_from = user.start // self._segment_len * self._segment_len
        for segment in self._segments(user.saved_start, min(user.saved_upto, kept_from)):
            batch.delete(_segment_key(key, segment))
        user.saved_start, user.saved_upto = user.start, user.num_sealed

    def _segments(self, first: int, last: int) -> range:
        """Segments that hold the interactions ``first`` … ``last - 1``."""
        length = self._segment_len
        return range(first // length, -(-last // length)) if last > first else range(0)

    def _bounds(self, user: User, segment: int) -> tuple[int, int]:
        """Lifetime indices that a segment holds of a user."""
        first = segment * self._segment_len
        return max(first, user.start), min(first + self._segment_len, user.num_sealed)


def _segment_key(user_key: bytes, segment: int) -> bytes:
    return b"s" + user_key + segment.to_bytes(4, "big")


def _name_key(item_hash: int) -> bytes:
    return b"n" + item_hash.to_bytes(8, "big", signed=True)
