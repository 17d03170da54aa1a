"""From users' changes to numbered examples: runs of actions, cut into records.

Batches only decide how a user's changes are written: the user's actions of a batch are divided into runs that touched
one segment, and each run that changed anything becomes one example (`state.user` says what it holds). When a segment
begins, the one two before it is written whole.
"""

from __future__ import annotations

from array import array
from typing import Protocol

from state.names import Names
from state.segment import Segment
from state.segment_codec import COLUMNS_START, cut, describe
from state.user import User
from wire.action_json import ForgetRequest
from wire.config import ActionConfig, SequenceConfig
from wire.example import NUM_OPEN, PIECE, ZERO_COUNTS, Mark
from wire.example_codec import LONG_TIMES, MAX_NAMES_BYTES, Header
from wire.moment import MAX_TIMESTAMP_MS

Draft = tuple[Header, bytes]
"""A numbered example before its bytes: `pack` makes the record, `view` the `Example` (`wire.example_codec`)."""


class Users(Protocol):
    """Where the users are that are not in memory (`state.user_store.UserStore`)."""

    def load(self, name: str) -> User | None:
        """A user; None if unknown. The caller owns what it returns."""

    def complete(self, user: User) -> None:
        """Load the user's older segments."""

    def forget_request(self, item: int) -> ForgetRequest | None:
        """The last request about an item, by its hash; None if there is none."""


class Emitter:
    """The examples of one partition, in the order of their numbers. `drain` returns those since the last call."""

    def __init__(
        self, action: ActionConfig, sequence: SequenceConfig, partition: int, stored: Users | None, names: Names
    ) -> None:
        self.next_number = 0
        self.changed: dict[str, User] = {}
        """Users that have changed since the owner last emptied this."""
        self.names = names
        self._stored = stored
        self._partition = partition
        self._num_features = action.num_columns
        self._num_user_features = len(action.user_features)
        self._segment_len = sequence.segment_len
        self._num_slots = sequence.num_slots
        self._index_code = "B" if sequence.segment_len <= 256 else "H"
        self._running: dict[str, User] = {}
        self._drafts: list[Draft] = []

    def begin_run(self, user: User, segment: Segment) -> None:
        """The user's actions go on in another segment."""
        self.end_run(user)
        user.run = segment.index
        user.run_start = user.run_first = len(segment)
        user.run_end = 0
        self._running[user.name] = user

    def end_run(self, user: User) -> None:
        """End the user's run; if it has changed anything, with an example."""
        if user.run_changed:
            num_new = len(user.tail) - user.run_start if user.run == user.tail.index else 0
            first, end = user.cover(user.run, user.run_first, user.run_end, self._segment_len)
            names = self._take_names(user)
            self._emit(user, user.run, first, end, num_new, user.run_record_ms, names)
            self.changed[user.name] = user
            user.feedback.clear()
            user.names.clear()
            user.run_changed, user.run_record_ms = False, -1
        user.run = -1

    def seal(self, user: User, record_ms: int) -> None:
        """Before the user's next segment begins, write the one whole that is then no longer among the last ones."""
        index = user.tail.index + 1 - NUM_OPEN
        if user.pieces.pop(index, None) is not None and index > user.tail.index + 1 - self._num_slots:
            self.complete(user)
            self._emit(user, index, 0, self._segment_len, 0, record_ms, {})

    def refresh(self, user: User, segment: int, first: int, record_ms: int) -> bool:
        """Write again what now belongs under the key of an address (`wire.example.Address`); False if nothing does.

        The key is what counts: by now it may belong to a later segment of the user.
        """
        last = user.tail.index
        if segment == PIECE:
            half, first = divmod(first, self._segment_len)
            index = last - (last - half) % NUM_OPEN
            if index not in user.pieces or (index == last and first >= len(user.tail)):
                return False
        else:
            index = last - (last - segment) % self._num_slots
            is_growing = index == last and len(user.tail) < self._segment_len
            if is_growing or not user.first_segment <= index <= last:
                return False
        self.complete(user)
        end = first + user.pieces[index].get(first, 1) if segment == PIECE else self._segment_len
        self._emit(user, index, first, end, 0, record_ms, {})
        return True

    def drain(self) -> list[Draft]:
        """End every run, and return the drafts since the last call."""
        for user in self._running.values():
            self.end_run(user)
        self._running.clear()
        drafts, self._drafts = self._drafts, []
        return drafts

    def complete(self, user: User) -> None:
        """Load the user's older segments if they are not."""
        if not user.is_whole:
            assert self._stored is not None
            self._stored.complete(user)

    def draft(
        self, user: User, index: int, first: int, end: int, num_new: int, record_ms: int, names: dict[int, str | int]
    ) -> Draft:
        """An example of places ``first`` to ``end - 1`` of segment ``index``, with the next number but not counted.

        Fields that are known only at the end of a batch are left open: `Sequencer.drain_drafts` fills them in.
        """
        if end - first == self._segment_len:
            stored = user.stored(index)
            first_ms, num, num_ids, flags, bits_width, _ = describe(stored)
            rows = stored[COLUMNS_START:]
        else:
            first_ms, num, num_ids, flags, bits_width, rows = cut(user.opened(index), first, end)
        feedback = user.feedback
        header = Header(
            self._partition, 0, self._segment_len, self._num_features, self._num_user_features, -1, 0, -1, ZERO_COUNTS,
            -1, _within(record_ms), 0 if flags & LONG_TIMES else first_ms, user.offset, user.index, self.next_number,
            index, first, num, num_new, len(feedback), num_ids, flags, bits_width, user.name, names,
        )  # fmt: skip
        columns = [rows, user.user_features.tobytes()]
        if feedback:
            places = sorted(feedback)
            columns.append(array(self._index_code, [place - first for place in places]).tobytes())
            columns.append(array("I", [feedback[place] for place in places]).tobytes())
        return header, b"".join(columns)

    @property
    def is_running(self) -> bool:
        """Whether anything has changed since `drain`."""
        return bool(self._running)

    def mark(self, mark: Mark, user: str, offset: int, record_ms: int, names: dict[int, str | int]) -> None:
        """Emit a mark, an example without interactions. ``offset``: that of the request to forget."""
        header = Header(
            self._partition, 0, self._segment_len, self._num_features, self._num_user_features, -1, 0, -1, ZERO_COUNTS,
            -1, _within(record_ms), 0, offset, 0, self.next_number, 0, 0, 0, 0, 0, 0, mark, 1, user, names,
        )  # fmt: skip
        self._drafts.append((header, bytes(8 * self._num_user_features)))
        self.next_number += 1

    def _emit(
        self, user: User, index: int, first: int, end: int, num_new: int, record_ms: int, names: dict[int, str | int]
    ) -> None:
        self._drafts.append(self.draft(user, index, first, end, num_new, record_ms, names))
        self.next_number += 1

    def _take_names(self, user: User) -> dict[int, str | int]:
        """The names that the user's next example carries, as many as fit."""
        names: dict[int, str | int] = {}
        num_bytes = 0
        for item, name in user.names.items():
            if item not in self.names:
                num_bytes += 16 + (4 * len(name) if isinstance(name, str) else 8)
                if num_bytes > MAX_NAMES_BYTES:
                    break
                names[item] = name
                self.names.add(item)
        return names


def _within(record_ms: int) -> int:
    """A record's own time if there is such a time, else the nearest: a record that is no action may state any."""
    return min(max(record_ms, -1), MAX_TIMESTAMP_MS)
