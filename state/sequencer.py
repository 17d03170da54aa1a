"""The state machine of one partition: actions in, examples out. No database, no Kafka, no wall clock.

A user's sequence is his interactions in the order in which they began. The rules, in the order in which an action
meets them:

1.  An action whose id is in one of the user's kept segments is a duplicate, and nothing else happens.
2.  It joins the user's newest kept interaction on the same item, and in the same session if it names one, that began at
    most ``join_window_s`` before or after it: kinds are added; value, domain and features that it brings replace what
    was there; the time stays. With a window of 0 nothing joins.
3.  Otherwise it begins an interaction. Its time is clamped up to that of the user's last one; it is late if it needed
    that.

What they compute is a function of each user's actions in their order alone. Batches only decide how it is told: a
user's actions of a batch are cut into runs that touched one segment, and each run that changed anything is one example
(`state.user`: what it holds). Before a segment begins, the last one but one before it is told whole.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from enum import Enum
from typing import Protocol

from state.names import Names
from state.segment import COLUMNS_START, Segment, describe
from state.user import User
from wire.action import Action
from wire.action_json import Order
from wire.config import ActionConfig, SequenceConfig
from wire.example import MARK_ITEM, MARK_USER, NUM_OPEN, PIECE, ZERO_COUNTS, Address, Counts, Example, Mark
from wire.example_codec import LONG_TIMES, MAX_NAMES_BYTES, Header, view
from wire.hashing import item_hash

Draft = tuple[Header, bytes]
"""A numbered example before its bytes: `pack` makes the record, `view` the `Example` (`wire.example_codec`)."""


class Outcome(Enum):
    """What became of one action. Late ones are accepted too."""

    ACCEPTED = "accepted"
    LATE = "late"
    DUPLICATE = "duplicate"
    SKIPPED = "skipped"
    """What was loaded of the user held it already."""


class Users(Protocol):
    """Whoever keeps the users that are not in memory (`state.user_store.UserStore`)."""

    def load(self, name: str) -> User | None:
        """A user; None where there is none. What it returns is taken over."""

    def complete(self, user: User) -> None:
        """Load his older segments."""

    def order_of(self, item: int) -> Order | None:
        """The last order that came for an item, by its hash."""


class Sequencer:
    """Users, counts and example numbers of one partition.

    The owner may drop users from ``users`` between a `drain` and the next `apply` if ``stored`` keeps them.
    """

    def __init__(
        self,
        action: ActionConfig,
        sequence: SequenceConfig,
        partition: int = 0,
        *,
        stored: Users | None = None,
        names: Names | None = None,
    ) -> None:
        self.config = sequence
        self.partition = partition
        self.users: OrderedDict[str, User] = OrderedDict()
        self.changed: dict[str, User] = {}
        """Users that have changed since the owner last emptied this."""
        self.orders: dict[int, Order] = {}
        """Item → the last order for it; the owner may empty this if ``stored`` keeps them."""
        self.names = names if names is not None else Names()
        self._known_names = self.names.known
        self.num_accepted = self.num_duplicate = self.num_dead = self.num_late = 0
        self.resume()
        self._stored = stored
        self._num_features = len(action.features)
        self._num_user_features = len(action.user_features)
        self._segment_len = sequence.segment_len
        self._num_slots = sequence.num_slots
        self._deduplicate = sequence.deduplicate
        self._window_ms = sequence.join_window_ms
        self._index_code = "B" if sequence.segment_len <= 256 else "H"
        self._running: dict[str, User] = {}
        self._drafts: list[Draft] = []

    def resume(
        self,
        *,
        applied_offset: int = -1,
        applied_record_ms: int = -1,
        newest_event_ms: int = -1,
        counted_offset: int = -1,
        counts: Counts = ZERO_COUNTS,
        next_number: int = 0,
        writer_epoch: int = 0,
    ) -> None:
        """Go on from here. Actions up to ``counted_offset`` are in ``counts``, also if they are applied again."""
        self.applied_offset = applied_offset
        self.applied_record_ms = applied_record_ms
        self.newest_event_ms = newest_event_ms
        self.counted_offset = counted_offset
        self.counts = counts
        self.next_number = next_number
        self.writer_epoch = writer_epoch
        self._batch_start = applied_offset + 1

    # Records

    def advance(self, offset: int, record_ms: int) -> None:
        """A record begins. Offsets rise."""
        if offset <= self.applied_offset:
            raise ValueError(f"offset: expected above {self.applied_offset}, got {offset}; skip what was applied")
        self.applied_offset = offset
        self.applied_record_ms = record_ms

    def reject(self) -> None:
        """Count a dead letter of the present record."""
        self.num_dead += self.applied_offset > self.counted_offset

    def apply(self, action: Action, offset: int, record_ms: int, index: int = 0) -> Outcome:
        """Apply one action; those of one record share its ``offset``, ``index`` is its place there."""
        if offset != self.applied_offset:
            self.advance(offset, record_ms)
        if action.timestamp_ms > self.newest_event_ms:
            self.newest_event_ms = action.timestamp_ms
        user = self.users.get(action.user) or self._fetch(action.user)
        if offset <= user.skip_offset and (offset, index) <= (user.skip_offset, user.skip_index):
            return Outcome.SKIPPED
        is_counted = offset > self.counted_offset
        id_hash = b""
        if action.id_hash and self._deduplicate:
            id_hash = action.id_hash.to_bytes(8, "little", signed=True)
            if not user.is_whole:
                self._complete(user)
            if user.knows(id_hash):
                self.num_duplicate += is_counted
                return Outcome.DUPLICATE
        self.num_accepted += is_counted
        item = action.item_hash.to_bytes(8, "little", signed=True)
        found = self._find(user, action, item) if self._window_ms else None
        if found is None:
            is_late = self._begin(user, action, item)
            segment, changed = user.tail, True
            place = len(segment) - 1
            self.num_late += is_late and is_counted
        else:
            is_late = False
            segment, place = found
            changed = self._join(user, segment, place, action)
        if id_hash:
            segment.remember(place, id_hash)
            changed = True
        if self._num_user_features and any(action.user_feature_hash):
            changed |= user.replace_features(action.user_feature_hash)
        if changed:
            if action.item_hash not in self._known_names and action.item_hash not in self.names:
                user.names[action.item_hash] = action.item
            if segment is not user.tail:
                user.close_older(segment)
            user.offset, user.index, user.run_changed = offset, index, True
            if record_ms > user.run_record_ms:
                user.run_record_ms = record_ms
        return Outcome.LATE if is_late else Outcome.ACCEPTED

    def obey(self, order: Order, record_ms: int) -> bool:
        """Obey the order that the present record is. `drain` comes before the record: what was done until then is told,
        and learned. Whether a user was forgotten: then the owner removes what is stored of him, and of his examples."""
        assert not self._running, "drain first"
        self.num_accepted += self.applied_offset > self.counted_offset
        if not order.user:
            item = item_hash(order.item)
            self.orders[item] = order
            self._mark(Mark.ITEM_BACK if order.is_back else Mark.ITEM, "", record_ms, {item: order.item})
            return False
        is_known = self.knows(order.user)
        self.users.pop(order.user, None)
        self.changed.pop(order.user, None)
        if is_known:
            self._mark(Mark.USER, order.user, record_ms, {})
        self._mark(Mark.USER, "", record_ms, {})  # takes the place of the one that names him
        return is_known

    # Examples

    def drain(self) -> list[Example]:
        """End a batch: everything that has changed since the last one, as examples."""
        return [view(header, columns) for header, columns in self.drain_drafts()]

    def drain_drafts(self) -> list[Draft]:
        """`drain`, for whoever only wants the bytes."""
        for user in self._running.values():
            self._tell(user)
        self._running.clear()
        drafts, self._drafts = self._drafts, []
        counted_offset, counts = self.counted_upto, self.counts
        for header, _ in drafts:
            header.writer_epoch = self.writer_epoch
            header.applied_offset = self.applied_offset
            header.replay_from_offset = self._batch_start
            header.newest_event_ms = self.newest_event_ms
            header.counted_offset, header.counts = counted_offset, counts
        self._batch_start = self.applied_offset + 1
        if drafts:
            drafts[-1][0].replay_from_offset = self._batch_start
        if self._stored is None:
            self.changed.clear()
            self.names.fresh.clear()
        return drafts

    @property
    def counts(self) -> Counts:
        """Of all actions up to `counted_upto`."""
        return Counts(self.num_accepted, self.num_duplicate, self.num_dead, self.num_late)

    @counts.setter
    def counts(self, counts: Counts) -> None:
        self.num_accepted, self.num_duplicate, self.num_dead, self.num_late = counts

    @property
    def counted_upto(self) -> int:
        """After a restore the counts run ahead of the applied offset, until the replay has caught up."""
        return max(self.counted_offset, self.applied_offset)

    def refresh(self, address: Address) -> bool:
        """Let the next `drain` tell again what now lies under the key of this address; False where nothing does.

        The key is what counts: the record of a later segment lies there if the user has come that far.
        """
        name, segment, first = address
        if segment in (MARK_USER, MARK_ITEM):
            return self._mark_again(segment, first)
        user = self.users.get(name) or (self._stored.load(name) if self._stored else None)
        if user is None:
            return False
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
        if not user.is_whole:
            self._complete(user)
        self.users[name] = user
        end = first + user.pieces[index].get(first, 1) if segment == PIECE else self._segment_len
        self._tell_again(user, index, first, end)
        return True

    def knows(self, name: str) -> bool:
        """Whether there is such a user."""
        return name in self.users or (self._stored is not None and self._stored.load(name) is not None)

    def kept(self, user: User) -> list[Example]:
        """A user's segments as they are, oldest first, as examples that teach nothing and have no number."""
        if not user.is_whole:
            self._complete(user)
        examples = []
        for index in range(user.first_segment, user.tail.index + 1):
            end = len(user.tail) if index == user.tail.index else self._segment_len
            header, columns = self._draft(user, index, 0, end, 0, self.applied_record_ms, {})
            header.number = -1
            examples.append(view(header, columns))
        return examples

    # Inside

    def _fetch(self, name: str) -> User:
        user = self._stored.load(name) if self._stored is not None else None
        if user is None:
            features = array("q", bytes(8 * self._num_user_features))
            user = User(name, Segment(0, self._num_features), features)
        self.users[name] = user
        return user

    def _complete(self, user: User) -> None:
        assert self._stored is not None
        self._stored.complete(user)

    def _find(self, user: User, action: Action, item: bytes) -> tuple[Segment, int] | None:
        tail, timestamp_ms = user.tail, action.timestamp_ms
        if item in tail.items:
            place = tail.find(item, timestamp_ms, self._window_ms, action.session_hash)
            if place >= 0:
                return tail, place
        if tail.index == user.first_segment or tail.times[0] < timestamp_ms - self._window_ms:
            return None  # nothing before the tail is as young as that
        if not user.is_whole:
            self._complete(user)
        return user.find_older(item, timestamp_ms, self._window_ms, action.session_hash)

    def _begin(self, user: User, action: Action, item: bytes) -> bool:
        """Append an interaction; whether its action came late."""
        tail, timestamp_ms = user.tail, action.timestamp_ms
        times = tail.times
        last_ms = times[-1] if times else timestamp_ms
        if len(times) >= self._segment_len:
            self._tell(user)
            self._seal(user)
            user.roll(self._num_slots)
            tail = user.tail
        if user.run != tail.index:
            self._run_on(user, tail)
        user.run_end = len(tail) + 1
        if timestamp_ms >= last_ms:
            tail.append(item, action, timestamp_ms)
            return False
        tail.append(item, action, last_ms)
        return True

    def _join(self, user: User, segment: Segment, place: int, action: Action) -> bool:
        if user.run != segment.index:
            self._run_on(user, segment)
        new_bits, changed = segment.join(place, action)
        if place < user.run_start:
            if place < user.run_first:
                user.run_first = place
            if place >= user.run_end:
                user.run_end = place + 1
            if new_bits:
                user.feedback[place] = user.feedback.get(place, 0) | new_bits
        return changed

    def _run_on(self, user: User, segment: Segment) -> None:
        """The user's actions go on with another segment."""
        self._tell(user)
        user.run = segment.index
        user.run_start = user.run_first = len(segment)
        user.run_end = 0
        self._running[user.name] = user

    def _tell(self, user: User) -> None:
        """End the user's run with an example of it, if it has changed anything."""
        if user.run_changed:
            num_new = len(user.tail) - user.run_start if user.run == user.tail.index else 0
            first, end = user.cover(user.run, user.run_first, user.run_end, self._segment_len)
            names = self._take_names(user)
            self._drafts.append(self._draft(user, user.run, first, end, num_new, user.run_record_ms, names))
            self.next_number += 1
            self.changed[user.name] = user
            user.feedback.clear()
            user.names.clear()
            user.run_changed, user.run_record_ms = False, -1
        user.run = -1

    def _seal(self, user: User) -> None:
        """Tell the open segment whole that is not one of the last when the next begins."""
        index = user.tail.index + 1 - NUM_OPEN
        if user.pieces.pop(index, None) is not None and index > user.tail.index + 1 - self._num_slots:
            if not user.is_whole:
                self._complete(user)
            self._tell_again(user, index, 0, self._segment_len)

    def _tell_again(self, user: User, index: int, first: int, end: int) -> None:
        self._drafts.append(self._draft(user, index, first, end, 0, self.applied_record_ms, {}))
        self.next_number += 1

    def _mark(self, mark: Mark, user: str, record_ms: int, names: dict[int, str | int]) -> None:
        header = Header(
            self.partition, self.writer_epoch, self._segment_len, self._num_features, self._num_user_features,
            self.applied_offset, self._batch_start, self.applied_offset, ZERO_COUNTS, self.newest_event_ms, record_ms,
            0, self.applied_offset, 0, self.next_number, 0, 0, 0, 0, 0, 0, mark, 1, user, names,
        )  # fmt: skip
        self._drafts.append((header, bytes(8 * self._num_user_features)))
        self.next_number += 1

    def _mark_again(self, segment: int, item: int) -> bool:
        if segment == MARK_USER:
            self._mark(Mark.USER, "", self.applied_record_ms, {})
            return True
        order = self.orders.get(item) or (self._stored.order_of(item) if self._stored is not None else None)
        if order is None:
            return False
        mark = Mark.ITEM_BACK if order.is_back else Mark.ITEM
        self._mark(mark, "", self.applied_record_ms, {item: order.item})
        return True

    def _draft(
        self, user: User, index: int, first: int, end: int, num_new: int, record_ms: int, names: dict[int, str | int]
    ) -> Draft:
        """The next example; `drain_drafts` adds what is known at the end of a batch."""
        if end - first == self._segment_len:
            stored = user.stored(index)
            first_ms, num, num_ids, flags, bits_width, _ = describe(stored)
            rows = stored[COLUMNS_START:]
        else:
            first_ms, num, num_ids, flags, bits_width, rows = user.opened(index).cut(first, end)
        feedback = user.feedback
        header = Header(
            self.partition, self.writer_epoch, self._segment_len, self._num_features, self._num_user_features,
            self.applied_offset, self._batch_start, self.applied_offset, ZERO_COUNTS, self.newest_event_ms, record_ms,
            0 if flags & LONG_TIMES else first_ms, user.offset, user.index, self.next_number, index, first, num,
            num_new, len(feedback), num_ids, flags, bits_width, user.name, names,
        )  # fmt: skip
        columns = [rows, user.user_features.tobytes()]
        if feedback:
            places = sorted(feedback)
            columns.append(array(self._index_code, [place - first for place in places]).tobytes())
            columns.append(array("I", [feedback[place] for place in places]).tobytes())
        return header, b"".join(columns)

    def _take_names(self, user: User) -> dict[int, str | int]:
        names: dict[int, str | int] = {}
        if not user.names:
            return names
        num_bytes = 0
        for item, name in user.names.items():
            if item not in self.names:
                num_bytes += 16 + (4 * len(name) if isinstance(name, str) else 8)
                if num_bytes > MAX_NAMES_BYTES:
                    break
                names[item] = name
                self.names.add(item)
        return names
