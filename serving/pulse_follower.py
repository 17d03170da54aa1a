"""Reads the lag, status and dead-letter topics for the page."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, ClassVar

from kafka import KafkaConsumer, TopicPartition

from serving.pulse import Pulse, Served
from serving.topic_follower import TopicFollower
from wire.kafka.consumer import POLL_MS, ends, partitions_of
from wire.topics import Topics

EVERY_S = 1.0
NUM_LETTERS = 1000
"""How many of the newest dead letters are read for their reasons when a server starts."""


class PulseFollower(TopicFollower):
    """Feeds a `Pulse` from the topics and samples it. While the broker or a topic is not there, the last known state is
    sampled.

    ``topics``: those of the line of training that is followed now; if they become others, these are read instead.
    """

    what: ClassVar[str] = "the page's topics cannot be followed now"

    def __init__(self, connect: Callable[[], KafkaConsumer], topics: Callable[[], Topics], pulse: Pulse,
                 served: Callable[[], Served]) -> None:  # fmt: skip
        super().__init__("pulse", connect)
        self._topics_now, self._pulse, self._served = topics, pulse, served
        self._topics = topics()
        self._due_s = 0.0
        self._ends: dict[str, int] = {}
        """Where the topics ended at first; records before that are not new."""

    def follow(self, consumer: KafkaConsumer) -> None:
        """Read the topics until they are others."""
        topics = self._topics = self._topics_now()
        kept = {topics.lag: 1, topics.status: 1000, topics.dead_letters: NUM_LETTERS}
        placed: list[TopicPartition] = [each for topic in kept for each in partitions_of(consumer, topic)]
        first, end = consumer.beginning_offsets(placed), ends(consumer, placed)
        self._ends = {each.topic: offset for each, offset in end.items()}
        for each in placed:
            start = max(first[each], end[each] - kept[each.topic])
            consumer.seek(each, start)
            if each.topic == topics.dead_letters:
                self._pulse.note_earlier_letters(start)
        while not self.stopping.is_set() and self._topics_now() == topics:
            for record in itertools.chain.from_iterable(consumer.poll(timeout_ms=POLL_MS).values()):
                self._note(record)
            self._sample()

    def _note(self, record: Any) -> None:
        if record.topic == self._topics.lag:
            self._pulse.note_lag(record.value)
        elif record.topic == self._topics.status and record.value is not None:
            if record.offset < self._ends[record.topic]:
                self._pulse.note_status(record.value)
            else:
                self._pulse.hear_status(record.value, int(time.time() * 1000))
        elif record.topic == self._topics.dead_letters:
            self._pulse.note_letter(record.headers)

    def failed(self) -> None:
        """Show the last known state."""
        self._sample()

    def _sample(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + EVERY_S
            self._pulse.sample(self._served(), int(time.time() * 1000))
