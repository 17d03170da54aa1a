"""The state machine of one partition: actions in, examples out. No database, no Kafka, no wall clock.

A user's sequence is the user's interactions in the order in which they began. The rules, in the order in which they
apply to an action:

1.  An action whose id is in one of the user's kept segments is a duplicate, and nothing else happens.
2.  It joins the user's newest kept interaction on the same item, and in the same session if it names one, that began at
    most ``join_window_s`` before or after it: kinds are added; the action's value, domain and features replace what was
    there; the time stays. With a window of 0 nothing joins.
3.  Otherwise it begins an interaction. If its time is before that of the user's last one, it takes that time and counts
    as late. With ``action.user_tokens`` the interaction keeps the user's features as they are now: those that the
    action gives, and the last known of the others.

The result is a function of each user's actions in order, and of nothing else. How it is written as examples is
`state.emitter`'s part.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from enum import Enum

from state.emitter import Draft, Emitter, Users
from state.marks import Marks
from state.meta import Position
from state.names import Names
from state.segment import Segment
from state.user import User
from wire.action import Action
from wire.action_json import ForgetRequest
from wire.config import ActionConfig, SequenceConfig
from wire.example import MARK_ITEM, MARK_USER, Address, Counts, Example
from wire.example_codec import view


class Outcome(Enum):
    """What became of one action. Late ones are accepted too."""

    ACCEPTED = "accepted"
    LATE = "late"
    DUPLICATE = "duplicate"
    SKIPPED = "skipped"
    """The stored user included it already."""


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
        self.users: OrderedDict[str, User] = OrderedDict()
        self.names = names if names is not None else Names()
        self._known_names = self.names.known
        self._emitter = Emitter(action, sequence, partition, stored, self.names)
        self.changed = self._emitter.changed
        """Users that have changed since the owner last emptied this."""
        self.marks = Marks(self._emitter, stored)
        self._stored = stored
        self._num_features = action.num_columns
        self._keeps_user_features = action.user_tokens
        self._num_user_features = len(action.user_features)
        self._segment_len = sequence.segment_len
        self._num_slots = sequence.num_slots
        self._deduplicate = sequence.deduplicate
        self._window_ms = sequence.join_window_ms
        self.resume(Position())

    # Position

    def resume(self, position: Position) -> None:
        """Continue from here. Actions up to ``counted_offset`` are in ``counts``, even if they are applied again."""
        self.applied_offset = position.applied_offset
        self.applied_record_ms = position.applied_record_ms
        self.newest_event_ms = position.newest_event_ms
        self.counted_offset = position.counted_offset
        self.num_accepted, self.num_duplicate, self.num_dead, self.num_late = position.counts
        self._emitter.next_number = position.next_number
        self.writer_epoch = position.writer_epoch
        self._batch_start = position.applied_offset + 1

    @property
    def position(self) -> Position:
        """Where to `resume`."""
        return Position(
            self.applied_offset, self.applied_record_ms, self.newest_event_ms, self.counted_upto, self.counts,
            self.next_number, self.writer_epoch,
        )  # fmt: skip

    @property
    def numbers(self) -> tuple[int, ...]:
        """The position as `kernels.sequences` takes it."""
        at = self.position
        return (*at[:3], self.counted_offset, *at.counts, at.next_number, at.writer_epoch, self._batch_start)

    @property
    def next_number(self) -> int:
        """The number of the next example."""
        return self._emitter.next_number

    @property
    def counts(self) -> Counts:
        """Of all actions up to `counted_upto`."""
        return Counts(self.num_accepted, self.num_duplicate, self.num_dead, self.num_late)

    @property
    def counted_upto(self) -> int:
        """After a restore, the counts are ahead of the applied offset until the worker has caught up."""
        return max(self.counted_offset, self.applied_offset)

    # Records

    def advance(self, offset: int, record_ms: int) -> None:
        """Begin a record. Offsets must increase."""
        if offset <= self.applied_offset:
            raise ValueError(f"offset: expected above {self.applied_offset}, got {offset}; skip what was applied")
        self.applied_offset = offset
        self.applied_record_ms = record_ms

    def reject(self, offset: int) -> bool:
        """Count a dead letter of the record at this offset; False if it has been counted before."""
        is_counted = offset > self.counted_offset
        self.num_dead += is_counted
        return is_counted

    def apply(self, action: Action, offset: int, record_ms: int, index: int = 0) -> Outcome:
        """Apply one action. Those of one record share its ``offset``; ``index`` is the place in the record."""
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
                self._emitter.complete(user)
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

    def forget(self, request: ForgetRequest, record_ms: int) -> list[User]:
        """Carry out the request in the current record. Call `drain` before the record, so that everything the user did
        until then is written and learned. Returns the users who were forgotten; the owner removes what it stores of
        them, and their examples."""
        assert not self._emitter.is_running, "drain first"
        self.num_accepted += self.applied_offset > self.counted_offset
        if not request.names:
            self.marks.mark_item(request, self.applied_offset, record_ms)
            return []
        known = filter(None, map(self._known, request.names))
        gone = [user for user in known if request.concerns(user.offset)]
        for user in gone:
            self.users.pop(user.name, None)
            self.changed.pop(user.name, None)
        self.marks.mark_users([user.name for user in gone], self.applied_offset, record_ms)
        return gone

    # Examples

    def drain(self) -> list[Example]:
        """End a batch: everything that has changed since the last one, as examples."""
        return [view(header, columns) for header, columns in self.drain_drafts()]

    def drain_drafts(self) -> list[Draft]:
        """`drain`, for callers that need only the bytes."""
        drafts = self._emitter.drain()
        counted_offset, counts = self.counted_upto, self.counts
        for header, _ in drafts:
            header.writer_epoch = self.writer_epoch
            header.applied_offset = self.applied_offset
            header.resume_from_offset = self._batch_start
            header.newest_event_ms = self.newest_event_ms
            header.counted_offset, header.counts = counted_offset, counts
        self._batch_start = self.applied_offset + 1
        if drafts:
            drafts[-1][0].resume_from_offset = self._batch_start
        if self._stored is None:
            self.changed.clear()
            self.names.fresh.clear()
        return drafts

    def refresh(self, address: Address) -> bool:
        """Have the next `drain` write again what now belongs under the key of this address; False if nothing does."""
        if address.segment in (MARK_USER, MARK_ITEM):
            return self.marks.mark_again(address, self.applied_offset, self.applied_record_ms)
        user = self._known(address.user)
        if user is None or not self._emitter.refresh(user, address.segment, address.first, self.applied_record_ms):
            return False
        self.users[address.user] = user
        return True

    def knows(self, name: str) -> bool:
        """Whether the user exists."""
        return self._known(name) is not None

    def _known(self, name: str) -> User | None:
        return self.users.get(name) or (self._stored.load(name) if self._stored is not None else None)

    # Rules

    def _fetch(self, name: str) -> User:
        user = self._stored.load(name) if self._stored is not None else None
        if user is None:
            features = array("q", bytes(8 * self._num_user_features))
            user = User(name, Segment(0, self._num_features), features)
        self.users[name] = user
        return user

    def _find(self, user: User, action: Action, item: bytes) -> tuple[Segment, int] | None:
        tail, timestamp_ms = user.tail, action.timestamp_ms
        if item in tail.items:
            place = tail.find(item, timestamp_ms, self._window_ms, action.session_hash)
            if place >= 0:
                return tail, place
        if tail.index == user.first_segment or tail.times[0] < timestamp_ms - self._window_ms:
            return None  # everything before the tail is older
        self._emitter.complete(user)
        return user.find_older(item, timestamp_ms, self._window_ms, action.session_hash)

    def _begin(self, user: User, action: Action, item: bytes) -> bool:
        """Append an interaction. Returns whether its action came late."""
        tail, timestamp_ms = user.tail, action.timestamp_ms
        times = tail.times
        last_ms = times[-1] if times else timestamp_ms
        if len(times) >= self._segment_len:
            self._emitter.end_run(user)
            self._emitter.seal(user, self.applied_record_ms)
            user.roll(self._num_slots)
            tail = user.tail
        if user.run != tail.index:
            self._emitter.begin_run(user, tail)
        user.run_end = len(tail) + 1
        if timestamp_ms >= last_ms:
            tail.append(item, action, timestamp_ms, self._columns(user, action))
            return False
        tail.append(item, action, last_ms, self._columns(user, action))
        return True

    def _columns(self, user: User, action: Action) -> tuple[int, ...]:
        """Those of an interaction that begins with this action."""
        if not self._keeps_user_features:
            return action.feature_hash
        pairs = zip(action.user_feature_hash, user.user_features, strict=True)
        return (*action.feature_hash, *(given or known for given, known in pairs))

    def _join(self, user: User, segment: Segment, place: int, action: Action) -> bool:
        if user.run != segment.index:
            self._emitter.begin_run(user, segment)
        new_bits, changed = segment.join(place, action)
        if place < user.run_start:
            if place < user.run_first:
                user.run_first = place
            if place >= user.run_end:
                user.run_end = place + 1
            if new_bits:
                user.feedback[place] = user.feedback.get(place, 0) | new_bits
        return changed
