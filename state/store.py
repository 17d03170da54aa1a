"""One partition's sequences on disk: what the sequencer computes, made durable in one write batch a call.

One RocksDB a partition. Besides what `state.user_store` keeps of users, its keys are

    m               `state.meta.Meta`: where the partition is; absent until something was applied, restored or claimed
    t               ids of the topics that offsets here are of, with spaces between

and those of `state.outbox`. A batch changes users, names, outbox and ``m`` together or not at all. Sequences on
disk never disagree with the outbox or with the applied offset, whenever the process dies. `state.restore` says what
happens when the disk is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rocksdict import WriteBatch

from state.config import StoreConfig
from state.database import Database
from state.meta import Meta, Shape, decode_meta, encode_meta
from state.names import Names
from state.outbox import Outbox, OutboxEntry, stored_dead_letter
from state.restore import adopt_newest, rewind
from state.sequencer import Draft, Sequencer
from state.user_store import UserStore
from wire.action import Action, Rejection, decode_record
from wire.action_json import Order
from wire.config import ActionConfig, SequenceConfig, check_sizes
from wire.example import Address, Counts, Example
from wire.example_codec import pack
from wire.partitioner import partition_of
from wire.status import PartitionStatus
from wire.topics import example_key, keys_of_user

__all__ = ["ApplyResult", "OutboxEntry", "PartitionStore", "Record"]

Record = tuple[int, int, bytes | None, bytes | None]
"""Offset, Kafka timestamp in milliseconds, key, value."""
_META = b"m"
_TOPIC_IDS = b"t"


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
        self._shape = Shape.of(partition, num_partitions, action, sequence)
        self._meta = Meta(self._shape)
        self._sequencer = Sequencer(action, sequence, partition)
        self._is_new = True
        self._dead: dict[str, int] = {}
        self._db = Database(path, store)
        self._users = UserStore(self._db, partition, action, sequence)
        self._outbox = Outbox(self._db, sequence.num_slots)
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
        letters. Raises `wire.errors.StoreError` (its children say what is the matter).
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
            dead=dict(self._dead),
            **counts,
        )

    @property
    def topic_ids(self) -> tuple[str, ...]:
        """As given to `set_topic_ids`; none before."""
        return tuple((self._db.get(_TOPIC_IDS) or b"").decode().split(" "))

    def set_topic_ids(self, ids: tuple[str, ...]) -> None:
        """The broker's own ids of the topics that offsets in this store are of (empty where it gives none)."""
        batch = WriteBatch(raw_mode=True)
        batch.put(_TOPIC_IDS, " ".join(ids).encode())
        self._db.write(batch)

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
        if type(decoded[0]) is Order and (not decoded[0].user or self._is_ours(decoded[0].user)):
            self._obey(decoded[0], offset, record_ms, dead)
            return
        sequencer.advance(offset, record_ms)
        for index, one in enumerate(decoded):
            if type(one) is Action:
                if one.user in users or self._is_ours(one.user):
                    sequencer.apply(one, offset, record_ms, index)
                    continue
                one = self._wrong_partition(one, value or b"", index if len(decoded) > 1 else -1)
            elif type(one) is Order:
                one = self._wrong_partition(one, value or b"", -1)
            assert isinstance(one, Rejection)
            sequencer.reject()
            if offset > sequencer.counted_offset:
                self._dead[one.reason] = self._dead.get(one.reason, 0) + 1
            dead.append(stored_dead_letter(one, self._topic, self.partition, offset, record_ms))

    def _obey(self, order: Order, offset: int, record_ms: int, dead: list[bytes]) -> None:
        """Obey an order, in a write batch of its own: a restore that finds the marks there goes on behind it, and meets
        no action again that lies before."""
        sequencer = self._sequencer
        self._commit(sequencer.drain_drafts(), dead)
        dead.clear()
        sequencer.advance(offset, record_ms)
        num_slots, segment_len = self._sequence.num_slots, self._sequence.segment_len
        is_erased = sequencer.obey(order, record_ms)
        keys = keys_of_user(order.user, num_slots, segment_len) if is_erased else ()
        self._commit(sequencer.drain_drafts(), (), erased=order.user if is_erased else "", tombstones=keys)

    def _is_ours(self, user: str) -> bool:
        return self._num_partitions is None or partition_of(user.encode(), self._num_partitions) == self.partition

    def _wrong_partition(self, action: Action | Order, value: bytes, index: int) -> Rejection:
        home = partition_of(action.user.encode(), self._num_partitions or 1)
        if value.lstrip()[:1] == b"[":
            index = max(index, 0)
            value = bytes(msgspec.json.decode(value, type=list[msgspec.Raw])[index])
        message = (
            f"user {action.user[:40]!r}: expected in partition {home} of {self._num_partitions}, got {self.partition}; "
            "use the user as key and Kafka's murmur2 partitioner (librdkafka's default is another: set its option "
            "partitioner to murmur2_random)"
        )
        return Rejection("wrong_partition", message, index, value)

    def _commit(
        self, drafts: Sequence[Draft], dead: Iterable[bytes], *, erased: str = "", tombstones: Sequence[bytes] = ()
    ) -> None:
        """``erased``: a user who is removed. ``tombstones``: keys of the sequences topic; they go before the drafts."""
        batch = WriteBatch(raw_mode=True)
        sequencer, index = self._sequencer, self._meta.outbox_next
        if erased:
            self._users.erase(batch, erased)
        for key in tombstones:
            self._outbox.put_tombstone(batch, index, key, sequencer.applied_record_ms)
            index += 1
        for stored in dead:
            self._outbox.put_dead_letter(batch, index, stored)
            index += 1
        for header, columns in drafts:
            self._outbox.put_example(batch, index, header, pack(header, columns))
            index += 1
        for user in sequencer.changed.values():
            self._users.save(batch, user)
        self._users.save_names(batch, sequencer.names.fresh)
        self._users.save_orders(batch, sequencer.orders)
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
        sequencer.orders.clear()
        sequencer.names.fresh.clear()
        sequencer.names.shrink()

    # The outbox

    def outbox(self, start: int | None = None, limit: int = 1000) -> list[OutboxEntry]:
        """Up to ``limit`` records to produce, oldest first, from index ``start`` on; examples carry `writer_epoch`.

        An example never comes in the same answer as a dead letter before it: acknowledge an answer before you ask for
        the next, and an example in the topic proves that the dead letters before it are in theirs.
        """
        first = max(start or 0, self._meta.outbox_first)
        return self._outbox.read(range(first, min(self._meta.outbox_next, first + limit)), self.writer_epoch)

    def ack(self, upto: int, sequences_offset: int = 0) -> None:
        """The broker has every entry up to index ``upto``: delete them. ``sequences_offset``: where in the sequences
        partition a reader of what others write goes on."""
        meta = self._meta
        done = range(meta.outbox_first, min(upto + 1, meta.outbox_next))
        number = self._outbox.newest_number(done, self.writer_epoch)
        batch = WriteBatch(raw_mode=True)
        self._outbox.delete(batch, done)
        self._put_meta(
            batch, outbox_first=max(done.start, done.stop), relayed_number=max(meta.relayed_number, number),
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

    # Restoring

    def restore(self, examples: Iterable[Example]) -> int:
        """Start again from the partition's records in the sequences topic, read from its beginning: wipe the database,
        take each key's newest example. Returns how many were accepted (`wire.example_log.ExampleLog`).

        Afterwards apply the actions behind `applied_offset`, which lies before what the lost store had reached. Takes
        as much memory as one write batch. A crash in the middle leaves a store that `is_new`.
        """
        self._db.wipe()
        self._start()
        try:
            restored = adopt_newest(self._db, self._users, examples)
            if restored.newest is not None:
                rewind(self._sequencer, restored)
                self._meta.relayed_number = self._sequencer.next_number - 1
                self._commit((), ())
        except BaseException:
            self._db.close()
            raise
        return restored.num_examples

    def refresh(self, overwritten: Iterable[Address], buried: Iterable[Address] = ()) -> int:
        """Put examples of what lies under these addresses' keys into the outbox, though nothing in them is new: the
        answer to `ExampleLog`. Returns under how many of them anything does. What was written over the tombstone of a
        forgotten user goes again."""
        sequencer = self._sequencer
        overwritten = list(overwritten)
        strays = [each for each in overwritten if each.user and not sequencer.knows(each.user)]
        num_written = sum(map(sequencer.refresh, (*overwritten, *buried)))
        if num_written or strays:
            keys = [example_key(each, self._sequence.num_slots) for each in strays]
            self._commit(sequencer.drain_drafts(), (), tombstones=keys)
        return num_written

    def read_user(self, name: str) -> list[Example]:
        """A user as he is now: his segments, oldest first, as examples that teach nothing."""
        user = self._sequencer.users.get(name) or self._users.load(name)
        return [] if user is None else self._sequencer.kept(user)

    # Opening and closing

    def close(self) -> None:
        """Give the folder back. Idempotent."""
        self._db.close()

    def _start(self) -> None:
        stored = self._db.get(_META)
        meta = None if stored is None else decode_meta(stored, self.path)
        if meta is not None:
            self._shape.check(meta.shape, self.path)
        self._is_new = meta is None
        if meta is None and next(self._db.under(b""), None) is not None:
            self._db.wipe()  # a restore that did not end
        self._meta = meta or Meta(self._shape)
        self._dead = dict(self._meta.dead)
        self._outbox.forget()
        names = Names(self._users.is_named)
        self._sequencer = Sequencer(self._action, self._sequence, self.partition, stored=self._users, names=names)
        self._sequencer.resume(
            applied_offset=self._meta.applied_offset,
            applied_record_ms=self._meta.applied_record_ms,
            newest_event_ms=self._meta.newest_event_ms,
            counted_offset=self._meta.counted_offset,
            counts=self._meta.counts,
            next_number=self._meta.next_number,
            writer_epoch=self._meta.writer_epoch,
        )

    def _put_meta(self, batch: WriteBatch, **changes: int) -> None:
        sequencer, old = self._sequencer, self._meta
        waiting = {
            name: changes.get(name, getattr(old, name))
            for name in ("outbox_first", "outbox_next", "relayed_number", "sequences_offset")
        }
        self._meta = Meta(
            self._shape, sequencer.applied_offset, sequencer.applied_record_ms, sequencer.newest_event_ms,
            sequencer.counted_upto, sequencer.counts, sequencer.next_number, sequencer.writer_epoch, **waiting,
            dead=self._dead,
        )  # fmt: skip
        batch.put(_META, encode_meta(self._meta))
