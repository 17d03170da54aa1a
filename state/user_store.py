"""Users on disk, each with the growing segment; older segments under keys of their own; and requests to forget items.

Keys (integers in keys are big-endian):

    u <user>             `state.user.User.encode`: the user's offsets, features and last segment
    s <user> <slot:4>    an older segment, slot = segment % num_slots (`state.segment`); written when it is full and
                         again when an action joins it, until the segment ``num_slots`` later takes its place
    r <item hash:8>      the last request about the item, as JSON (`wire.action_json.ForgetRequest`)
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import msgspec
from rocksdict import WriteBatch

from state.database import Database
from state.errors import StoreMismatch
from state.meta import corrupt
from state.name_store import NameStore
from state.segment import Segment
from state.segment_codec import is_segment, unpack
from state.user import User, last_offset
from wire.action_json import ForgetRequest
from wire.config import ActionConfig, SequenceConfig
from wire.example import Example, num_features_of

USERS = b"u"
"""Start of the keys of users."""
_forget_decoder = msgspec.json.Decoder(ForgetRequest)


class UserStore:
    """The users of one partition. Changes go into the caller's write batch."""

    def __init__(self, db: Database, partition: int, action: ActionConfig, sequence: SequenceConfig) -> None:
        self._db, self.names = db, NameStore(db)
        self._num_features = action.num_columns
        self._expected = (partition, sequence.segment_len, self._num_features, len(action.user_features))
        self._num_slots = sequence.num_slots

    def load(self, name: str) -> User | None:
        """A user without the older segments (see `complete`); None if unknown. Raises `StoreCorrupt`."""
        stored = self._db.get(USERS + name.encode())
        if stored is None:
            return None
        try:
            return User.decode(name, stored, self._num_features)
        except (ValueError, KeyError, struct.error) as error:
            raise corrupt(self._db.path, f"user {name!r}", str(error)) from error

    def complete(self, user: User) -> None:
        """Load the missing ones of a user's older segments. Raises `StoreCorrupt`."""
        key = user.name.encode()
        missing = [index for index in range(user.first_segment, user.tail.index) if index not in user.older]
        found = self._db.get_many([self._key(key, index) for index in missing]) if missing else []
        for index, stored in zip(missing, found, strict=True):
            try:
                unpack(index, stored or b"", self._num_features)
            except (ValueError, KeyError, struct.error) as error:
                raise corrupt(self._db.path, f"segment {index} of user {user.name!r}", str(error)) from error
            assert stored is not None
            user.older[index] = stored
        user.older = dict(sorted(user.older.items()))
        user.is_whole, user.old_ids = True, None

    def stored(self, names: Sequence[str]) -> list[tuple[str, bytes]]:
        """The users among these who exist, as `User.encode` made them."""
        found = self._db.get_many([USERS + name.encode() for name in names]) if names else []
        return [(name, stored) for name, stored in zip(names, found, strict=True) if stored is not None]

    def older(self, wanted: Sequence[tuple[str, range]]) -> Iterator[tuple[str, list[bytes]]]:
        """These segments of users, as stored; empty for a missing one."""
        keys = [self._key(name.encode(), index) for name, indices in wanted for index in indices]
        found = iter(self._db.get_many(keys) if keys else [])
        for name, indices in wanted:
            yield name, [stored or b"" for stored in itertools.islice(found, len(indices))]

    def check(self, name: str) -> NoReturn:
        """Raise `StoreCorrupt` for a user whose bytes are damaged."""
        user = self.load(name)
        if user is not None:
            self.complete(user)
        raise corrupt(self._db.path, f"user {name!r}", "bytes that C++ refuses")

    def everyone(self) -> Iterator[User]:
        """Every user, complete, in the order of their keys. Raises `StoreCorrupt`."""
        for key, _ in self._db.under(USERS):
            user = self.load(key[1:].decode())
            assert user is not None
            self.complete(user)
            yield user

    def forget_requests(self) -> Iterator[ForgetRequest]:
        """The last request about each item, sorted by the bytes of its hash."""
        for _, stored in self._db.under(b"r"):
            yield _forget_decoder.decode(stored)

    def save(self, batch: WriteBatch, user: User) -> None:
        """Write what has changed of a user."""
        key = user.name.encode()
        batch.put(USERS + key, user.encode())
        if user.dirty:
            for index in user.dirty:
                batch.put(self._key(key, index), user.older[index])
            user.dirty.clear()

    def adopt(self, user: User | None, example: Example) -> User:
        """The user (None: not seen yet) with an example's content put in place. Raises `StoreMismatch`."""
        self._check_shape(example)
        if user is None:
            user = User(example.user, Segment(example.segment, self._num_features), array("q"))
        self._load_open(user, example)
        user.adopt(example, self._num_slots)
        user.user_features = array("q", example.user_feature_hash.tobytes())
        user.offset, user.index = example.user_offset, example.user_index
        return user

    def _load_open(self, user: User, example: Example) -> None:
        """If an example holds part of a segment before the tail, load what has arrived of that segment so far."""
        index = example.segment
        if index < user.tail.index and index not in user.older and len(example.rows) < example.segment_len:
            stored = self._db.get(self._key(user.name.encode(), index))
            if is_segment(stored, index):
                assert stored is not None
                user.older[index] = stored

    def erase(self, batch: WriteBatch, user: User) -> None:
        """Remove everything about a user."""
        key = user.name.encode()
        batch.delete(USERS + key)
        for slot in range(min(user.tail.index, self._num_slots)):
            batch.delete(self._key(key, slot))

    def quiet(self, start: bytes, num: int, before: int) -> tuple[list[str], bytes]:
        """Of ``num`` users from the place ``start`` on, those whose last action is at an offset below ``before``; and
        the place after them. Empty places: before the first and after the last user. Raises `StoreCorrupt`."""
        found = list(itertools.islice(self._db.under(USERS, start or None), num))
        try:
            names = [key[1:].decode() for key, stored in found if last_offset(stored) < before]
        except struct.error as error:
            raise corrupt(self._db.path, "a user", str(error)) from error
        return names, found[-1][0] + b"\x00" if len(found) == num else b""

    def save_forget_requests(self, batch: WriteBatch, requests: Mapping[int, ForgetRequest]) -> None:
        """Write the last request about each of these items."""
        for item, request in requests.items():
            batch.put(_forget_key(item), msgspec.json.encode(request))

    def forget_request(self, item: int) -> ForgetRequest | None:
        """The last request about an item; None if there is none."""
        stored = self._db.get(_forget_key(item))
        return None if stored is None else _forget_decoder.decode(stored)

    def _check_shape(self, example: Example) -> None:
        num_features = num_features_of(example.rows)
        got = (example.partition, example.segment_len, num_features, len(example.user_feature_hash))
        if got != self._expected:
            raise StoreMismatch(
                f"example of {example.user[:40]!r}: expected (partition, segment_len, features, user features) "
                f"{self._expected}, got {got}; keep the configuration that the topic was written under, or use a new "
                "kafka.prefix"
            )

    def _key(self, user_key: bytes, index: int) -> bytes:
        return b"s%b%b" % (user_key, (index % self._num_slots).to_bytes(4, "big"))


def _forget_key(item_hash: int) -> bytes:
    return b"r" + item_hash.to_bytes(8, "big", signed=True)
