"""One user in memory: the last sealed interactions as columns, what is open, and how both go to and from bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from wire.example import Example


class Open(msgspec.Struct, array_like=True):
    """An interaction that actions may still join. ``timestamp_ms`` is its first action's, clamped where that was late;
    ``record_ms`` the newest Kafka timestamp among its actions."""

    item_hash: int
    bits: int
    timestamp_ms: int
    domain_hash: int
    value: float
    feature_hash: Sequence[int]
    first_offset: int
    record_ms: int


class UserRecord(msgspec.Struct, array_like=True):
    """What the store keeps of a user beside his segments. Field order is the layout (MessagePack array)."""

    start: int
    num_sealed: int
    num_new: int
    user_offset: int
    new_record_ms: int
    recent_ids: bytes
    user_features: bytes
    opens: list[Open]
    names: dict[int, str | int]


_record_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(UserRecord)


class User:
    """Sealed interactions ``start`` … ``num_sealed - 1`` of a lifetime, the last ``num_new`` of them not sent yet."""

    __slots__ = (
        "bits", "domains", "features", "is_held", "items", "name", "names", "new_record_ms", "num_features", "num_new",
        "num_sealed", "opens", "recent", "saved_start", "saved_upto", "skip_upto", "start", "times", "user_features",
        "user_offset", "values",
    )  # fmt: skip

    def __init__(self, name: str, num_features: int, num_user_features: int) -> None:
        self.name = name
        self.num_features = num_features
        self.items = array("q")
        self.times = array("q")
        self.domains = array("q")
        self.features = array("q")
        self.bits = array("I")
        self.values = array("f")
        self.start = 0
        self.num_sealed = 0
        self.num_new = 0
        self.new_record_ms = -1
        self.opens: dict[int, Open] = {}
        self.recent: dict[int, None] = {}
        self.user_features = array("q", bytes(8 * num_user_features))
        self.names: dict[int, str | int] = {}
        """Of items that the partition had not named when this user met them, since his last example."""
        self.user_offset = -1
        self.skip_upto = -1
        """Actions up to here were in the state that was loaded. Above it nothing can come twice."""
        self.saved_start = 0
        self.saved_upto = 0
        self.is_held = False
        """Whether the store's index of open interactions lists the user."""

    def append(
        self,
        item: int,
        bits: int,
        timestamp_ms: int,
        domain: int,
        value: float,
        features: Iterable[int],
        record_ms: int,
    ) -> None:
        """A sealed interaction, new."""
        self.items.append(item)
        self.times.append(timestamp_ms)
        self.domains.append(domain)
        self.bits.append(bits)
        self.values.append(value)
        if self.num_features:
            self.features.extend(features)
        self.num_sealed += 1
        self.num_new += 1
        if record_ms > self.new_record_ms:
            self.new_record_ms = record_ms

    def seal(self, opened: Open) -> None:
        """Move one open interaction behind the sealed ones."""
        del self.opens[opened.item_hash]
        self.append(
            opened.item_hash, opened.bits, opened.timestamp_ms, opened.domain_hash, opened.value, opened.feature_hash,
            opened.record_ms,
        )  # fmt: skip

    def columns(self, first: int, last: int) -> list[bytes]:
        """Columns of interactions ``first`` … ``last - 1`` (lifetime indices), in the codec's order."""
        a, b, width = first - self.start, last - self.start, self.num_features
        return [
            self.items[a:b].tobytes(),
            self.times[a:b].tobytes(),
            self.domains[a:b].tobytes(),
            self.features[a * width : b * width].tobytes(),
            self.bits[a:b].tobytes(),
            self.values[a:b].tobytes(),
        ]

    def extend(self, columns: bytes, length: int) -> None:
        """Append stored interactions: the inverse of `columns`. They count as sent; ``num_sealed`` is the caller's."""
        wide, at = 8 * length, 8 * length * (3 + self.num_features)
        self.items.frombytes(columns[:wide])
        self.times.frombytes(columns[wide : 2 * wide])
        self.domains.frombytes(columns[2 * wide : 3 * wide])
        self.features.frombytes(columns[3 * wide : at])
        self.bits.frombytes(columns[at : at + 4 * length])
        self.values.frombytes(columns[at + 4 * length : at + wide])

    def trim(self, max_context: int, segment_len: int) -> None:
        """Forget whole segments that no example needs any more."""
        keep_from = max(0, self.num_sealed - self.num_new - max_context) // segment_len * segment_len
        excess = keep_from - self.start
        if excess > 0:
            for column in (self.items, self.times, self.domains, self.bits, self.values):
                del column[:excess]
            del self.features[: excess * self.num_features]
            self.start = keep_from

    def open_columns(self, num_unsent: int) -> list[bytes]:
        """The codec's columns of open interactions: the last ``num_unsent`` sealed ones first, then what is open."""
        opens = list(self.opens.values())
        if not opens and not num_unsent:
            return []
        columns = [
            array("q", [o.item_hash for o in opens]).tobytes(),
            array("q", [o.timestamp_ms for o in opens]).tobytes(),
            array("q", [o.domain_hash for o in opens]).tobytes(),
            array("q", [feature for o in opens for feature in o.feature_hash]).tobytes(),
            array("I", [o.bits for o in opens]).tobytes(),
            array("f", [o.value for o in opens]).tobytes(),
        ]
        if num_unsent:
            unsent = self.columns(self.num_sealed - num_unsent, self.num_sealed)
            columns = [sent + column for sent, column in zip(unsent, columns, strict=True)]
        columns.append(array("q", [self.user_offset] * num_unsent + [o.first_offset for o in opens]).tobytes())
        columns.append(array("q", [self.new_record_ms] * num_unsent + [o.record_ms for o in opens]).tobytes())
        return columns

    def encode(self) -> bytes:
        """The `UserRecord`, for the store."""
        recent_ids = array("q", self.recent).tobytes() if self.recent else b""
        record = UserRecord(
            self.start, self.num_sealed, self.num_new, self.user_offset, self.new_record_ms, recent_ids,
            self.user_features.tobytes(), list(self.opens.values()), self.names,
        )  # fmt: skip
        return _record_encoder.encode(record)

    @classmethod
    def decode(cls, name: str, record: bytes, num_features: int) -> User:
        """A user without his segments (`extend` adds them). Raises msgspec.DecodeError."""
        stored = _record_decoder.decode(record)
        user = cls(name, num_features, 0)
        user.start, user.num_sealed, user.num_new = stored.start, stored.num_sealed, stored.num_new
        user.user_offset = user.skip_upto = stored.user_offset
        user.new_record_ms = stored.new_record_ms
        user.recent = dict.fromkeys(memoryview(stored.recent_ids).cast("q"))
        user.user_features = array("q", stored.user_features)
        user.opens = {opened.item_hash: opened for opened in stored.opens}
        user.names = stored.names
        user.saved_start, user.saved_upto = stored.start, stored.num_sealed
        return user

    @classmethod
    def from_example(cls, example: Example) -> User:
        """The user as of this example: `state.store` says why that is enough."""
        rows, opened, num_unsent = example.interactions, example.open_interactions, example.num_unsent
        user = cls(example.user, rows.feature_hash.shape[1], 0)
        for source, length in ((rows, len(rows)), (opened, num_unsent)):
            user.items.frombytes(source.item_hash[:length].tobytes())
            user.times.frombytes(source.timestamp_ms[:length].tobytes())
            user.domains.frombytes(source.domain_hash[:length].tobytes())
            user.features.frombytes(np.ascontiguousarray(source.feature_hash[:length]).tobytes())
            user.bits.frombytes(source.action_bits[:length].tobytes())
            user.values.frombytes(source.value[:length].tobytes())
        user.num_sealed = example.first_new_index + example.num_new + num_unsent
        user.start = user.num_sealed - len(user.items)
        user.num_new = num_unsent
        user.new_record_ms = example.newest_record_ms if num_unsent else -1
        for row in range(num_unsent, len(opened)):
            user.opens[int(opened.item_hash[row])] = Open(
                int(opened.item_hash[row]), int(opened.action_bits[row]), int(opened.timestamp_ms[row]),
                int(opened.domain_hash[row]), float(opened.value[row]), opened.feature_hash[row].tolist(),
                int(example.open_first_offsets[row]), int(example.open_record_ms[row]),
            )  # fmt: skip
        user.recent = dict.fromkeys(example.recent_ids.tolist())
        user.user_features = array("q", example.user_feature_hash.astype(np.int64).tobytes())
        user.user_offset = user.skip_upto = example.user_offset
        return user
