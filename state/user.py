"""One user in memory: the growing segment, the older ones in stored form, and the run of actions not yet emitted."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable

from state.segment import Segment, holds
from state.segment_codec import describe, ids_of, may_hold, pack, unpack
from wire.example import NUM_OPEN, Example

_HEAD = struct.Struct("<qqiqHB")
_PIECES = struct.Struct("<qH")


def last_offset(stored: bytes) -> int:
    """`User.offset` of a stored user. Raises struct.error."""
    return int(_HEAD.unpack_from(stored)[1])


class User:
    """Segments ``first_segment`` to ``tail.index`` of a lifetime.

    A *run* is what the current batch did to one segment and no example holds yet: of segment ``run`` it touched the
    interactions from ``run_first`` to before ``run_end``; those from ``run_start`` on are new, the others got
    ``feedback``.

    *Pieces* are the examples of parts of a segment since one held all of it: place of each piece that holds more than
    one interaction → how many. A later piece at that place must hold them too, because it replaces the earlier one in
    the compacted topic. Only the last `NUM_OPEN` segments are written in pieces.
    """

    __slots__ = (
        "dirty", "feedback", "first_segment", "index", "is_whole", "name", "names", "offset", "old_ids", "older",
        "pieces", "run", "run_changed", "run_end", "run_first", "run_record_ms", "run_start", "skip_index",
        "skip_offset", "tail", "user_features",
    )  # fmt: skip

    def __init__(self, name: str, tail: Segment, user_features: array[int]) -> None:
        self.name = name
        self.tail = tail
        self.first_segment = tail.index
        self.older: dict[int, bytes] = {}
        """Segment → its stored form, for those before the tail."""
        self.is_whole = True
        """Whether ``older`` is loaded."""
        self.old_ids: bytes | None = b""
        """The ids of ``older``; None until they are needed."""
        self.dirty: set[int] = set()
        """Segments before the tail that have changed since the owner last wrote them."""
        self.user_features = user_features
        self.offset = self.index = -1
        """The last action that changed anything: its offset, and its place in that record."""
        self.skip_offset = self.skip_index = -1
        """Actions up to here are in what was loaded; after that, none can come twice."""
        self.run = -1
        self.run_start = self.run_first = self.run_end = 0
        self.run_changed = False
        self.run_record_ms = -1
        self.feedback: dict[int, int] = {}
        self.pieces: dict[int, dict[int, int]] = {}
        """Segment → its pieces, unless the newest example of the segment holds all of it."""
        self.names: dict[int, str | int] = {}
        """Items met since the user's last example whose names the partition had not sent then."""

    def knows(self, id_hash: bytes) -> bool:
        """Whether an action with this id is in a kept segment."""
        if self.old_ids is None:
            self.old_ids = b"".join(map(ids_of, self.older.values()))
        ids, old_ids = self.tail.ids, self.old_ids
        return (id_hash in ids and holds(ids, id_hash)) or (id_hash in old_ids and holds(old_ids, id_hash))

    def find_older(
        self, item: bytes, timestamp_ms: int, window_ms: int, session_hash: int
    ) -> tuple[Segment, int] | None:
        """The newest interaction before the tail that an action joins (`Segment.find`). Requires ``is_whole``."""
        for index in range(self.tail.index - 1, self.first_segment - 1, -1):
            stored = self.older[index]
            if may_hold(stored, item):
                segment = self.opened(index)
                place = segment.find(item, timestamp_ms, window_ms, session_hash)
                if place >= 0:
                    return segment, place
            if describe(stored)[0] < timestamp_ms - window_ms:
                return None
        return None

    def opened(self, index: int) -> Segment:
        """A segment as columns. Changes to an older one take effect with `close_older`."""
        if index == self.tail.index:
            return self.tail
        return unpack(index, self.older[index], self.tail.num_features)

    def close_older(self, segment: Segment) -> None:
        """Put back a changed segment before the tail."""
        self.older[segment.index] = pack(segment)
        self.old_ids = None
        self.dirty.add(segment.index)

    def stored(self, index: int) -> bytes:
        """The stored form of a segment."""
        return pack(self.tail) if index == self.tail.index else self.older[index]

    def roll(self, num_slots: int) -> None:
        """Begin the next segment; forget the oldest if there are too many."""
        full = self.tail
        self.older[full.index] = pack(full)
        self.old_ids = None
        self.dirty.add(full.index)
        self.tail = Segment(full.index + 1, full.num_features)
        self.keep(num_slots)

    def keep(self, num_slots: int) -> None:
        """Forget all but the last ``num_slots`` segments."""
        first = max(self.first_segment, self.tail.index - num_slots + 1)
        for index in range(self.first_segment, first):
            self.older.pop(index, None)
            self.dirty.discard(index)
            self.pieces.pop(index, None)
        self.first_segment = first

    def cover(self, index: int, first: int, end: int, length: int) -> tuple[int, int]:
        """The places, first and end, that an example of the places ``first`` to ``end - 1`` of a segment must hold.
        ``length``: that of a full segment."""
        if index <= self.tail.index - NUM_OPEN:
            return 0, length
        pieces = self.pieces.get(index)
        if pieces is None:
            pieces = self.pieces[index] = {}
        num = max(end - first, pieces.get(first, 1))
        if num == length:
            del self.pieces[index]
        elif num > 1:
            pieces[first] = num
        return first, first + num

    def replace_features(self, given: Iterable[int]) -> bool:
        """Adopt an action's user features. Returns whether any has changed."""
        changed, features = False, self.user_features
        for column, feature_hash in enumerate(given):
            if feature_hash and features[column] != feature_hash:
                features[column] = feature_hash
                changed = True
        return changed

    def adopt(self, example: Example, num_slots: int) -> None:
        """Put what was read from Kafka in place. If it is part of an older segment, ``older`` must hold the rest."""
        index, tail, num = example.segment, self.tail, len(example.rows)
        if index < tail.index:
            segment = self.opened(index) if index in self.older else Segment(index, tail.num_features)
            segment.put(example)
            self.close_older(segment)
        else:
            if index > tail.index:
                if len(tail):
                    self.close_older(tail)
                self.tail = Segment(index, tail.num_features)
            self.tail.put(example)
        if num == example.segment_len:
            self.pieces.pop(index, None)
        elif index > self.tail.index - NUM_OPEN:
            pieces = self.pieces.setdefault(index, {})
            if num > 1:
                pieces[example.first] = num
        self.first_segment = min(self.first_segment, index)
        for old in [old for old in self.pieces if old <= self.tail.index - NUM_OPEN]:
            del self.pieces[old]
        self.keep(num_slots)

    def encode(self) -> bytes:
        """What the store keeps under the user's name: everything but the older segments."""
        head = _HEAD.pack(
            self.tail.index, self.offset, self.index, self.first_segment, len(self.user_features), len(self.pieces)
        )
        parts = [head]
        for index, pieces in self.pieces.items():
            parts += [_PIECES.pack(index, len(pieces)), array("H", [*pieces, *pieces.values()]).tobytes()]
        return b"".join((*parts, self.user_features, pack(self.tail)))

    @classmethod
    def decode(cls, name: str, stored: bytes, num_features: int) -> User:
        """A user whose older segments are not loaded. Raises ValueError or struct.error."""
        index, offset, last_index, first_segment, num_user_features, num_pieces = _HEAD.unpack_from(stored)
        at, pieces = _HEAD.size, {}
        for _ in range(num_pieces):
            segment, num = _PIECES.unpack_from(stored, at)
            start = at + _PIECES.size
            at = start + 4 * num
            places = array("H", stored[start:at])
            pieces[segment] = dict(zip(places[:num], places[num:], strict=True))
        start, at = at, at + 8 * num_user_features
        tail = unpack(index, stored[at:], num_features)
        user = cls(name, tail, array("q", stored[start:at]))
        user.pieces = pieces
        user.first_segment = first_segment
        user.is_whole = first_segment == index
        user.old_ids = b"" if user.is_whole else None
        user.offset = user.skip_offset = offset
        user.index = user.skip_index = last_index
        return user
