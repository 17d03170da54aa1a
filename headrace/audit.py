"""The audit: verify from the topics alone that the promises held.

1. Nothing is lost: accepted + duplicate + dead-lettered = produced, and each dead letter is there.
2. Order and content: each user's interactions in the examples are what the actions say, in order, without gaps.
3. Trained exactly once: each interaction, and each kind that arrived for one later, is in one example; and the steps of
   the published weights' lineage contain each example once, in order.

It works on any deployment, running or not. What is still on its way is counted as such; what retention or compaction
has removed is left out, and the report says what share could be checked.
"""

from __future__ import annotations

import json
from typing import Any

from kafka import KafkaConsumer
from rich.console import Console

from headrace.config import Settings
from headrace.evidence import Evidence
from headrace.ledger import SequenceLedger
from headrace.recount import Recount
from headrace.report import Report, print_report
from stream.migration import migration_to
from wire.assembler import VersionAssembler
from wire.cluster import ClusterState
from wire.dead_letter import read_headers
from wire.errors import CodecError
from wire.example_reader import ExampleReader
from wire.kafka.beginning import removed
from wire.kafka.consumer import connect, read, spans, topic_id_of
from wire.shape import SHAPE, decode_shape, shape_of
from wire.topics import Topics


class Reader:
    """Reads the topics from the last stage to the first, so that whatever a later topic refers to is there."""

    def __init__(self, settings: Settings, consumer: KafkaConsumer) -> None:
        self._settings, self._consumer = settings, consumer
        self._topics = Topics.under(settings.kafka.prefix, settings.kafka.line)
        self._shape = shape_of(settings.action, settings.sequence)
        self._found = Evidence()

    def read(self) -> Evidence:
        """Read everything that the topics hold now."""
        self._read_statuses()
        self._read_weights()
        self._read_sequences()
        self._read_dead_letters()
        self._read_actions()
        return self._found

    def _records(self, topic: str) -> Any:
        return read(self._consumer, topic, spans(self._consumer, topic))

    def _read_statuses(self) -> None:
        cluster = ClusterState()
        for record in self._records(self._topics.status):
            cluster.note(record.value)
        self._found.statuses = {number: each for number, each in cluster.workers.items() if each.applied_offset >= 0}

    def _read_weights(self) -> None:
        assembler = VersionAssembler(on_drop=self._found.dropped.add)
        for record in self._records(self._topics.weights):
            version = assembler.feed(record.key, record.headers, record.value)
            if version is not None:
                self._found.plans.feed(version.manifest)

    def _read_sequences(self) -> None:
        held = spans(self._consumer, self._topics.sequences)
        self._found.sequences_id = topic_id_of(self._consumer, self._topics.sequences)
        self._found.cut = removed(self._topics.sequences, {number: span.first for number, span in held.items()})
        self._found.ledgers = {number: SequenceLedger(number) for number in held}
        decoder = ExampleReader(self._topics.sequences)
        for record in read(self._consumer, self._topics.sequences, held):
            try:
                example = decoder.read(record.partition, record.offset, record.value)
            except CodecError as error:
                self._found.unread.add(str(error))
                example = None
            ledger = self._found.ledgers[record.partition]
            if example is None:
                ledger.pass_over(record.offset)
            else:
                ledger.feed(record.offset, example)
                if example.is_fence and (shape := decode_shape(dict(record.headers).get(SHAPE))) is not None:
                    self._found.shapes.append(shape)
        self._found.num_foreign = decoder.num_foreign

    def _read_dead_letters(self) -> None:
        held, reasons = spans(self._consumer, self._topics.dead_letters), self._found.reasons_before(self._shape)
        self._found.dead_before = sum(span.first for span in held.values())
        for record in read(self._consumer, self._topics.dead_letters, held):
            letter = read_headers(record.headers)
            if letter.topic == self._topics.actions and min(letter.partition, letter.offset) >= 0:
                place = letter.partition, letter.offset, letter.index
                self._found.dead.add(place)
                if letter.reason in reasons:
                    self._found.refused_before.add(place)

    def _read_actions(self) -> None:
        held = spans(self._consumer, self._topics.actions)
        self._found.ends = {number: span.end for number, span in held.items()}
        # Migrated users cannot be followed once compaction has removed some of their records.
        is_continued = migration_to(self._settings.kafka) is not None
        num_partitions = self._found.num_partitions or len(self._found.ledgers)
        self._found.num_in_added = sum(span.end for number, span in held.items() if number >= num_partitions)
        self._found.whole = {
            number
            for number, span in held.items()
            if span.first == 0
            and number < num_partitions
            and not (is_continued and self._found.ledgers[number].num_missing)
        }
        for number in self._found.whole:
            recount = Recount(self._settings.action, self._settings.sequence, number, num_partitions)
            recount.refused_before = {
                (offset, index) for partition, offset, index in self._found.refused_before if partition == number
            }
            ledger = self._found.ledgers[number]
            status, last = self._found.statuses.get(number), ledger.last
            recount.watch = {status.applied_offset} if status else set()
            recount.watch |= {last.applied_offset} if last else set()
            recount.watch_users = {name: user.upto for name, user in ledger.users.items()}
            recount.watch_times, recount.resume_from = ledger.times, last.resume_from_offset if last else 0
            recount.start_from(ledger.migrated)
            self._found.recounts[number] = recount
        for record in read(
            self._consumer, self._topics.actions, {number: held[number] for number in self._found.whole}
        ):
            self._found.recounts[record.partition].feed(record)
        for recount in self._found.recounts.values():
            recount.end()


def audit(settings: Settings) -> Report:
    """Recount a deployment. Raises `BrokerUnavailable` or `TopicMissing`."""
    consumer = connect(settings.kafka)
    try:
        return Reader(settings, consumer).read().report()
    finally:
        consumer.close()


def show(settings: Settings, *, as_json: bool = False) -> int:
    """Print the report; exit status 1 on any violation."""
    report = audit(settings)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        print_report(report, Console())
    return 0 if report.passed else 1
