"""Reads the lag, status and dead-letter topics for the page, in a thread with its own consumer."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from serving.pulse import Pulse, Served
from wire.errors import HeadraceError
from wire.kafka.consumer import POLL_MS, ends
from wire.kafka.retry import StoppedError, wait_for_partitions
from wire.topics import Topics

logger = logging.getLogger(__name__)
EVERY_S = 1.0
NUM_LETTERS = 1000
"""How many of the newest dead letters are read for their reasons when a server starts."""


class PulseFollower(threading.Thread):
    """Feeds a `Pulse` from the topics and samples it. While the broker is away, the last known state is sampled.

    ``topics``: those of the line of training that is followed now; if they become others, these are read instead.
    """

    def __init__(self, connect: Callable[[], KafkaConsumer], topics: Callable[[], Topics], pulse: Pulse,
                 served: Callable[[], Served]) -> None:  # fmt: skip
        super().__init__(name="pulse", daemon=True)
        self._connect, self._topics_now, self._pulse, self._served = connect, topics, pulse, served
        self._topics = topics()
        self._stopping = threading.Event()
        self._due_s = 0.0
        self._ends: dict[str, int] = {}
        """Where the topics ended at first; records before that are not new."""

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._stopping.set()

    def run(self) -> None:
        """Follow until stopped."""
        told = ""
        while not self._stopping.is_set():
            try:
                consumer = self._connect()
                try:
                    self._follow(consumer)
                finally:
                    consumer.close()
            except StoppedError:
                return
            except (KafkaError, OSError, HeadraceError) as error:
                level, told = logging.DEBUG if str(error) == told else logging.WARNING, str(error)
                logger.log(level, "the page's topics cannot be followed now (%s); trying again", error)
                self._sample()
                self._stopping.wait(EVERY_S)
            except Exception:
                logger.exception("following the page's topics failed; starting again")
                self._stopping.wait(EVERY_S)

    def _follow(self, consumer: KafkaConsumer) -> None:
        topics = self._topics = self._topics_now()
        kept = {topics.lag: 1, topics.status: 1000, topics.dead_letters: NUM_LETTERS}
        placed: list[TopicPartition] = [
            each for topic in kept for each in wait_for_partitions(consumer, topic, self._stopping)
        ]
        first, end = consumer.beginning_offsets(placed), ends(consumer, placed)
        self._ends = {each.topic: offset for each, offset in end.items()}
        for each in placed:
            start = max(first[each], end[each] - kept[each.topic])
            consumer.seek(each, start)
            if each.topic == topics.dead_letters:
                self._pulse.note_earlier_letters(start)
        while not self._stopping.is_set() and self._topics_now() == topics:
            try:
                batches = consumer.poll(timeout_ms=POLL_MS)
            except KafkaError as error:
                logger.debug("pulse: %s", error)
                batches = {}
                self._stopping.wait(POLL_MS / 1000)
            for record in itertools.chain.from_iterable(batches.values()):
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

    def _sample(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + EVERY_S
            self._pulse.sample(self._served(), int(time.time() * 1000))
