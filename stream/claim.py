"""Claiming a partition: fence off the previous writer, then make the store agree with the sequences topic.

The topic is the source of truth. A store whose last known position is followed only by its own records is used as it
is, and those records leave its outbox. A store that another writer has overtaken, or one on a wiped disk, is rebuilt
from each key's newest example. Everything here runs in a thread, on a plain consumer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError

from state.errors import StoreMismatch
from state.store import PartitionStore
from stream.config import Settings
from stream.logs import log
from wire.errors import TopicReplaced
from wire.example import Example, fence
from wire.example_codec import MAX_NUMBER, encode_example
from wire.example_log import ExampleLog, Verdict
from wire.example_reader import ExampleReader
from wire.kafka.beginning import removed
from wire.kafka.consumer import ANSWER_S, STALL_S, ends, make_consumer
from wire.kafka.identity import check_same, record_ms_at
from wire.shape import SHAPE, disagreement, encode_shape, shape_of
from wire.topics import Topics, address_of_key, example_key, fence_key

Headers = Sequence[tuple[str, bytes]]
WriteFence = Callable[[int, bytes, bytes, Headers], int]
"""Writes (partition, key, value, headers) to the sequences topic and returns the record's offset; -1 if the broker does
not say it."""
ACTIONS_ID = "actions"
"""Header of a fence: the id of the actions topic that offsets in the examples after it refer to."""


class TopicIds(NamedTuple):
    """The broker's ids of the topics that a store's offsets refer to; empty if it gives none."""

    actions: str
    sequences: str


class Overtaken(Exception):
    """The topic holds examples of this partition that the store did not write."""


class Abandoned(Exception):
    """The partition was assigned to another worker while it was being claimed."""


@dataclass(frozen=True)
class Claim:
    """A claimed partition: ours under ``log.writer_epoch``, from ``position`` in the sequences partition on."""

    store: PartitionStore
    position: int
    log: ExampleLog
    was_restored: bool
    """Whether the store was rebuilt from examples."""


def open_store(settings: Settings, number: int) -> PartitionStore:
    """This worker's database of a partition, created if necessary."""
    kafka = settings.kafka
    return PartitionStore.open(
        store_path(settings, number), number, settings.action, settings.sequence, settings.store,
        num_partitions=kafka.partitions, topic=Topics.under(kafka.prefix).actions,
    )  # fmt: skip


def store_path(settings: Settings, number: int) -> Path:
    """Where that database is."""
    return Path(settings.store.path) / f"{settings.kafka.prefix}-{number}"


def claim(
    settings: Settings,
    number: int,
    store: PartitionStore | None,
    ids: TopicIds,
    write_fence: WriteFence,
    closing: threading.Event,
) -> Claim:
    """Claim a partition; ``store`` is the one already open, or None. Blocks, so run it in a thread; it ends early when
    ``closing`` is set.

    Raises `state.errors.StoreError` for a database that cannot be used, `wire.errors.TopicReplaced` if its offsets
    refer to other topics, ``KafkaError`` when the broker is away.
    """

    def reader(start: int) -> _Reader:
        return _Reader(settings, number, start, ids, write_fence, closing)

    store = store or open_store(settings, number)
    try:
        claimed = None
        if not store.is_new:
            _check_ids(settings, store, ids)
            try:
                claimed = _resume(store, reader(store.sequences_offset))
            except Overtaken as error:
                log.warning("store was overtaken and is rebuilt", partition=number, why=str(error))
        claimed = claimed or _restore(store, reader(0))
        check_reached(settings, store.partition, *store.reached)
        store.set_topic_ids(tuple(ids))
        return claimed
    except BaseException:
        store.close()
        raise


def remedies(settings: Settings) -> dict[str, str]:
    """Topic → what to do if it has been replaced by another one of that name."""
    topics = Topics.under(settings.kafka.prefix)
    anew = (
        "Users' sequences refer to offsets of the old one. Start over under another kafka.prefix; or stop every "
        f"process, delete all topics of this deployment, {settings.store.path} and the trainer's checkpoints, and start"
    )
    again = f"Stop the workers and remove {settings.store.path}: sequences are then rebuilt from the actions"
    return {topics.actions: anew, topics.sequences: again}


def _check_ids(settings: Settings, store: PartitionStore, ids: TopicIds) -> None:
    topics, known = Topics.under(settings.kafka.prefix), store.topic_ids
    for name, before, now in zip((topics.actions, topics.sequences), known, ids, strict=False):
        position = _position(store.partition, store.applied_offset)
        check_same(name, before, now, position, remedies(settings)[name])


def _position(partition: int, applied_offset: int) -> str:
    return f"partition {partition}, applied up to offset {applied_offset}"


def check_reached(settings: Settings, partition: int, applied_offset: int, record_ms: int) -> None:
    """Raise `TopicReplaced` if the actions topic ends before what was applied, or has another record there: new records
    at those offsets would be skipped. A broker whose data was restored from an older copy has the same topics, by their
    ids too. ``record_ms``: the Kafka timestamp of the record that was applied last; -1 if unknown."""
    topic = Topics.under(settings.kafka.prefix).actions
    where, position = TopicPartition(topic, partition), _position(partition, applied_offset)
    consumer = make_consumer(settings.kafka, max_partition_fetch_bytes=1)
    try:
        end = ends(consumer, [where])[where]
        found_ms = record_ms_at(consumer, where, applied_offset, record_ms) if end > applied_offset else record_ms
    finally:
        consumer.close()
    what = f"it ends at {end}" if end <= applied_offset else "another record is there" if found_ms != record_ms else ""
    if what:
        raise TopicReplaced(
            f"topic {topic}: expected it to reach beyond {position}, but {what}: records were lost, or it is another "
            f"topic. {remedies(settings)[topic]}"
        )


def _resume(store: PartitionStore, reader: _Reader) -> Claim:
    reader.log = ExampleLog(None, writer_epoch=store.writer_epoch, allow_gaps=True)
    for example in reader.examples():
        if example.writer_epoch != store.writer_epoch or example.number >= store.next_number:
            raise Overtaken(f"example {example.number} of writer epoch {example.writer_epoch} is not this store's")
    # Sent again, they would be their keys' last records, and compaction would keep those, which readers skip.
    store.ack_seen(reader.log.last_number)
    return _claimed(store, reader, was_restored=False)


def _restore(store: PartitionStore, reader: _Reader) -> Claim:
    num_examples = store.restore(reader.examples())
    if num_examples:
        log.info("store rebuilt", partition=store.partition, num_examples=num_examples)
    return _claimed(store, reader, was_restored=num_examples > 0)


def _claimed(store: PartitionStore, reader: _Reader, *, was_restored: bool) -> Claim:
    store.set_writer_epoch(reader.log.writer_epoch)
    # Compaction would keep a fenced writer's record, a repeat or a tombstone, and drop the record that counts.
    store.refresh(sorted(reader.log.overwritten), sorted(reader.log.buried))
    return Claim(store, reader.position, ExampleLog(None, writer_epoch=reader.log.writer_epoch), was_restored)


class _Reader:
    """Reads a sequences partition from an offset up to a fence of our own, which it writes on the way."""

    def __init__(
        self,
        settings: Settings,
        partition: int,
        start: int,
        ids: TopicIds,
        write_fence: WriteFence,
        closing: threading.Event,
    ) -> None:
        self.log = ExampleLog(None, allow_gaps=True)
        self.position = start
        self._config = settings.kafka
        self._num_slots = settings.sequence.num_slots
        self._key = TopicPartition(Topics.under(settings.kafka.prefix).sequences, partition)
        self._ids, self._remedy = ids, remedies(settings)[Topics.under(settings.kafka.prefix).actions]
        self._write_fence = write_fence
        self._closing = closing
        self._actions_id = self._otherwise = ""
        self._shape = shape_of(settings.action, settings.sequence, settings.kafka.partitions)
        self._decoder = ExampleReader(self._key.topic, self._shape.columns)

    def examples(self) -> Iterator[Example]:
        """The accepted examples. Afterwards ``log.writer_epoch`` is ours and ``position`` is just after our fence."""
        consumer = make_consumer(self._config)
        try:
            consumer.assign([self._key])
            end = consumer.end_offsets([self._key], timeout_ms=round(ANSWER_S * 1000))[self._key]
            self._check_beginning(consumer)
            yield from self._read_to(consumer, end)
            self._check_actions()
            while True:
                epoch = self._next_epoch()
                value = encode_example(fence(self._key.partition, epoch))
                headers = [(ACTIONS_ID, self._ids.actions.encode()), (SHAPE, encode_shape(self._shape))]
                ours = self._write_fence(self._key.partition, fence_key(epoch), value, headers)
                if ours < 0:  # as a broker may answer to a repeat; the caller claims again, under the next epoch
                    raise KafkaError(f"{self._key.topic}: the broker did not say where it put a fence")
                if ours < self.position:
                    raise StoreMismatch(
                        f"partition {self._key.partition}: expected {self._key.topic} to reach {self.position}, "
                        f"but it ends at {ours}: not the topic that this store wrote to; remove the store's folder"
                    )
                yield from self._read_to(consumer, ours)
                # Another worker may have written a fence of this epoch just before: then the epoch is theirs.
                if self.log.writer_epoch < epoch:
                    self.log.writer_epoch, self.position = epoch, ours + 1
                    return
        finally:
            consumer.close()

    def _next_epoch(self) -> int:
        if self.log.writer_epoch >= MAX_NUMBER:
            raise StoreMismatch(
                f"{self._key.topic} partition {self._key.partition}: expected writer epochs below {MAX_NUMBER}, got "
                f"{self.log.writer_epoch}, above which there is none: a foreign record; use a new kafka.prefix"
            )
        return self.log.writer_epoch + 1

    def _check_beginning(self, consumer: KafkaConsumer) -> None:
        """What is restored from a topic without its start are sequences without theirs."""
        begin = consumer.beginning_offsets([self._key])[self._key]
        number = self._key.partition
        if why := removed(self._key.topic, {number: begin}, {number: self.position}):
            raise StoreMismatch(why)

    def _check_actions(self) -> None:
        """The last fence says which actions topic the offsets in these examples refer to."""
        topic = Topics.under(self._config.prefix).actions
        where = f"what the sequences of partition {self._key.partition} cover"
        check_same(topic, self._actions_id, self._ids.actions, where, self._remedy)
        if self._otherwise:
            raise StoreMismatch(
                f"{self._key.topic} partition {self._key.partition}: {self._otherwise} before; restore that (kinds "
                "may only be appended), or use a new kafka.prefix"
            )

    def _read_to(self, consumer: KafkaConsumer, stop: int) -> Iterator[Example]:
        """Accepted examples of ``position`` ≤ offset < ``stop``; compaction leaves gaps in the offsets."""
        consumer.seek(self._key, self.position)
        heard_s = time.monotonic()
        while consumer.position(self._key) < stop:
            if self._closing.is_set():
                raise Abandoned(f"partition {self._key.partition} was lost while it was being claimed")
            records = consumer.poll(500).get(self._key, ())
            if records:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > STALL_S:
                raise KafkaTimeoutError(f"{self._key.topic}: the broker sent nothing for {STALL_S:.0f} s")
            for record in records:
                if record.offset >= stop:
                    break
                example = self._decoder.read(self._key.partition, record.offset, record.value)
                if example is None:
                    if record.value is None:
                        self.log.bury(address_of_key(record.key or b""))
                    continue
                if example.is_fence and example.writer_epoch >= self.log.writer_epoch:
                    headers = dict(record.headers)
                    self._actions_id = (headers.get(ACTIONS_ID) or b"").decode(errors="replace")
                    self._otherwise = disagreement(headers.get(SHAPE), self._shape)
                if self.log.feed(example) is Verdict.ACCEPT:
                    self._check_key(example, record.key)
                    yield example
        self.position = max(self.position, stop)

    def _check_key(self, example: Example, key: bytes | None) -> None:
        """With another number of slots, compaction would remove segments that are still kept."""
        expected = example_key(example.address, self._num_slots)
        if key != expected:
            raise StoreMismatch(
                f"{self._key.topic}: expected key {expected!r} of segment {example.segment}, got {key!r}: it was "
                "written with another sequence.max_context; restore that, or use a new kafka.prefix"
            )
