"""One partition's sequences on disk: what the sequencer computes, made durable in one write batch a call.

Keys (one RocksDB a partition; integers in keys are big-endian):

    m                       `_Meta`: where the partition is; absent until something was applied or restored
    u <user>                `state.user.UserRecord`
    s <user> <segment:4>    columns of the interactions [segment·segment_len, (segment+1)·segment_len) of a lifetime;
                            only the tail is rewritten, those that no example needs any more are deleted
    o <user>                of a user with open interactions: due_ms, first uncovered offset or -1, clock before it
    n <item hash:8>         the item has been named in an example
    x <index:8>             outbox

Restore, and why a restored store equals one that was never interrupted
-----------------------------------------------------------------------
Let the sequences topic hold the examples up to number n, and let R, C be `replay_from_offset` and `replay_clock_ms` of
example n. A user's newest example among them is E(u), made when the partition had applied A(u), with the clock at K(u).

1.  E(u) holds all there is of u at A(u): the last ``max_context`` interactions (older ones influence nothing), those
    sealed but not sent yet, the open ones, ids, features. So the user loaded from E(u) is the user at A(u).
2.  R is the lowest offset of an action that is in no E(u). It is computed example by example, so that it is right for
    every prefix of a batch's examples. Hence no action of u that was accepted lies between A(u) and R, and every one
    behind A(u) is replayed; one at or below `user_offset` is in E(u), and is skipped (`skip_upto`).
3.  The clock is a function of the log alone: it starts the replay at C, its value just before R, and every replayed
    record moves it as it did, also by actions that are skipped. When the first action of u that is not skipped comes,
    the clock is what it was when it came first; so due interactions, joins, lateness and clamps fall out the same.
4.  An interaction that only the clock sealed (by a tick, or another user), and whose example was lost with the disk, is
    open in E(u) and due: it is sealed again, before any action behind A(u) meets it, in the same order.
5.  While R <= offset <= A(u) the clock lies below K(u), and all that is open in E(u) is due after K(u) (or is due from
    the record of A(u) itself on): nothing of u is sealed before its time.
6.  Interaction k of u's lifetime is therefore the same in both lives, and `first_new_index` goes on where E(u) ended:
    each is new in exactly one accepted example. Only their grouping into examples may differ.
7.  Counts: example n carries them as of `counted_offset` >= R - 1. They are taken over, and replayed records at or
    below that offset are not counted again.
8.  Dead letters of replayed records are written again, with the same topic, partition, offset and index, which is what
    makes them one: who counts dead letters counts those. None is lost: `outbox` never hands out an example together
    with a dead letter before it, so what is in the topic proves that older dead letters were acknowledged.
9.  Names: those of the examples at hand are known; others are sent again when their items are seen again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rocksdict import WriteBatch

from state.action import Action, Rejection, Tick, decode_record
from state.codec import pack
from state.config import ActionConfig, SequenceConfig, StoreConfig, check_sizes
from state.database import Database
from state.errors import CodecError, StoreCorrupt, StoreMismatch
from state.example import CLOCK_START_MS, Counts, Example
from state.log import ExampleLog, Verdict
from state.outbox import OutboxEntry, entry_of, stored_dead_letter, stored_example
from state.partitioner import partition_of
from state.sequencer import Draft, Names, Sequencer
from state.status import PartitionStatus
from state.user import User

__all__ = ["ApplyResult", "OutboxEntry", "PartitionStore", "Record"]

Record = tuple[int, int, bytes | None, bytes | None]
"""Offset, Kafka timestamp in milliseconds, key, value."""
LAYOUT = 1
_META = b"m"
_HELD = struct.Struct("<qqq")
_ADOPT_BATCH = 500


class _Shape(msgspec.Struct, array_like=True):
    """What of the configuration is in the bytes."""

    layout: int
    partition: int
    num_partitions: int
    segment_len: int
    kinds: list[str]
    features: list[str]
    user_features: list[str]


class _Meta(msgspec.Struct, array_like=True):
    shape: _Shape
    applied_offset: int = -1
    applied_record_ms: int = -1
    clock_ms: int = CLOCK_START_MS
    counted_offset: int = -1
    counts: Counts = Counts()
    next_number: int = 0
    writer_epoch: int = 0
    outbox_first: int = 0
    outbox_next: int = 0
    relayed_number: int = -1
    sequences_offset: int = 0


@dataclass(frozen=True)
class ApplyResult:
    """What one `PartitionStore.apply` did. ``num_skipped`` counts records that were applied before."""

    num_records: int
    num_skipped: int
    num_examples: int
    num_dead: int
    counts: Counts
    """The partition's, in all."""
    applied_offset: int


class PartitionStore:
    """A partition's sequences and outbox. For one thread at a time; one process holds it."""

    def __init__(
        self,
        path: Path,
        partition: int,
        action: ActionConfig,
        sequence: SequenceConfig,
        store: StoreConfig,
        num_partitions: int | None,
        topic: str,
    ) -> None:
        check_sizes(action, sequence)
        self.path = path
        self.partition = partition
        self._action = action
        self._sequence = sequence
        self._config = store
        self._num_partitions = num_partitions
        self._topic = topic
        self._shape = _Shape(
            LAYOUT, partition, num_partitions or 0, sequence.segment_len, list(action.kinds), list(action.features),
            list(action.user_features),
        )  # fmt: skip
        self._meta = _Meta(self._shape)
        self._sequencer = Sequencer(action, sequence, partition)
        self._is_new = True
        self._db = Database(path, store)
        try:
            self._start()
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path | str,
        partition: int,
        action: ActionConfig | None = None,
        sequence: SequenceConfig | None = None,
        store: StoreConfig | None = None,
        *,
        num_partitions: int | None = None,
        topic: str = "headrace.actions.v1",
    ) -> PartitionStore:
        """Open the database in the folder ``path``, made if it is not there.

        With ``num_partitions``, users that do not hash to ``partition`` are refused. ``topic`` names the source in dead
        letters. Raises `state.errors.StoreError` (its children say what is the matter).
        """
        return cls(
            Path(path), partition, action or ActionConfig(), sequence or SequenceConfig(), store or StoreConfig(),
            num_partitions, topic,
        )  # fmt: skip

    # Where the partition is

    @property
    def is_new(self) -> bool:
        """Nothing was ever applied, restored or claimed here."""
        return self._is_new

    @property
    def applied_offset(self) -> int:
        """Highest offset applied; -1 before any. After `restore` the replay goes on behind it."""
        return self._sequencer.applied_offset

    @property
    def clock_ms(self) -> int:
        """The partition's event clock."""
        return self._sequencer.clock_ms

    @property
    def counts(self) -> Counts:
        """What the partition's actions came to."""
        return self._sequencer.counts

    @property
    def next_number(self) -> int:
        """The number of the example to come."""
        return self._sequencer.next_number

    @property
    def writer_epoch(self) -> int:
        """Under which the outbox goes out."""
        return self._sequencer.writer_epoch

    @property
    def outbox_len(self) -> int:
        """Records that wait."""
        return self._meta.outbox_next - self._meta.outbox_first

    @property
    def sequences_offset(self) -> int:
        """As last given to `ack`: where in the sequences partition reading goes on."""
        return self._meta.sequences_offset

    @property
    def num_open(self) -> int:
        """Users that hold open interactions: while there are any, a tick would seal something."""
        return len(self._sequencer.due)

    def status(self) -> PartitionStatus:
        """The partition's part of a worker's status."""
        waiting = self.outbox(limit=1) if self.outbox_len else []
        counts = self.counts._asdict()
        return PartitionStatus(
            applied_offset=self.applied_offset,
            applied_record_ms=self._sequencer.applied_record_ms,
            outbox_len=self.outbox_len,
            oldest_outbox_record_ms=waiting[0].record_ms if waiting else -1,
            relayed_number=self._meta.relayed_number,
            writer_epoch=self.writer_epoch,
            **counts,
        )

    # Applying

    def apply(self, records: Iterable[Record]) -> ApplyResult:
        """Apply records in the order of their offsets, in one write batch: after a crash all of it happened, or none.

        Records at or below the applied offset are skipped, so giving them again does no harm. A record that is no
        action becomes a dead letter. Raises `StoreError`; the store is closed then, because memory is ahead of the
        disk: open it again.
        """
        # First of all: memory may be ahead of the disk, and would call lost records applied.
        self._db.require_open()
        before, num_records, num_skipped = self.counts, 0, 0
        dead: list[bytes] = []
        try:
            for offset, record_ms, _key, value in records:
                if offset <= self._sequencer.applied_offset:
                    num_skipped += 1
                    continue
                num_records += 1
                self._apply_record(offset, record_ms, value, dead)
            drafts = self._sequencer.drain_drafts()
            if num_records or drafts:
                self._commit(drafts, dead)
        except BaseException:
            self._db.close()
            raise
        num_dead = self.counts.num_dead - before.num_dead
        return ApplyResult(num_records, num_skipped, len(drafts), num_dead, self.counts, self.applied_offset)

    def _apply_record(self, offset: int, record_ms: int, value: bytes | None, dead: list[bytes]) -> None:
        sequencer, users = self._sequencer, self._sequencer.users
        decoded = decode_record(value, record_ms, self._action)
        if type(decoded[0]) is Tick:
            sequencer.tick(decoded[0].timestamp_ms, offset, record_ms)
            return
        sequencer.advance(offset, record_ms)
        for index, one in enumerate(decoded):
            if type(one) is Action:
                if one.user in users or self._is_ours(one.user):
                    sequencer.apply(one, offset, record_ms)
                    continue
                one = self._wrong_partition(one, value or b"", index if len(decoded) > 1 else -1)
            assert isinstance(one, Rejection)
            sequencer.reject()
            dead.append(stored_dead_letter(one, self._topic, self.partition, offset, record_ms))

    def _is_ours(self, user: str) -> bool:
        return self._num_partitions is None or partition_of(user.encode(), self._num_partitions) == self.partition

    def _wrong_partition(self, action: Action, value: bytes, index: int) -> Rejection:
        home = partition_of(action.user.encode(), self._num_partitions or 1)
        if value.lstrip()[:1] == b"[":
            index = max(index, 0)
            value = bytes(msgspec.json.decode(value, type=list[msgspec.Raw])[index])
        message = (
            f"user {action.user[:40]!r}: expected in partition {home} of {self._num_partitions}, got {self.partition}; "
            "use the user as key and Kafka's murmur2 partitioner"
        )
        return Rejection("wrong_partition", message, index, value)

    def _commit(self, drafts: Sequence[Draft], dead: Iterable[bytes]) -> None:
        batch = WriteBatch(raw_mode=True)
        sequencer, index = self._sequencer, self._meta.outbox_next
        for stored in [*dead, *(stored_example(pack(header, columns)) for header, columns in drafts)]:
            batch.put(_outbox_key(index), stored)
            index += 1
        for user in sequencer.changed.values():
            self._save_user(batch, user)
        for item in sequencer.names.fresh:
            batch.put(_name_key(item), b"")
        self._put_meta(batch, outbox_next=index)
        self._db.write(batch)
        self._is_new = False
        self._forget()

    def _forget(self) -> None:
        """Bound what memory holds, the longest unused first."""
        sequencer, users = self._sequencer, self._sequencer.users
        for name in sequencer.changed:
            users.move_to_end(name)
        while len(users) > self._config.max_cached_users:
            users.popitem(last=False)
        sequencer.changed.clear()
        sequencer.names.fresh.clear()
        sequencer.names.shrink()

    # The outbox

    def outbox(self, start: int | None = None, limit: int = 1000) -> list[OutboxEntry]:
        """Up to ``limit`` records to produce, oldest first, from index ``start`` on; examples carry `writer_epoch`.

        An example never comes in the same answer as a dead letter before it: acknowledge an answer before you ask for
        the next, and an example in the topic proves that the dead letters before it are in theirs.
        """
        first = max(start or 0, self._meta.outbox_first)
        indices = range(first, min(self._meta.outbox_next, first + limit))
        entries: list[OutboxEntry] = []
        for index, stored in zip(indices, self._db.get_many([_outbox_key(i) for i in indices]), strict=True):
            entry = self._entry(index, stored)
            if entry.is_example and entries and not entries[-1].is_example:
                break
            entries.append(entry)
        return entries

    def ack(self, upto: int, sequences_offset: int = 0) -> None:
        """The broker has every entry up to index ``upto``: delete them. ``sequences_offset``: where in the sequences
        partition a reader of what others write goes on."""
        meta = self._meta
        upto = min(upto, meta.outbox_next - 1)
        number = meta.relayed_number
        for index in range(upto, meta.outbox_first - 1, -1):
            entry = self._entry(index, self._db.get(_outbox_key(index)))
            if entry.is_example:
                number = entry.number
                break
        batch = WriteBatch(raw_mode=True)
        for index in range(meta.outbox_first, upto + 1):
            batch.delete(_outbox_key(index))
        self._put_meta(
            batch, outbox_first=max(meta.outbox_first, upto + 1), relayed_number=number,
            sequences_offset=max(meta.sequences_offset, sequences_offset),
        )  # fmt: skip
        self._db.write(batch)

    def set_writer_epoch(self, writer_epoch: int) -> None:
        """The partition is ours under this epoch, from now on and for what waits in the outbox."""
        self._sequencer.writer_epoch = writer_epoch
        batch = WriteBatch(raw_mode=True)
        self._put_meta(batch)
        self._db.write(batch)
        self._is_new = False

    def _entry(self, index: int, stored: bytes | None) -> OutboxEntry:
        try:
            if stored is not None:
                return entry_of(index, stored, self.writer_epoch)
        except (CodecError, msgspec.DecodeError) as error:
            raise self._corrupt(f"outbox entry {index}", str(error)) from error
        raise self._corrupt(f"outbox entry {index}", "nothing")

    # Restoring

    def restore(self, examples: Iterable[Example]) -> int:
        """Start again from the partition's records in the sequences topic, read from its beginning: wipe the database,
        take each user's newest example. Returns how many were accepted (`state.log.ExampleLog`).

        Afterwards apply the actions behind `applied_offset`, which lies before what the lost store had reached. Takes
        as much memory as one example. A crash in the middle leaves a store that `is_new`.
        """
        self._db.wipe()
        self._start()
        try:
            return self._restore(examples)
        except BaseException:
            self._db.close()
            raise

    def _restore(self, examples: Iterable[Example]) -> int:
        log = ExampleLog(None, allow_holes=True)
        newest: Example | None = None
        unsent: set[str] = set()
        batch, names, num_examples = WriteBatch(raw_mode=True), set[str](), 0
        for example in examples:
            if log.feed(example) is not Verdict.ACCEPT:
                continue
            if example.user in names or len(names) >= _ADOPT_BATCH:
                self._db.write(batch)
                batch, names = WriteBatch(raw_mode=True), set()
            self._adopt(batch, example)
            names.add(example.user)
            (unsent.add if example.num_unsent else unsent.discard)(example.user)
            newest, num_examples = example, num_examples + 1
        self._db.write(batch)
        if newest is not None:
            self._resume_from(newest, log.writer_epoch, unsent)
        return num_examples

    def _adopt(self, batch: WriteBatch, example: Example) -> None:
        shape = (example.partition, example.interactions.feature_hash.shape[1], len(example.user_feature_hash))
        expected = (self.partition, len(self._action.features), len(self._action.user_features))
        if shape != expected:
            raise StoreMismatch(
                f"example of {example.user[:40]!r}: expected (partition, features, user features) {expected}, got "
                f"{shape}; keep the configuration that the topic was written under, or use a new kafka.prefix"
            )
        user, key = User.from_example(example), example.user.encode()
        older = self._db.get(b"u" + key)
        if older is not None:
            stale = User.decode(example.user, older, 0)
            for segment in self._segments(stale.start, stale.num_sealed):
                batch.delete(_segment_key(key, segment))
            batch.delete(b"o" + key)
        if user.opens:
            due_ms = min(opened.timestamp_ms for opened in user.opens.values()) + self._sequence.join_window_ms
            batch.put(b"o" + key, _HELD.pack(due_ms, -1, 0))
        user.saved_start = user.saved_upto = user.start
        self._save_columns(batch, user, key)
        batch.put(b"u" + key, user.encode())
        for item in example.names:
            batch.put(_name_key(item), b"")

    def _resume_from(self, newest: Example, writer_epoch: int, unsent: Iterable[str]) -> None:
        sequencer = self._sequencer
        sequencer.applied_offset = newest.replay_from_offset - 1
        sequencer.applied_record_ms = newest.newest_record_ms
        sequencer.clock_ms = newest.replay_clock_ms
        sequencer.counted_offset = newest.counted_offset
        sequencer.counts = newest.counts
        sequencer.next_number = newest.number + 1
        sequencer.writer_epoch = writer_epoch
        self._meta.relayed_number = newest.number
        self._hold_open()
        for name in unsent:
            user = self._load_user(name)
            assert user is not None
            sequencer.wake(user)
        self._commit(sequencer.drain_drafts(), ())

    def refresh(self, users: Iterable[str]) -> int:
        """Put examples of these users into the outbox, though nothing of theirs is new: the answer to
        `ExampleLog.overwritten`. Returns how many of them live here."""
        sequencer, num_users = self._sequencer, 0
        for name in users:
            user = sequencer.users.get(name) or self._load_user(name)
            if user is not None:
                sequencer.users[name] = user
                sequencer.refresh(user)
                num_users += 1
        if num_users:
            self._commit(sequencer.drain_drafts(), ())
        return num_users

    # Users on disk

    def read_user(self, user: str) -> Example | None:
        """The user as he is now: his last ``max_context`` interactions (none of them new), what is open, and so on."""
        known = self._sequencer.users.get(user) or self._load_user(user)
        return None if known is None else self._sequencer.snapshot(known)

    def _load_user(self, name: str) -> User | None:
        key = name.encode()
        record = self._db.get(b"u" + key)
        if record is None:
            return None
        num_features, length = len(self._action.features), self._sequence.segment_len
        try:
            user = User.decode(name, record, num_features)
        except (msgspec.DecodeError, TypeError, ValueError) as error:
            raise self._corrupt(f"user {name!r}", str(error)) from error
        segments = self._segments(user.start, user.num_sealed)
        for segment, columns in zip(
            segments, self._db.get_many([_segment_key(key, segment) for segment in segments]), strict=True
        ):
            rows = min((segment + 1) * length, user.num_sealed) - max(segment * length, user.start)
            if columns is None or len(columns) != rows * (32 + 8 * num_features):
                raise self._corrupt(f"segment {segment} of user {name!r}", f"{len(columns or b'')} bytes")
            user.extend(columns, rows)
        user.is_held = name in self._sequencer.due
        return user

    def _save_user(self, batch: WriteBatch, user: User) -> None:
        key, sequencer = user.name.encode(), self._sequencer
        self._save_columns(batch, user, key)
        batch.put(b"u" + key, user.encode())
        due_ms = sequencer.due.get(user.name)
        if due_ms is not None:
            batch.put(b"o" + key, _HELD.pack(due_ms, *sequencer.uncovered.get(user.name, (-1, 0))))
        elif user.is_held:
            batch.delete(b"o" + key)
        user.is_held = due_ms is not None

    def _save_columns(self, batch: WriteBatch, user: User, key: bytes) -> None:
        length = self._sequence.segment_len
        for segment in self._segments(max(user.saved_upto, user.start), user.num_sealed):
            first, last = max(segment * length, user.start), min((segment + 1) * length, user.num_sealed)
            batch.put(_segment_key(key, segment), b"".join(user.columns(first, last)))
        for segment in self._segments(user.saved_start, min(user.saved_upto, user.start // length * length)):
            batch.delete(_segment_key(key, segment))
        user.saved_start, user.saved_upto = user.start, user.num_sealed

    def _segments(self, first: int, last: int) -> range:
        """Segments that hold the interactions ``first`` … ``last - 1``."""
        length = self._sequence.segment_len
        return range(first // length, -(-last // length)) if last > first else range(0)

    # Opening and closing

    def close(self) -> None:
        """Give the folder back. Idempotent."""
        self._db.close()

    def _start(self) -> None:
        meta = self._read_meta()
        self._is_new = meta is None
        if meta is None and next(self._db.under(b""), None) is not None:
            self._db.wipe()  # a restore that did not end
        self._meta = meta or _Meta(self._shape)
        names = Names(lambda item: self._db.get(_name_key(item)) is not None)
        sequencer = Sequencer(self._action, self._sequence, self.partition, load=self._load_user, names=names)
        sequencer.applied_offset, sequencer.applied_record_ms = self._meta.applied_offset, self._meta.applied_record_ms
        sequencer.clock_ms, sequencer.counts = self._meta.clock_ms, self._meta.counts
        sequencer.counted_offset, sequencer.next_number = self._meta.counted_offset, self._meta.next_number
        sequencer.writer_epoch = self._meta.writer_epoch
        self._sequencer = sequencer
        self._hold_open()

    def _hold_open(self) -> None:
        """Put the index of open interactions back into memory: as much work as there are users who hold any."""
        held = [(key[1:].decode(), *_HELD.unpack(value)) for key, value in self._db.under(b"o")]
        for name, due_ms, offset, clock_ms in sorted(held, key=lambda one: one[2]):
            self._sequencer.hold(name, due_ms, None if offset < 0 else (offset, clock_ms))

    def _read_meta(self) -> _Meta | None:
        stored = self._db.get(_META)
        if stored is None:
            return None
        try:
            meta = msgspec.msgpack.decode(stored, type=_Meta)
        except msgspec.DecodeError as error:
            raise self._corrupt("its description", str(error)) from error
        self._check_shape(meta.shape)
        return meta

    def _check_shape(self, stored: _Shape) -> None:
        """Kinds may be added at the end; nothing else of what is in the bytes may change."""
        ours = self._shape
        for field in stored.__struct_fields__:
            was, now = getattr(stored, field), getattr(ours, field)
            if was != now and not (field == "kinds" and now[: len(was)] == was):
                raise StoreMismatch(
                    f"{self.path}: expected {field} {was!r} as it was written, got {now!r}; "
                    "put the configuration back, or use another store.path and kafka.prefix"
                )

    def _put_meta(self, batch: WriteBatch, **changes: int) -> None:
        sequencer, old = self._sequencer, self._meta
        waiting = {
            name: changes.get(name, getattr(old, name))
            for name in ("outbox_first", "outbox_next", "relayed_number", "sequences_offset")
        }
        self._meta = _Meta(
            self._shape, sequencer.applied_offset, sequencer.applied_record_ms, sequencer.clock_ms,
            sequencer.counted_upto, sequencer.counts, sequencer.next_number, sequencer.writer_epoch, **waiting,
        )  # fmt: skip
        batch.put(_META, msgspec.msgpack.encode(self._meta))

    def _corrupt(self, what: str, got: str) -> StoreCorrupt:
        return StoreCorrupt(
            f"{self.path}: expected intact state, {what} is damaged ({got}); "
            "remove the folder, it is restored from Kafka"
        )


def _outbox_key(index: int) -> bytes:
    return b"x" + index.to_bytes(8, "big")


def _name_key(item_hash: int) -> bytes:
    return b"n" + item_hash.to_bytes(8, "big", signed=True)


def _segment_key(user_key: bytes, segment: int) -> bytes:
    return b"s" + user_key + segment.to_bytes(4, "big")
