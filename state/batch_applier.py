"""Applies records to a partition's users, and puts everything that they change into one write batch.

By default they are applied in C++ (`state.compiled`). `state.sequencer` is the definition, and carries out what C++
does not: requests to forget, refreshes and restores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rocksdict import WriteBatch

from kernels.sequences import EXAMPLE, NAME, NOT_DECODED
from state.compiled import CompiledUsers, Run
from state.emitter import Draft
from state.intake import Intake
from state.name_store import encode_day
from state.outbox import Outbox, OutboxEntry
from state.sequencer import Sequencer
from state.user import User
from state.user_store import UserStore
from wire.action_json import ForgetRequest
from wire.config import SequenceConfig
from wire.example import Counts
from wire.topics import keys_of_user

Record = tuple[int, int, bytes | None, bytes | None]
"""Offset, Kafka timestamp in milliseconds, key, value."""


@dataclass(frozen=True)
class ApplyResult:
    """What one `PartitionStore.apply` did. ``num_records``: without those that had been applied before."""

    num_records: int
    num_examples: int
    num_dead: int
    counts: Counts
    """The partition's totals."""
    applied_offset: int
    num_forgotten: int = 0
    """Users who were forgotten."""


def records_after(offset: int, records: Iterable[Record]) -> list[Record]:
    """The records above ``offset``, without those that repeat or precede an earlier one."""
    fresh = []
    for record in records:
        if record[0] > offset:
            offset = record[0]
            fresh.append(record)
    return fresh


class BatchApplier:
    """Applies one partition's records. ``compiled``: None to apply all of them by the definition.

    ``write`` makes a batch durable; its second argument is the index after the batch's last outbox entry.
    ``next_index`` returns the index of the next entry. Up to ``max_cached_users`` users stay in memory.
    """

    def __init__(
        self,
        sequencer: Sequencer,
        intake: Intake,
        compiled: CompiledUsers | None,
        users: UserStore,
        outbox: Outbox,
        sequence: SequenceConfig,
        max_cached_users: int,
        next_index: Callable[[], int],
        write: Callable[[WriteBatch, int], None],
    ) -> None:
        self._sequencer = sequencer
        self._intake = intake
        self._compiled = compiled
        self._users = users
        self._outbox = outbox
        self._sequence = sequence
        self._max_cached_users = max_cached_users
        self._next_index = next_index
        self._write = write
        self.num_forgotten = 0
        """Users whom the last `apply` has forgotten."""

    def apply(self, records: Sequence[Record]) -> None:
        """Apply records whose offsets increase. Afterwards they are on disk, as one batch; a request to forget has a
        batch of its own, and so have the records of each day (`state.names`)."""
        names, first, self.num_forgotten = self._sequencer.names, 0, 0
        if not records or names.are_of_day([record[1] for record in records]):
            self._apply_day(records)
            return
        for number, (_, record_ms, *_) in enumerate(records):
            if (day := names.day_of(record_ms)) != names.day:
                if number > first:
                    self._apply_day(records[first:number])
                names.begin(day)
                if self._compiled is not None:
                    self._compiled.settle(self._max_cached_users, max_names=0)
                first = number
        self._apply_day(records[first:])

    def _apply_day(self, records: Sequence[Record]) -> None:
        if self._compiled is None:
            self._apply_each(records)
        else:
            self._apply_together(self._compiled, records)

    def _apply_each(self, records: Sequence[Record]) -> None:
        """As `state.sequencer` defines it."""
        sequencer, dead = self._sequencer, list[bytes]()
        for offset, record_ms, _key, value in records:
            decoded = self._intake.decode(offset, record_ms, value, dead)
            if isinstance(decoded, ForgetRequest):
                self.commit(sequencer.drain_drafts(), dead)
                dead.clear()
                self._carry_out(decoded, offset, record_ms)
                continue
            sequencer.advance(offset, record_ms)
            for index, action in decoded:
                sequencer.apply(action, offset, record_ms, index)
        drafts = sequencer.drain_drafts()
        if records or drafts:
            self.commit(drafts, dead)

    def _apply_together(self, compiled: CompiledUsers, records: Sequence[Record]) -> None:
        """The same in C++."""
        run: Run = []
        dead: list[bytes] = []
        ranges = compiled.decode([value or b"" for *_, value in records], [record_ms for _, record_ms, *_ in records])
        for (offset, record_ms, _key, value), (first, last) in zip(records, ranges, strict=True):
            if first == NOT_DECODED:
                decoded = self._intake.decode(offset, record_ms, value, dead)
                if isinstance(decoded, ForgetRequest):
                    self._commit_run(compiled, run, dead)
                    run.clear()
                    dead.clear()
                    self._carry_out(decoded, offset, record_ms)
                    for name in decoded.names:
                        compiled.drop(name)
                    continue
                first, last = compiled.add(decoded)
            run.append((first, last, offset, record_ms))
        if run:
            self._commit_run(compiled, run, dead)

    def _carry_out(self, request: ForgetRequest, offset: int, record_ms: int) -> None:
        """Forget, in a write batch of its own: a restore that finds the marks continues at the request, and applies no
        action before it again."""
        sequencer = self._sequencer
        sequencer.advance(offset, record_ms)
        gone = sequencer.forget(request, record_ms)
        keys = [key for user in gone for key in self._keys_of(user, request)]
        self.commit(sequencer.drain_drafts(), (), erased=gone, tombstones=keys)
        self.num_forgotten += len(gone)

    def _keys_of(self, user: User, request: ForgetRequest) -> list[bytes]:
        """The keys of the user's examples. Somebody who asks to be forgotten gets a tombstone for each that there may
        be; for one of many quiet users that would cost more than what they leave."""
        num_slots, segment_len = self._sequence.num_slots, self._sequence.segment_len
        lifetime = [user.tail.index * segment_len + len(user.tail)] if request.users else []
        return keys_of_user(user.name, num_slots, segment_len, *lifetime)

    def commit(
        self, drafts: Sequence[Draft], dead: Iterable[bytes], *, erased: Sequence[User] = (),
        tombstones: Sequence[bytes] = (),
    ) -> None:  # fmt: skip
        """Write what the sequencer has changed. ``erased``: users to remove. ``tombstones``: keys of the sequences
        topic; they go before the drafts."""
        batch = WriteBatch(raw_mode=True)
        sequencer, index = self._sequencer, self._next_index()
        for user in erased:
            self._users.erase(batch, user)
        for key in tombstones:
            self._outbox.put_tombstone(batch, index, key, sequencer.applied_record_ms)
            index += 1
        index = self._outbox.put_dead_letters(batch, index, dead)
        for header, columns in drafts:
            self._outbox.put_draft(batch, index, header, columns)
            index += 1
        for user in sequencer.changed.values():
            self._users.save(batch, user)
        fresh, day = sequencer.names.fresh, sequencer.names.day
        self._users.names.sweep(batch, day, len(fresh))
        self._users.names.save(batch, fresh, day)
        self._users.save_forget_requests(batch, sequencer.marks.requests)
        self._write(batch, index)
        self._bound_memory()

    def _commit_run(self, compiled: CompiledUsers, run: Run, dead: Iterable[bytes]) -> None:
        changes = compiled.apply(run, self._sequencer)
        batch = WriteBatch(raw_mode=True)
        index = self._outbox.put_dead_letters(batch, self._next_index(), dead)
        epoch, day = self._sequencer.writer_epoch, self._sequencer.names.day
        self._users.names.sweep(batch, day, sum(entry[0] == NAME for entry in changes.entries))
        for kind, key, value, number, record_ms in changes.entries:
            if kind == EXAMPLE:
                self._outbox.put_example(batch, OutboxEntry(index, True, key, value, [], number, record_ms), epoch)
                index += 1
            else:
                batch.put(key, encode_day(day) if kind == NAME else value)
        self._write(batch, index)
        compiled.settle(self._max_cached_users)

    def _bound_memory(self) -> None:
        """Drop what is on disk now; of the users, those that were used longest ago."""
        sequencer, users = self._sequencer, self._sequencer.users
        for name in sequencer.changed:
            users.move_to_end(name)
        max_users = self._max_cached_users if self._compiled is None else 0
        while len(users) > max_users:
            users.popitem(last=False)
        sequencer.changed.clear()
        sequencer.marks.requests.clear()
        sequencer.names.fresh.clear()
        sequencer.names.shrink()
