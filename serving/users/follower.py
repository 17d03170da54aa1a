"""Follows the sequences topic into `Histories`: all partitions, from their start, as long as the server runs."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kafka import TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from serving.topic_thread import TopicThread
from serving.users.histories import Histories
from serving.users.look_back import LookBack
from serving.users.shard import Shard
from wire.holding import as_ranges
from wire.kafka.admin import partitions_added
from wire.kafka.batches import Batch, by_batch
from wire.kafka.beginning import OUT_OF_RANGE, out_of_range, removed
from wire.kafka.consumer import POLL_MS, ends, partitions_of
from wire.kafka.refusal import refusal

logger = logging.getLogger(__name__)
ASK_TIMEOUT_MS = 2000
PROGRESS_EVERY_S = 5.0
FOLDING_THREADS = 2
MOST_WAITING = 8
"""How many answers of the broker may wait to be folded."""


@dataclass(eq=False)
class HistoryFollower(TopicThread):
    """The thread that feeds `Histories`. ``caught_up``: it has read what the topic held when the thread started,
    or when the topic was created again.

    Until then other threads decode and fold what this one has fetched and decompressed. ``shard``: learns how many
    partitions there are, and says whose users are kept.
    """

    label: ClassVar[str] = "history follower"
    histories: Histories
    shard: Shard = field(default_factory=Shard)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._num_told = 0
        self._thread_of: dict[int, ThreadPoolExecutor] = {}
        self._goals: dict[TopicPartition, int] = {}
        self._left: tuple[int, dict[TopicPartition, int]] | None = None
        """How many records there were at first, and how many of each partition were left lately. It is replaced as a
        whole, since others read it."""
        self._told_s = time.monotonic()
        self._folding = [ThreadPoolExecutor(1, "histories") for _ in range(FOLDING_THREADS)]
        self._waiting = deque[Future[None]]()
        self._look_back = LookBack()

    @property
    def caught_up(self) -> threading.Event:
        """Set when what the topic held at first is read."""
        return self.shard.caught_up

    def follow(self, partitions: list[TopicPartition]) -> None:
        """Read until stopped. Raises `ConfigError` if partitions shall be held that the topic does not have."""
        by_batch(self.consumer)
        try:
            self._follow(partitions)
        finally:
            for thread in self._folding:
                thread.shutdown()

    def _follow(self, partitions: list[TopicPartition]) -> None:
        is_placed, fetched = False, dict[TopicPartition, Any]()
        self._hold(len(partitions))
        while not self.stopping.is_set():
            try:
                if self.is_replaced():
                    logger.warning("%s was deleted and created again: reading the new one from its start", self.topic)
                    partitions = partitions_of(self.consumer, self.topic)
                    self._begin_anew()
                    self._hold(len(partitions))
                    is_placed, fetched = False, {}
                self._look_at_partitions(len(partitions))
                is_placed = is_placed or self._place(partitions)
                fetched = fetched or self.consumer.poll(timeout_ms=POLL_MS)  # not again what it has returned already
                if fetched and not self._looks_back():
                    is_placed, fetched = False, {}
                    continue
                self._look_back.note(fetched)
                for partition, records in fetched.items():
                    self._fold(partition.partition, [record.value for record in records])
                fetched = {}
                self._check_goals()
                if self.histories.missing:
                    logger.warning("%s: %s, which are gone: reading it again from its start, since some of them may "
                                   "have said who is forgotten", self.topic, self.histories.missing)  # fmt: skip
                    self._begin_anew()
                    is_placed = False
            except OUT_OF_RANGE as error:
                with suppress(KafkaError):  # then the next poll says so again
                    self._go_back(error)
                    is_placed, fetched = False, {}
            except KafkaError as error:
                if refused := refusal(error, str(self.consumer.config["bootstrap_servers"]), "reading"):
                    raise refused from error
                logger.warning("sequences topic: no answer from the broker (%s); histories stay as they are", error)
                self.stopping.wait(POLL_MS / 1000)

    def _looks_back(self) -> bool:
        """Whether the topic still has what was read before. Otherwise all is dropped, to be read again from the start.
        Raises KafkaError."""
        if not self._look_back.is_due(self.consumer):
            return True
        if moved := self._look_back.moved(self.consumer, self.connect(self.stopping)):
            logger.warning("%s has lost the end of partitions %s, and has grown again: reading it from the start, "
                           "since histories hold what is lost", self.topic, moved)  # fmt: skip
            self._begin_anew()
        return not moved

    def _go_back(self, error: OffsetOutOfRangeError | LogTruncationError) -> None:
        """Prepare to read from the start again, since a record that is asked for is not there. Raises KafkaError."""
        _, cut = out_of_range(self.consumer, error)
        if cut:
            logger.warning("%s has lost the end of partitions %s: reading it again from its start, since histories "
                           "hold what is lost", self.topic, [each.partition for each in cut])  # fmt: skip
        else:
            logger.warning("sequences topic: the next record is gone; reading from its start again")
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Drop all histories; until what is there now is read, they are as incomplete as after a start."""
        self._wait_for_all_but(0)
        self.histories.begin_anew()
        self._look_back.forget()
        self.caught_up.clear()
        self._left = None

    def _hold(self, num_partitions: int) -> None:
        """Learn how many partitions there are, and divide them among the threads, those with more work evenly."""
        self.shard.place(num_partitions)
        self.histories.held = None if self.shard.is_whole else self.shard.held
        by_work = sorted(range(num_partitions), key=lambda number: (number not in self.shard.held, number))
        self._thread_of = {number: self._folding[place % FOLDING_THREADS] for place, number in enumerate(by_work)}

    def _fold(self, partition: int, batches: list[Batch]) -> None:
        if self.caught_up.is_set():  # an action should be in its user's history at once
            self.histories.feed_batches(partition, batches)
            return
        thread = self._thread_of[partition]  # a partition's records in their order
        self._waiting.append(thread.submit(self.histories.feed_batches, partition, batches))
        self._wait_for_all_but(MOST_WAITING)

    def _wait_for_all_but(self, num: int) -> None:
        while len(self._waiting) > num:
            self._waiting.popleft().result()

    def _look_at_partitions(self, num_read: int) -> None:
        """Log once if the topic has partitions that are not read."""
        found = len(self.consumer.partitions_for_topic(self.topic) or ()) or num_read
        if found != num_read and found != self._num_told:
            self._num_told = found
            logger.error("%s; until then histories are read from the first %d only",
                         partitions_added(self.topic, num_read, found), num_read)  # fmt: skip

    def _place(self, partitions: list[TopicPartition]) -> bool:
        begins = self.consumer.beginning_offsets(partitions, timeout_ms=ASK_TIMEOUT_MS)
        if why := removed(self.topic, {each.partition: begin for each, begin in begins.items()}):
            logger.error("%s. Users whose segments are gone are answered as new ones", why)
        self._goals = ends(self.consumer, partitions)
        for partition in partitions:
            self.consumer.seek(partition, begins[partition])
        left = {each: goal - begins[each] for each, goal in self._goals.items()}
        self._left = (sum(left.values()), left)
        return True

    def _check_goals(self) -> None:
        if self.caught_up.is_set() or self._left is None:
            return
        at = {each: self.consumer.position(each, ASK_TIMEOUT_MS) or 0 for each in self._goals}
        left = {each: max(0, goal - at[each]) for each, goal in self._goals.items()}
        self._left = (self._left[0], left)
        if not any(left.values()):
            self._wait_for_all_but(0)
            self.histories.is_complete = True
            self.caught_up.set()
            part = "" if self.shard.is_whole else f", of partitions {as_ranges(self.shard.held) or 'none'}"
            logger.info("histories of %d users%s", len(self.histories), part)
        elif time.monotonic() - self._told_s > PROGRESS_EVERY_S:
            self._told_s = time.monotonic()
            logger.info("waiting for %s", self.waits_for)

    @property
    def waits_for(self) -> str:
        """How much of the topic is still to be read, and of which partition most."""
        if self.caught_up.is_set() or not self.is_connected:  # that the broker is away is said once for all threads
            return ""
        if self._left is None:
            return super().waits_for or f"the broker to say where {self.topic} ends"
        whole, left = self._left
        most = max(left, key=lambda each: left[each])
        return (
            f"histories: {whole - sum(left.values()):,} of {whole:,} records of {self.topic} are read; "
            f"most are left of partition {most.partition}: {left[most]:,}"
        )
