"""One partition's sequences on disk: what the sequencer computes, made durable in one write batch per call.

Each partition has its own RocksDB. Its keys are those of `state.user_store`, `state.outbox` and `state.meta_store`.

A batch changes users, names, outbox and metadata together or not at all, so sequences on disk never disagree with the
outbox or with the applied offset, whenever the process dies. `state.restore` says what happens when the disk is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rocksdict import WriteBatch

from state.batch_applier import ApplyResult, BatchApplier, Record, records_after
from state.compiled import CompiledUsers, rules_of
from state.config import StoreConfig
from state.database import Database
from state.day_store import DayStore
from state.intake import Intake
from state.meta import Shape
from state.meta_store import MetaStore
from state.names import Names
from state.outbox import Outbox, OutboxEntry
from state.restore import adopt_newest, rewind
from state.sequencer import Sequencer
from state.user_store import UserStore
from wire.config import ActionConfig, SequenceConfig, check_sizes
from wire.example import Address, Counts, Example
from wire.status import PartitionStatus
from wire.topics import example_key

__all__ = ["ApplyResult", "OutboxEntry", "PartitionStore", "Record"]


class PartitionStore:
    """A partition's sequences and outbox, made by `open`. For one thread at a time, in one process."""

    def __init__(
        self, path: Path, partition: int, action: ActionConfig, sequence: SequenceConfig, store: StoreConfig,
        num_partitions: int | None, topic: str,
    ) -> None:  # fmt: skip
        self.path = path
        self.partition = partition
        self._action = action
        self._sequence = sequence
        self._config = store
        self._num_partitions = num_partitions
        self._topic = topic
        self._is_new = True
        self._db = Database(path, store)
        self._meta = MetaStore(self._db, Shape.of(partition, num_partitions, action, sequence))
        self.users = self._users = UserStore(self._db, partition, action, sequence)
        self._outbox = Outbox(self._db, sequence.num_slots)
        self.days = DayStore(self._db)

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
        """Open the database in the folder ``path``; create it if necessary.

        With ``num_partitions``, users that do not hash to ``partition`` are refused. ``topic`` names the source in dead
        letters. Raises `state.errors.StoreError`; its subclasses say what is wrong.
        """
        action, sequence = action or ActionConfig(), sequence or SequenceConfig()
        check_sizes(action, sequence)
        opened = cls(Path(path), partition, action, sequence, store or StoreConfig(), num_partitions, topic)
        try:
            opened._db.open()
            opened._start()
        except BaseException:
            opened.close()
            raise
        return opened

    # Position and status

    @property
    def is_new(self) -> bool:
        """Whether nothing has ever been applied, restored or claimed here."""
        return self._is_new

    @property
    def applied_offset(self) -> int:
        """Highest offset applied; -1 before any. After `restore`, the worker continues from the next one."""
        return self._sequencer.applied_offset

    @property
    def reached(self) -> tuple[int, int]:
        """The `applied_offset`, and the Kafka timestamp of the record there; -1 if that is not known."""
        return self._sequencer.applied_offset, self._sequencer.applied_record_ms

    @property
    def next_offset(self) -> int:
        """The lowest offset that may hold a record which has not been applied."""
        return max(self.applied_offset + 1, self._meta.now.read_to)

    @property
    def counts(self) -> Counts:
        """What became of the partition's actions."""
        return self._sequencer.counts

    @property
    def next_number(self) -> int:
        """The number of the next example."""
        return self._sequencer.next_number

    @property
    def writer_epoch(self) -> int:
        """The epoch under which the outbox is produced."""
        return self._sequencer.writer_epoch

    @property
    def outbox_len(self) -> int:
        """Records waiting to be produced."""
        return self._meta.now.outbox_next - self._meta.now.outbox_first

    @property
    def sequences_offset(self) -> int:
        """The offset last given to `ack`: where reading of the sequences partition continues."""
        return self._meta.now.sequences_offset

    def status(self) -> PartitionStatus:
        """This partition's part of a worker's status."""
        waiting = self.outbox(limit=1) if self.outbox_len else []
        counts = self.counts._asdict()
        return PartitionStatus(
            applied_offset=self.applied_offset,
            applied_record_ms=self._sequencer.applied_record_ms,
            outbox_len=self.outbox_len,
            oldest_outbox_record_ms=waiting[0].record_ms if waiting else -1,
            relayed_number=self._meta.now.relayed_number,
            writer_epoch=self.writer_epoch,
            dead=dict(self._intake.dead),
            **counts,
        )

    @property
    def topic_ids(self) -> tuple[str, ...]:
        """The ids given to `set_topic_ids`; before that, a single empty one."""
        return self._meta.topic_ids

    def set_topic_ids(self, ids: tuple[str, ...]) -> None:
        """Record the broker's ids of the topics that this store's offsets belong to (empty if it gives none)."""
        batch = WriteBatch(raw_mode=True)
        self._meta.put_topic_ids(batch, ids)
        self._db.write(batch)

    # Applying

    def apply(self, records: Iterable[Record]) -> ApplyResult:
        """Apply records in the order of their offsets, in one write batch: all of it survives a crash, or none.

        Records at or below the applied offset are skipped, so repeating them does no harm. A record that is not an
        action becomes a dead letter. Raises `StoreError` and closes the store, because memory is then ahead of the
        disk: open it again.
        """
        # Checked first: after a failure, memory is ahead of the disk, and lost records would count as applied.
        self._db.require_open()
        before, first_number = self.counts, self.next_number
        fresh = records_after(self.applied_offset, records)
        try:
            self.days.note(fresh)
            self._applier.apply(fresh)
        except BaseException:
            self._db.close()
            raise
        num_dead, num_examples = self.counts.num_dead - before.num_dead, self.next_number - first_number
        num_forgotten = self._applier.num_forgotten
        return ApplyResult(len(fresh), num_examples, num_dead, self.counts, self.applied_offset, num_forgotten)

    def pass_over(self, offset: int, *, at_once: bool = False) -> None:
        """Note, with the next write or ``at_once``, that nothing else is left to apply below ``offset``."""
        if offset <= self.next_offset:
            return
        self._meta.now.read_to = offset
        if at_once:
            batch = WriteBatch(raw_mode=True)
            self._put_meta(batch)
            self._db.write(batch)

    def _write(self, batch: WriteBatch, outbox_next: int) -> None:
        self._put_meta(batch, outbox_next=outbox_next)
        self._db.write(batch)
        self._is_new = False

    # The outbox

    def outbox(self, start: int | None = None, limit: int = 1000) -> list[OutboxEntry]:
        """Up to ``limit`` records to produce, oldest first, from index ``start`` on; examples carry `writer_epoch`.

        No result contains an example after a dead letter. So if each result is acknowledged before the next is asked
        for, an example in its topic proves that the dead letters before it are in theirs.
        """
        first = max(start or 0, self._meta.now.outbox_first)
        return self._outbox.read(range(first, min(self._meta.now.outbox_next, first + limit)), self.writer_epoch)

    def ack(self, upto: int, sequences_offset: int = 0) -> None:
        """Delete the entries up to index ``upto``: the broker has them. ``sequences_offset``: where in the sequences
        partition to continue looking for other writers' records."""
        meta = self._meta.now
        done = range(meta.outbox_first, min(upto + 1, meta.outbox_next))
        number = self._outbox.newest_number(done, self.writer_epoch)
        batch = WriteBatch(raw_mode=True)
        self._outbox.delete(batch, done)
        self._put_meta(
            batch, outbox_first=max(done.start, done.stop), relayed_number=max(meta.relayed_number, number),
            sequences_offset=max(meta.sequences_offset, sequences_offset),
        )  # fmt: skip
        self._db.write(batch)

    def ack_seen(self, number: int) -> None:
        """`ack` the entries up to the example of this ``number``, which was found in the sequences topic: what precedes
        it in the outbox was written before it, dead letters too."""
        waiting = range(self._meta.now.outbox_first, self._meta.now.outbox_next)
        self.ack(self._outbox.index_upto(number, waiting, self.writer_epoch))

    def set_writer_epoch(self, writer_epoch: int) -> None:
        """Write under this epoch from now on, including what waits in the outbox."""
        self._sequencer.writer_epoch = writer_epoch
        batch = WriteBatch(raw_mode=True)
        self._put_meta(batch)
        self._db.write(batch)
        self._is_new = False

    # Restoring

    def restore(self, examples: Iterable[Example]) -> int:
        """Wipe the database and rebuild it from the partition's records in the sequences topic, read from its start.
        Returns how many were accepted (`wire.example_log.ExampleLog`).

        Afterwards, apply the actions after `applied_offset`, which is lower than the lost store's was. Takes as much
        memory as one write batch. A crash in the middle leaves a store that `is_new`.
        """
        self._db.wipe()
        self._start()
        try:
            restored = adopt_newest(self._db, self._users, self.days, examples)
            if restored.newest is not None:
                rewind(self._sequencer, restored)
                self._meta.now.relayed_number = self._sequencer.next_number - 1
                self._applier.commit((), ())
        except BaseException:
            self._db.close()
            raise
        return restored.num_examples

    def refresh(self, overwritten: Iterable[Address], buried: Iterable[Address] = ()) -> int:
        """Put the current records of these addresses into the outbox again, with nothing new in them, as `ExampleLog`
        requires. Returns how many of the addresses have a record. An address of a forgotten user, whose tombstone was
        written over, gets another tombstone."""
        sequencer = self._sequencer
        overwritten = list(overwritten)
        strays = [each for each in overwritten if each.user and not sequencer.knows(each.user)]
        num_written = sum(map(sequencer.refresh, (*overwritten, *buried)))
        if num_written or strays:
            keys = [example_key(each, self._sequence.num_slots) for each in strays]
            self._applier.commit(sequencer.drain_drafts(), (), tombstones=keys)
        return num_written

    # Opening and closing

    def close(self) -> None:
        """Release the folder. Idempotent."""
        self._db.close()

    def _start(self) -> None:
        self._is_new = not self._meta.load(self.path)
        if self._is_new and next(self._db.under(b""), None) is not None:
            self._db.wipe()  # an interrupted restore
        self._outbox.forget()
        self.days.load()
        names = Names(self._users.names.is_named)
        self._sequencer = Sequencer(self._action, self._sequence, self.partition, stored=self._users, names=names)
        self._sequencer.resume(self._meta.now.position)
        self._intake = Intake(
            self._sequencer, self._action, self.partition, self._num_partitions, self._topic, self._meta.now.dead
        )
        compiled = None
        if self._config.backend == "cpp":
            rules = rules_of(self._action, self._sequence, self.partition, self._num_partitions)
            compiled = CompiledUsers(rules, self._users, names)
        self._applier = BatchApplier(
            self._sequencer, self._intake, compiled, self._users, self._outbox, self._sequence,
            self._config.max_cached_users, lambda: self._meta.now.outbox_next, self._write,
        )  # fmt: skip

    def _put_meta(self, batch: WriteBatch, **changes: int) -> None:
        self._meta.put(batch, self._sequencer.position, self._intake.dead, **changes)
