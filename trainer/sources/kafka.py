"""Examples from ``headrace.sequences.v1``: all partitions, from the trainer's own offsets, each number once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError

from trainer.errors import GapError, SourceError
from trainer.examples.histories import TrainedHistories
from trainer.sources.lessons import lessons_of
from trainer.sources.positions import GAP_REMEDY, REMEDY, check_ends, lost_end
from trainer.sources.source import Position, PositionTracker
from wire.config import KafkaConfig
from wire.errors import TopicMissing
from wire.example import Lesson, num_features_of
from wire.example_log import ExampleLog, Verdict
from wire.example_reader import ExampleReader
from wire.kafka.admin import partitions_added, partitions_mismatch
from wire.kafka.beginning import OUT_OF_RANGE, out_of_range, removed
from wire.kafka.consumer import make_consumer, partitions_of, topic_id_of
from wire.kafka.options import connections_made
from wire.kafka.refusal import refusal
from wire.kafka.retry import StoppedError, patiently
from wire.shape import SHAPE, Shape, disagreement
from wire.topics import Topics
from wire.weights import PlanStep

log = structlog.get_logger("trainer")
READING = {"metadata_max_age_ms": 5_000, "auto_offset_reset": "none"}
"""Whoever goes back to the start of a topic that lost its end takes other examples for repeats."""
GONE_S = 5.0
"""A topic that the broker has not known for this long is gone."""
RETRY_S = 0.2


class KafkaSource:
    """Reads from ``positions`` on; pauses a partition while ``max_buffered`` of its examples wait to be trained.

    Made by `open`.
    """

    def __init__(
        self, consumer: KafkaConsumer, partitions: list[TopicPartition], positions: dict[int, Position], *, on_gap: str,
        max_buffered: int, stop: threading.Event, shape: Shape | None = None, num_known: int = 0,
        check: Callable[[Mapping[int, Position]], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._consumer, self._partitions, self._topic = consumer, partitions, partitions[0].topic
        self._shape = shape
        self._on_gap, self.max_buffered = on_gap, max_buffered
        self._tracker = PositionTracker(dict(positions))
        self._stop = stop
        self._topic_id, self._num_known = "", num_known
        """The topic's id and number of partitions, once the broker has told them ("", 0)."""
        self._check, self._read_up_to, self._num_connections = check, dict[int, Position](), connections_made(consumer)
        self._last_missed_s = self._missing_since_s = -math.inf
        self._decoder = ExampleReader(self._topic, None if shape is None else shape.columns)
        self._num_columns = 0 if shape is None else shape.columns[0]
        """Columns of an interaction: those that are configured, or those of the last record that had any."""
        self._logs: dict[int, ExampleLog] = {}
        self._num_waiting: dict[int, int] = {}
        self.num_lost = self._num_gaps = self._num_told = 0
        for where in self._partitions:
            position = self.positions.setdefault(where.partition, Position())
            self._logs[where.partition] = ExampleLog(position.next_number, writer_epoch=position.writer_epoch)
            self._num_waiting[where.partition] = 0
            consumer.seek(where, position.next_offset)

    @classmethod
    def open(
        cls,
        kafka: KafkaConfig,
        positions: dict[int, Position],
        *,
        on_gap: str,
        max_buffered: int,
        stop: threading.Event,
        shape: Shape | None = None,
        despite_added: bool = False,
    ) -> KafkaSource:
        """Connect, and wait until the topic exists. Raises `wire.kafka.retry.StoppedError` once ``stop`` is set, and
        `wire.errors.TopicsMismatch`; ``despite_added``: not for a topic with more partitions, whose first it reads."""
        topic = Topics.under(kafka.prefix).sequences
        consumer = patiently(lambda: make_consumer(kafka, **READING), "reading examples", kafka, stop)
        try:
            partitions = patiently(lambda: _find(consumer, topic), "finding the sequences topic", kafka, stop)
            num, expected = len(partitions), kafka.partitions
            if num < expected or (num > expected and not despite_added):
                raise partitions_mismatch(topic, expected, num)
            partitions = [each for each in partitions if each.partition < expected]
            consumer.assign(partitions)
            return cls(
                consumer, partitions, positions, on_gap=on_gap, max_buffered=max_buffered, stop=stop, shape=shape,
                num_known=num, check=lambda read: check_ends(kafka, read, on_gap, stop),
            )  # fmt: skip
        except BaseException:
            consumer.close()
            raise

    @property
    def positions(self) -> dict[int, Position]:
        """After the last trained example of each partition."""
        return self._tracker.positions

    @property
    def exhausted(self) -> bool:
        """Never: a stream has no end."""
        return False

    def restore(self, histories: TrainedHistories) -> None:
        """Read the topic from its start up to the positions, and fold each example into ``histories``.

        A record that was superseded after a position is still there before it, unless compaction has run in between: so
        the histories are those of the checkpoint as long as the trainer is less than ``kafka.min_compaction_lag_s``
        behind, as it must be to miss no example. Takes 10 to 20 µs a record.
        """
        behind = {where: self.positions[where.partition].next_offset for where in self._partitions}
        logs = {where: ExampleLog(None, allow_gaps=True) for where in self._partitions}
        reading = [where for where in self._partitions if behind[where] > 0]
        self._consumer.seek_to_beginning(*reading) if reading else None
        begins = self._consumer.beginning_offsets(reading)
        if gone := removed(self._topic, {where.partition: begin for where, begin in begins.items()}):
            log.error("users' histories are not complete", why=gone)
        self._consumer.pause(*(where for where in self._partitions if where not in reading))
        while reading and not self._stop.is_set():
            for where, records in self._next(0.2).items():
                before = [record for record in records if record.offset < behind[where]]
                for _, lesson in self._read(where.partition, before):
                    if logs[where].feed(lesson) is Verdict.ACCEPT:
                        histories.restore(lesson)
            done = [where for where in reading if self._consumer.position(where) >= behind[where]]
            self._consumer.pause(*done)
            reading = [where for where in reading if where not in done]
        for where, offset in behind.items():
            self._consumer.seek(where, offset)
        self._consumer.resume(*self._partitions)
        log.info("histories restored", users=len(histories), bytes=histories.num_bytes)

    def poll(self, timeout_s: float) -> list[Lesson]:
        """The examples that have arrived; waits up to ``timeout_s`` for some."""
        for where in self._partitions:
            full = self._num_waiting[where.partition] >= self.max_buffered
            (self._consumer.pause if full else self._consumer.resume)(where)
        lessons, fetched = [], self._fetched(timeout_s)
        if fetched and not self._looks_back():
            return []
        for where, records in fetched.items():
            for record, lesson in self._read(where.partition, records):
                end = Position(lesson.number + 1, record.offset + 1, record_ms=record.timestamp)
                self._read_up_to[where.partition] = end
                if self._is_accepted(where.partition, record.offset, lesson):
                    self._tracker.add(lesson, record.offset, record.timestamp)
                    self._num_waiting[where.partition] += 1
                    lessons.append(lesson)
        if not lessons:
            self._tell_lost()
        return lessons

    def _fetched(self, timeout_s: float) -> dict[TopicPartition, list[Any]]:
        """Records by partition. Raises `SourceError` if the topic is gone."""
        fetched: dict[TopicPartition, list[Any]] = {}
        try:
            is_there = self._check_topic()
            fetched = self._next(timeout_s)
        except UnknownTopicOrPartitionError:
            is_there = False
        except KafkaError as error:
            raise refusal(error, str(self._consumer.config["bootstrap_servers"]), "reading") or error from error
        if fetched:
            self._last_missed_s = -math.inf
        elif not is_there:
            self._note_missing()
            self._stop.wait(min(timeout_s, RETRY_S))
        return fetched

    def _next(self, timeout_s: float) -> dict[TopicPartition, list[Any]]:
        """Records by partition, of one that lost its start from where it begins now. Raises `SourceError` if one has
        lost its end."""
        try:
            return dict(self._consumer.poll(timeout_ms=int(timeout_s * 1000)))
        except OUT_OF_RANGE as error:
            with suppress(KafkaTimeoutError):  # the next poll says so again
                later, cut = out_of_range(self._consumer, error)
                for where in cut:
                    position = self.positions[where.partition]
                    raise lost_end(where, position, "up to which it was learned", "its end is gone") from error
                for where, begin in later.items():
                    self._consumer.seek(where, begin)
            return {}

    def _looks_back(self) -> bool:
        """After each new connection, compare the topic with what was read before: one that was restored from an older
        copy may have grown again beyond that. False if the process has been asked to stop. Raises `SourceError`."""
        if (num := connections_made(self._consumer)) != self._num_connections:
            try:
                self._check(self._read_up_to)
            except StoppedError:
                return False
            self._num_connections = num
        return True

    def _note_missing(self) -> None:
        """The broker does not know the topic now: one that has just started may not know it yet."""
        now_s = time.monotonic()
        if now_s - self._last_missed_s > 2 * GONE_S:
            self._missing_since_s = now_s
        self._last_missed_s = now_s
        if now_s - self._missing_since_s > GONE_S:
            places = "; ".join(
                f"partition {partition}: example {each.next_number} at offset {each.next_offset}"
                for partition, each in sorted(self.positions.items())
            )
            raise SourceError(
                f"topic {self._topic}: expected it to exist still, but it is gone. Position: {places}. Once a worker "
                f"has created it again: {REMEDY[0].lower()}{REMEDY[1:]}"
            )

    def _check_topic(self) -> bool:
        """Whether the broker knows the topic.

        Raises `SourceError` if it was deleted and created again since the trainer began to read it, or has been given
        more partitions, which no trainer would read.
        """
        known = self._consumer.partitions_for_topic(self._topic)
        num_before, self._num_known = self._num_known, len(known or ()) or self._num_known
        if num_before not in (0, self._num_known):
            raise partitions_added(self._topic, num_before, self._num_known)
        before, self._topic_id = self._topic_id, topic_id_of(self._consumer, self._topic) or self._topic_id
        if before not in ("", self._topic_id):
            raise SourceError(
                f"{self._topic}: expected the topic with id {before}, which this trainer reads, got one with id "
                f"{self._topic_id}: it was deleted and created again. {REMEDY}"
            )
        return bool(known)

    def _tell_lost(self) -> None:
        """Log the total number lost on one line, once no more examples arrive."""
        if self._num_gaps > max(1, self._num_told):
            log.error("examples lost so far", num_examples=self.num_lost, num_gaps=self._num_gaps)
        self._num_told = self._num_gaps

    def _read(self, partition: int, records: Sequence[Any]) -> Iterator[tuple[Any, Lesson]]:
        """Decode records. Raises `SourceError` if a worker's fence gives its bits and columns another meaning."""
        for record, lesson in lessons_of(self._decoder, partition, records, self._num_columns):
            if lesson.is_fence and self._shape is not None:
                otherwise = disagreement(dict(record.headers).get(SHAPE), self._shape)
                if otherwise:
                    raise SourceError(
                        f"{self._topic} partition {partition} offset {record.offset}: {otherwise}; give every process "
                        "of a deployment the same configuration"
                    )
            if len(lesson.rows):
                self._num_columns = num_features_of(lesson.rows)
            yield record, lesson

    def _is_accepted(self, partition: int, offset: int, lesson: Lesson) -> bool:
        verdict = self._logs[partition].feed(lesson)
        if verdict is Verdict.GAP:
            self._meet_gap(partition, offset, lesson)
        return verdict in (Verdict.ACCEPT, Verdict.GAP)

    def _meet_gap(self, partition: int, offset: int, example: Lesson) -> None:
        gap = self._logs[partition].gap
        assert gap is not None
        what = (
            f"{self._topic} partition {partition} offset {offset}: expected example {gap.expected}, got {gap.got}; "
            f"{gap.got - gap.expected} were compacted or deleted before this trainer read them"
        )
        if self._on_gap == "stop":
            raise GapError(f"{what}. Raise kafka.min_compaction_lag_s; {GAP_REMEDY[0].lower()}{GAP_REMEDY[1:]}")
        self.num_lost += gap.got - gap.expected
        self._num_gaps += 1
        if self._num_gaps == 1:
            log.error("examples lost, going on without them", what=what)
        self._logs[partition].take(example)

    def trained(self, step: PlanStep) -> None:
        """Move the positions past a step's examples."""
        self._tracker.trained(step)
        for partition, first, last in step:
            self._num_waiting[partition] -= last - first + 1

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()


def _find(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    try:
        return partitions_of(consumer, topic)
    except TopicMissing as error:
        raise ConnectionError(str(error)) from error
