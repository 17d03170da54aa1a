"""One partition of the actions topic, applied again from its first record: what the result should be.

The state machine is `state.sequencer`, fed in one go, without a database, a crash or a rebalance.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from headrace.ledger import Violations, empty_history
from state.segment import Segment
from state.sequencer import Sequencer
from state.user import User
from wire.action import Rejection, decode_record
from wire.action_json import ForgetRequest
from wire.config import ActionConfig, SequenceConfig
from wire.example import Counts, Example, num_features_of
from wire.history import History
from wire.moment import MAX_TIMESTAMP_MS
from wire.partitioner import partition_of

DRAIN_EVERY = 512


class Recount:
    """Feed it every record in order. Set ``watch`` to the offsets after which counts are wanted, and ``watch_users`` to
    the last action of each user that was delivered."""

    def __init__(self, action: ActionConfig, sequence: SequenceConfig, partition: int, num_partitions: int) -> None:
        self.action = action
        self.partition = partition
        self.num_partitions = num_partitions
        self.sequencer = Sequencer(action, sequence, partition)
        self.sequence = sequence
        self.num_records = self.num_forgotten = self.num_migrated = 0
        self.forgotten: set[str] = set()
        """Users who were forgotten; ``num_forgotten`` is the number of their interactions."""
        self.num_produced = 0
        """Actions, and records that should have been one."""
        self.refused_before: set[tuple[int, int]] = set()
        """(offset, index) of what an earlier configuration refused, even if this one would not."""
        self.num_refused_before = 0
        self.dead: set[tuple[int, int]] = set()
        """(offset, index) of everything that should be a dead letter."""
        self.users: dict[str, History] = {}
        """Each user's complete history."""
        self.watch: set[int] = set()
        self.counts_at: dict[int, Counts] = {}
        self.watch_users: dict[str, tuple[int, int]] = {}
        self.users_at: dict[str, History] = {}
        """The users of ``watch_users``, as they were after that action."""
        self.watch_times: Mapping[int, tuple[int, int]] = {}
        """Offset → the lowest and the highest time that examples which end with it state (`SequenceLedger.times`)."""
        self.wrong_times = Violations()
        self._newest_ms = -1
        self.resume_from = 0
        """The examples say that they cover every action before this offset."""
        self.due: dict[str, int] | None = None
        """How many interactions of each user those are; None until that offset is reached."""

    def start_from(self, examples: Iterable[Example]) -> None:
        """Begin with the users migrated from another deployment (`Example.is_migrated`), before any record."""
        users, num_slots = self.sequencer.users, self.sequence.num_slots
        for each in examples:
            if each.mark is not None:
                continue
            user = users.get(each.user)
            if user is None:
                num_features = num_features_of(each.rows)
                user = users[each.user] = User(each.user, Segment(each.segment, num_features), array("q"))
                self.users[each.user] = empty_history(each)
            user.adopt(each, num_slots)
            user.user_features = array("q", each.user_feature_hash.tobytes())
            self.users[each.user].fold(each)
        self.num_migrated = sum(history.end for history in self.users.values())
        for name, history in self.users.items():
            if self.watch_users.get(name) == (-1, -1):
                self.users_at[name] = copy.deepcopy(history)

    def feed(self, record: Any) -> None:
        """Apply one Kafka record."""
        if self.due is None and record.offset >= self.resume_from:
            self._note_due()
        self._check_time(record)
        self.num_records += 1
        decoded = decode_record(record.value, record.timestamp, self.action)
        if isinstance(decoded[0], ForgetRequest):
            self.drain()
        self.sequencer.advance(record.offset, record.timestamp)
        listed = record.value is not None and record.value.lstrip(b" \t\r\n")[:1] == b"["
        if len(decoded) > 1 and (record.offset, -1) in self.refused_before:
            decoded = [Rejection("oversized", "", -1, b"")]
            self.num_refused_before += 1
        for index, each in enumerate(decoded):
            self.num_produced += 1
            place = (record.offset, index if listed else -1)
            if not isinstance(each, Rejection) and place in self.refused_before:
                self.num_refused_before += 1
                self._refuse(*place)
                continue
            if isinstance(each, Rejection):
                self._refuse(record.offset, each.index)
            elif not all(map(self._is_ours, each.keys)):
                self._refuse(record.offset, index if listed else -1)
            elif isinstance(each, ForgetRequest):
                self._forget(each, record.timestamp)
            else:
                self.sequencer.apply(each, record.offset, record.timestamp, index)
                if self.watch_users.get(each.user) == (record.offset, index):
                    self.drain()
                    self.users_at[each.user] = copy.deepcopy(self.users[each.user])
        if self.num_records % DRAIN_EVERY == 0:
            self.drain()
        if record.offset in self.watch:
            self.counts_at[record.offset] = self.sequencer.counts

    def _note_due(self) -> None:
        self.drain()
        self.due = {name: history.end for name, history in self.users.items()}

    def _check_time(self, record: Any) -> None:
        """An example states the newest time of the actions that it covers. The last of them is one, and none of them is
        newer than all so far."""
        record_ms = min(max(record.timestamp, -1), MAX_TIMESTAMP_MS)
        self._newest_ms = max(self._newest_ms, record_ms)
        lowest, highest = self.watch_times.get(record.offset, (record_ms, record_ms))
        if lowest < record_ms or highest > self._newest_ms:
            wrong = lowest if lowest < record_ms else highest
            self.wrong_times.add(
                f"partition {self.partition}: an example says that its newest action, at offset {record.offset}, came "
                f"at {wrong} ms; the actions topic says {record_ms}"
            )

    def end(self) -> None:
        """All records are applied."""
        self.drain()
        if self.due is None:
            self._note_due()

    def _is_ours(self, user: str) -> bool:
        return partition_of(user.encode(), self.num_partitions) == self.partition

    def _forget(self, request: ForgetRequest, record_ms: int) -> None:
        for user in self.sequencer.forget(request, record_ms):
            history = self.users.pop(user.name, None)
            if self.due is not None:
                self.due.pop(user.name, None)
            self.forgotten.add(user.name)
            self.num_forgotten += history.end if history is not None else 0

    def _refuse(self, offset: int, index: int) -> None:
        self.sequencer.reject(offset)
        self.dead.add((offset, index))

    def drain(self) -> None:
        """Collect the examples that are due."""
        for example in self.sequencer.drain():
            if example.mark is not None:
                continue
            history = self.users.get(example.user)
            if history is None:
                history = self.users[example.user] = empty_history(example)
            history.fold(example)

    @property
    def num_interactions(self) -> int:
        """Interactions that the actions amount to."""
        return self.num_forgotten + sum(history.end for history in self.users.values()) - self.num_migrated
