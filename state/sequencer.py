"""The state machine of one partition: actions in, examples out. No database, no Kafka, no wall clock.

What it computes is a function of the partition's records in their order alone; how they are cut into batches only
decides how interactions are grouped into examples. The rules, in the order in which an action meets them:

1.  The event clock rises to the action's timestamp (a duplicate's too: the clock needs no memory of ids).
2.  Whatever of the user is due (clock >= timestamp + join window) is sealed, by (timestamp, arrival).
3.  A known id makes the action a duplicate, and nothing else happens.
4.  An open interaction of the user on that item is joined: bits are OR-ed; value, domain and each feature that the
    action brings replace what was there; the timestamp stays the first one's.
5.  Otherwise a new interaction opens. Its timestamp is clamped up to the user's last sealed one. The action counts as
    late where it needed that, or where its own join window had closed before it came. If the interaction is due, it is
    sealed at once: always so with a join window of 0.
6.  Beyond ``max_open`` open interactions of a user, his oldest is sealed early.

Other users' due interactions are sealed when a batch is drained; nothing can tell that from sealing them at once,
because everything that looks at a user (2.) seals what is due first.
"""

from __future__ import annotations

import heapq
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, MutableSequence
from enum import Enum

from state.names import Names
from state.user import Open, User
from wire.action import Action
from wire.config import ActionConfig, SequenceConfig
from wire.example import CLOCK_START_MS, Counts, Example
from wire.example_codec import MAX_NAMES_BYTES, Header, view

Draft = tuple[Header, bytes]
"""A numbered example before its bytes: `pack` makes the record, `view` the `Example` (`wire.example_codec`)."""


class Outcome(Enum):
    """What became of one action. Late ones are accepted too."""

    ACCEPTED = "accepted"
    LATE = "late"
    DUPLICATE = "duplicate"
    SKIPPED = "skipped"
    """The state that was loaded held it already (`Sequencer.load`)."""


class Sequencer:
    """Users, event clock, counts and example numbers of one partition.

    ``load`` fetches a user that is not in memory (None: there is none); what it returns is taken over. The owner may
    drop users from ``users`` between a `drain` and the next `apply`.
    """

    def __init__(
        self,
        action: ActionConfig,
        sequence: SequenceConfig,
        partition: int = 0,
        *,
        load: Callable[[str], User | None] | None = None,
        names: Names | None = None,
    ) -> None:
        self.config = sequence
        self.partition = partition
        self.users: OrderedDict[str, User] = OrderedDict()
        self.changed: dict[str, User] = {}
        """Users that an action or a seal has touched since the owner last emptied this."""
        self.names = names if names is not None else Names()
        self.due: dict[str, int] = {}
        """Clock at which the user's oldest open interaction is due, of every user that holds any."""
        self.uncovered: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Offset of the first action that no example of its user covers, and the clock before it; by offset."""
        self.clock_ms = CLOCK_START_MS
        self.applied_offset = -1
        self.applied_record_ms = -1
        self.next_number = 0
        self.writer_epoch = 0
        self.counted_offset = -1
        self.num_accepted = self.num_duplicate = self.num_dead = self.num_late = self.num_ticks = 0
        self._num_features = len(action.features)
        self._num_user_features = len(action.user_features)
        self._join_window_ms = sequence.join_window_ms
        self._load = load
        self._heap: list[tuple[int, str]] = []
        self._full: dict[str, User] = {}
        self._drafts: list[Draft] = []
        self._record_clock_ms = CLOCK_START_MS

    # Records

    def advance(self, offset: int, record_ms: int) -> None:
        """A record begins; what the one before left is complete. Offsets rise."""
        if offset <= self.applied_offset:
            raise ValueError(f"offset: expected above {self.applied_offset}, got {offset}; skip what was applied")
        for user in self._full.values():
            self._emit(user)
        self._full.clear()
        self._record_clock_ms = self.clock_ms
        self.applied_offset = offset
        self.applied_record_ms = record_ms

    def tick(self, timestamp_ms: int, offset: int, record_ms: int) -> None:
        """Raise the event clock, nothing else."""
        self.advance(offset, record_ms)
        self.clock_ms = max(self.clock_ms, timestamp_ms)
        self.num_ticks += offset > self.counted_offset

    def reject(self) -> None:
        """Count a dead letter of the present record."""
        self.num_dead += self.applied_offset > self.counted_offset

    def apply(self, action: Action, offset: int, record_ms: int) -> Outcome:
        """Apply one action; those of one record share its ``offset``."""
        if offset != self.applied_offset:
            self.advance(offset, record_ms)
        timestamp_ms, item = action.timestamp_ms, action.item_hash
        clock_before_ms = self.clock_ms
        if timestamp_ms > clock_before_ms:
            self.clock_ms = timestamp_ms
        user = self.users.get(action.user) or self._fetch(action.user)
        if offset <= user.skip_upto:
            return Outcome.SKIPPED
        if user.opens:
            self._seal_due(user)
        counted = offset > self.counted_offset
        if action.id_hash and self.config.max_recent_ids:
            if action.id_hash in user.recent:
                self.num_duplicate += counted
                return Outcome.DUPLICATE
            self._remember(user, action.id_hash)
        self._touch(user, offset)
        self.num_accepted += counted
        if any(action.user_feature_hash):
            _replace(user.user_features, action.user_feature_hash)
        if item not in self.names:
            user.names[item] = action.item
        opened = user.opens.get(item)
        if opened is not None:
            _join(opened, action, record_ms)
            return Outcome.ACCEPTED
        last_ms = user.times[-1] if user.times else timestamp_ms
        late = timestamp_ms < last_ms or clock_before_ms - timestamp_ms > self._join_window_ms
        self._begin(user, action, max(timestamp_ms, last_ms), offset, record_ms)
        self.num_late += late and counted
        return Outcome.LATE if late else Outcome.ACCEPTED

    # Examples

    def drain(self) -> list[Example]:
        """End a batch: examples of every user with new interactions, numbered, oldest first."""
        return [view(header, columns) for header, columns in self.drain_drafts()]

    def drain_drafts(self) -> list[Draft]:
        """`drain`, for whoever only wants the bytes."""
        self._settle()
        for user in self.changed.values():
            if user.num_new:
                self._emit(user)
        self._full.clear()
        drafts, self._drafts = self._drafts, []
        if self._load is None:
            self.changed.clear()
            self.names.fresh.clear()
        return drafts

    @property
    def counts(self) -> Counts:
        """Of all actions up to `counted_upto`."""
        return Counts(self.num_accepted, self.num_duplicate, self.num_dead, self.num_late, self.num_ticks)

    @counts.setter
    def counts(self, counts: Counts) -> None:
        self.num_accepted, self.num_duplicate, self.num_dead, self.num_late, self.num_ticks = counts

    @property
    def counted_upto(self) -> int:
        """After a restore the counts run ahead of the applied offset, until the replay has caught up."""
        return max(self.counted_offset, self.applied_offset)

    @property
    def replay_from(self) -> tuple[int, int]:
        """Lowest offset of an action that no example covers, and the clock before it."""
        for first in self.uncovered.values():
            return first
        return self.applied_offset + 1, self.clock_ms

    # What the owner puts back

    def hold(self, name: str, due_ms: int, uncovered: tuple[int, int] | None) -> None:
        """A stored user holds open interactions. In the order of uncovered offsets."""
        self.due[name] = due_ms
        heapq.heappush(self._heap, (due_ms, name))
        if uncovered is not None:
            self.uncovered[name] = uncovered

    def wake(self, user: User) -> None:
        """A stored user has unsent interactions: the next `drain` sends them."""
        self.users[user.name] = user
        self.changed[user.name] = user

    def refresh(self, user: User) -> None:
        """Let the next `drain` make an example of a user who may have nothing new."""
        if not user.num_new:
            self.uncovered.pop(user.name, None)
            self._drafts.append(self._draft(user, user.num_sealed, 0, self._take_names(user)))
            self.next_number += 1
        self.changed[user.name] = user

    def snapshot(self, user: User) -> Example:
        """A user as he is, as an example that has nothing new and no number."""
        header, columns = self._draft(user, user.num_sealed - user.num_new, 0, {})
        header.number = -1
        return view(header, columns)

    # Inside

    def _fetch(self, name: str) -> User:
        user = self._load(name) if self._load is not None else None
        if user is None:
            user = User(name, self._num_features, self._num_user_features)
        self.users[name] = user
        return user

    def _touch(self, user: User, offset: int) -> None:
        name = user.name
        if name not in self.uncovered:
            self.uncovered[name] = (offset, self._record_clock_ms)
        user.user_offset = offset
        self.changed[name] = user

    def _remember(self, user: User, id_hash: int) -> None:
        user.recent[id_hash] = None
        if len(user.recent) > self.config.max_recent_ids:
            del user.recent[next(iter(user.recent))]

    def _begin(self, user: User, action: Action, timestamp_ms: int, offset: int, record_ms: int) -> None:
        due_ms = timestamp_ms + self._join_window_ms
        if due_ms <= self.clock_ms:
            user.append(
                action.item_hash, action.bits, timestamp_ms, action.domain_hash, action.value, action.feature_hash,
                record_ms,
            )  # fmt: skip
            self._note_new(user)
            return
        user.opens[action.item_hash] = Open(
            action.item_hash, action.bits, timestamp_ms, action.domain_hash, action.value, action.feature_hash, offset,
            record_ms,
        )  # fmt: skip
        if due_ms < self.due.get(user.name, due_ms + 1):
            self._wait(user, due_ms)
        if len(user.opens) > self.config.max_open:
            self._seal(user, [min(user.opens.values(), key=_timestamp_of)])

    def _seal_due(self, user: User) -> None:
        if self.due[user.name] <= self.clock_ms:
            limit_ms = self.clock_ms - self._join_window_ms
            # sorted() is stable and opens are in order of arrival.
            self._seal(user, sorted((o for o in user.opens.values() if o.timestamp_ms <= limit_ms), key=_timestamp_of))

    def _seal(self, user: User, opens: list[Open]) -> None:
        for opened in opens:
            user.seal(opened)
        if user.opens:
            self._wait(user, min(o.timestamp_ms for o in user.opens.values()) + self._join_window_ms)
        else:
            del self.due[user.name]
        self.changed[user.name] = user
        self._note_new(user)

    def _wait(self, user: User, due_ms: int) -> None:
        if self.due.get(user.name) != due_ms:
            self.due[user.name] = due_ms
            heapq.heappush(self._heap, (due_ms, user.name))

    def _note_new(self, user: User) -> None:
        if user.num_new >= self.config.max_new:
            self._full[user.name] = user

    def _settle(self) -> None:
        heap = self._heap
        while heap and heap[0][0] <= self.clock_ms:
            due_ms, name = heapq.heappop(heap)
            if self.due.get(name) == due_ms:
                self._seal_due(self.users.get(name) or self._fetch(name))

    def _emit(self, user: User) -> None:
        self.uncovered.pop(user.name, None)
        names = self._take_names(user)
        while user.num_new:
            num_new = min(user.num_new, self.config.max_new)
            first_new = user.num_sealed - user.num_new
            user.num_new -= num_new
            self._drafts.append(self._draft(user, first_new, num_new, names))
            self.next_number += 1
            names = {}
        user.new_record_ms = -1
        user.trim(self.config.max_context, self.config.segment_len)

    def _draft(self, user: User, first_new: int, num_new: int, names: dict[int, str | int]) -> Draft:
        """The next example, with ``num_new`` interactions from ``first_new`` on; ``user.num_new`` stay unsent."""
        first, last = max(first_new - self.config.max_context, user.start), first_new + num_new
        replay_offset, replay_clock_ms = self.replay_from
        newest_ms = user.times[last - 1 - user.start] if last > user.start else -1
        record_ms = user.new_record_ms if num_new else self.applied_record_ms
        header = Header(
            user.name, self.partition, self.writer_epoch, self.next_number, last - first, num_new, first_new,
            len(user.opens) + user.num_new, user.num_new, len(user.recent), self._num_features, len(user.user_features),
            user.user_offset, self.applied_offset, replay_offset, replay_clock_ms, self.clock_ms,
            newest_ms, record_ms, self.counted_upto, self.counts, names, False,
        )  # fmt: skip
        recent = array("q", user.recent).tobytes() if user.recent else b""
        columns = (*user.columns(first, last), *user.open_columns(user.num_new), recent, user.user_features.tobytes())
        return header, b"".join(columns)

    def _take_names(self, user: User) -> dict[int, str | int]:
        names: dict[int, str | int] = {}
        num_bytes = 0
        for item, name in user.names.items():
            if item not in self.names:
                num_bytes += 16 + (4 * len(name) if isinstance(name, str) else 8)
                if num_bytes > MAX_NAMES_BYTES:
                    break
                names[item] = name
                self.names.add(item)
        user.names.clear()
        return names


def _timestamp_of(opened: Open) -> int:
    return opened.timestamp_ms


def _join(opened: Open, action: Action, record_ms: int) -> None:
    opened.bits |= action.bits
    opened.record_ms = max(opened.record_ms, record_ms)
    if action.domain_hash:
        opened.domain_hash = action.domain_hash
    if action.value == action.value:  # not NaN: a value was given
        opened.value = action.value
    if any(action.feature_hash):
        merged = list(opened.feature_hash)
        _replace(merged, action.feature_hash)
        opened.feature_hash = merged


def _replace(columns: MutableSequence[int], given: Iterable[int]) -> None:
    for column, value in enumerate(given):
        if value:
            columns[column] = value
