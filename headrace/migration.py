"""Reads a deployment's users from its topics, and makes the examples that migrate them to other partitions.

Each partition is restored as a worker with a wiped disk would restore it (`state.restore`), and the actions that no
example covers are applied again; if that emits anything, the deployment was not drained. Each kept segment of a user
then becomes one example, as a compacted topic would hold it, but numbered in the user's new partition and belonging to
no action (`Example.is_migrated`). So the new workers restore users in the usual way, including the ids by which
repeated actions are recognised, and the trainer learns nothing twice.

The examples of a partition depend on the old topics alone. So an interrupted migration can start over, and finds the
examples that it has written already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from kafka import KafkaConsumer

from headrace.config import Settings
from state.emitter import Draft, Emitter
from state.names import Names
from state.store import PartitionStore
from wire.errors import HeadraceError
from wire.example import Example, Mark
from wire.example_codec import pack
from wire.example_reader import ExampleReader
from wire.hashing import canonical, item_hash
from wire.kafka.beginning import removed
from wire.kafka.consumer import Span, connect, read, spans
from wire.partitioner import partition_of
from wire.topics import Topics, example_key

EPOCH = 1
"""The writer epoch of migrated examples; the first worker takes the next one."""
BATCH_RECORDS = 500


class NotDrained(HeadraceError):
    """The old deployment has not processed all of its actions."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a deployment stands at its end."""

    folder: Path
    """A database of each partition (`PartitionStore`)."""
    numbers: dict[int, int]
    """Partition → the next example's number."""
    ends: dict[int, int]
    """Partition → where its actions end."""
    num_waiting: int
    """Interactions that are newer than what the trainer has learned."""


def restore(settings: Settings, folder: Path, learned_ms: float = math.inf) -> Source:
    """Rebuild every partition of a deployment in ``folder``, without those that were added. Raises `NotDrained`.

    ``learned_ms``: the Kafka timestamp up to which actions are learned.
    """
    topics, consumer = Topics.under(settings.kafka.prefix), connect(settings.kafka)
    try:
        examples, actions = spans(consumer, topics.sequences), spans(consumer, topics.actions)
        if why := removed(topics.sequences, {number: span.first for number, span in examples.items()}):
            raise HeadraceError(why)
        rebuilt = {
            number: _rebuild(settings, folder, number, consumer, span, actions[number], learned_ms)
            for number, span in sorted(examples.items())
            if number < settings.kafka.partitions
        }
        numbers = {number: next_number for number, (next_number, _) in rebuilt.items()}
        ends = {number: span.end for number, span in actions.items()}
        return Source(folder, numbers, ends, sum(num for _, num in rebuilt.values()))
    finally:
        consumer.close()


def opened(settings: Settings, folder: Path, number: int) -> PartitionStore:
    """The database of a partition, as `restore` left it."""
    store = replace(settings.store, fsync=False)
    kafka = settings.kafka
    return PartitionStore.open(
        folder / str(number), number, settings.action, settings.sequence, store, num_partitions=kafka.partitions,
        topic=Topics.under(kafka.prefix).actions,
    )  # fmt: skip


def _rebuild(
    settings: Settings, folder: Path, number: int, consumer: KafkaConsumer, examples: Span, actions: Span,
    learned_ms: float,
) -> tuple[int, int]:  # fmt: skip
    """The next example's number, and how many interactions are newer than ``learned_ms``."""
    topics, store, num_waiting = Topics.under(settings.kafka.prefix), opened(settings, folder, number), 0

    def kept() -> Iterator[Example]:
        nonlocal num_waiting
        decoder = ExampleReader(topics.sequences)
        for record in read(consumer, topics.sequences, {number: examples}):
            if (example := decoder.read(number, record.offset, record.value)) is not None:
                num_waiting += example.num_new if example.newest_record_ms > learned_ms else 0
                yield example

    try:
        store.restore(kept())
        next_number = store.next_number
        rest = Span(max(actions.first, store.applied_offset + 1), actions.end)
        actions_left = read(consumer, topics.actions, {number: rest})
        while records := [
            (each.offset, each.timestamp, each.key, each.value) for each in islice(actions_left, BATCH_RECORDS)
        ]:
            store.apply(records)
        if store.next_number > next_number:
            raise NotDrained(
                f"{topics.actions} partition {number}: expected its worker to have applied all of it, but the last "
                f"actions lead to {store.next_number - next_number} examples that {topics.sequences} does not have; "
                "send the producers' actions to the new topics, and let the old worker run until `headrace lag` says "
                "that nothing is left"
            )
        return next_number, num_waiting
    finally:
        store.close()


class MigratedRecord(NamedTuple):
    """A record for the new sequences topic."""

    partition: int
    key: bytes
    value: bytes


class Migrator:
    """Turns the old partitions into records of the new ones, always in the same order."""

    def __init__(self, old: Settings, new: Settings, source: Source) -> None:
        self._old, self._source, self._sequence = old, source, new.sequence
        self._num_partitions = new.kafka.partitions
        self._emitters = [
            Emitter(new.action, new.sequence, number, None, Names()) for number in range(self._num_partitions)
        ]
        self._newest_ms = [-1] * self._num_partitions

    def records(self) -> Iterator[MigratedRecord]:
        """All of them."""
        for number in sorted(self._source.numbers):
            store = opened(self._old, self._source.folder, number)
            try:
                yield from self._users(store)
                yield from self._forgotten_items(store)
            finally:
                store.close()

    def _users(self, store: PartitionStore) -> Iterator[MigratedRecord]:
        record_ms, length = store.status().applied_record_ms, self._sequence.segment_len
        for user in store.users.everyone():
            user.offset = user.index = -1
            number, last = self._home_of(user.name), user.tail.index
            emitter = self._emitters[number]
            self._newest_ms[number] = max(self._newest_ms[number], user.tail.times[-1])
            for index in range(user.first_segment, last + 1):
                end = len(user.tail) if index == last else length
                draft = emitter.draft(user, index, 0, end, 0, record_ms, {})
                emitter.next_number += 1
                yield self._record(draft)

    def _forgotten_items(self, store: PartitionStore) -> Iterator[MigratedRecord]:
        for request in store.users.forget_requests():
            if not request.is_back:
                emitter = self._emitters[self._home_of(canonical(request.item))]
                record_ms, name = store.status().applied_record_ms, {item_hash(request.item): request.item}
                emitter.mark(Mark.ITEM, "", -1, record_ms, name)
                yield from map(self._record, emitter.drain())

    def _home_of(self, key: str) -> int:
        return partition_of(key.encode(), self._num_partitions)

    def _record(self, draft: Draft) -> MigratedRecord:
        header, columns = draft
        header.writer_epoch, header.newest_event_ms = EPOCH, self._newest_ms[header.partition]
        return MigratedRecord(
            header.partition, example_key(header.address, self._sequence.num_slots), pack(header, columns)
        )
