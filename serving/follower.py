"""Follows the sequences topic into `Histories`: all partitions, from their start, as long as the server runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from serving.histories import Histories
from wire.errors import HeadraceError
from wire.kafka.admin import partitions_mismatch
from wire.kafka.batches import by_batch
from wire.kafka.consumer import POLL_MS, ends, partitions_of, topic_id_of
from wire.kafka.refusal import refusal
from wire.kafka.retry import StoppedError, wait_for_partitions

logger = logging.getLogger(__name__)
ASK_TIMEOUT_MS = 2000


@dataclass(eq=False)
class HistoryFollower(threading.Thread):
    """The thread that feeds `Histories`. ``caught_up``: it has read what the topic held when the thread started."""

    consumer: KafkaConsumer
    topic: str
    histories: Histories
    caught_up: threading.Event = field(default_factory=threading.Event)

    on_failure: Callable[[BaseException], None] = field(default=lambda _: None)
    """Called when the thread fails."""

    def __post_init__(self) -> None:
        super().__init__(name="histories", daemon=True)
        by_batch(self.consumer)
        self._stopping = threading.Event()
        self._topic_id = ""
        self._num_told = 0
        self._goals: dict[TopicPartition, int] = {}
        self.failure: BaseException | None = None

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._stopping.set()

    def run(self) -> None:
        """Read until stopped."""
        try:
            self._follow(wait_for_partitions(self.consumer, self.topic, self._stopping))
        except StoppedError:
            pass
        except BaseException as error:
            self.failure = error
            self.on_failure(error)
            if isinstance(error, HeadraceError):
                logger.error("the history follower ended: %s", error)
            else:
                logger.exception("the history follower ended")
        finally:
            self.consumer.close()

    def _follow(self, partitions: list[TopicPartition]) -> None:
        is_placed = False
        while not self._stopping.is_set():
            try:
                if self._is_replaced():
                    partitions = partitions_of(self.consumer, self.topic)
                    self.histories.begin_anew()
                    is_placed = False
                self._look_at_partitions(len(partitions))
                is_placed = is_placed or self._place(partitions)
                for partition, records in self.consumer.poll(timeout_ms=POLL_MS).items():
                    self.histories.feed_batches(partition.partition, [record.value for record in records])
                self._check_goals()
            except OffsetOutOfRangeError:
                logger.warning("sequences topic: the next record is gone; reading from its start again")
                self.histories.forget_partitions()
                is_placed = False
            except KafkaError as error:
                if refused := refusal(error, str(self.consumer.config["bootstrap_servers"])):
                    raise refused from error
                logger.warning("sequences topic: no answer from the broker (%s); histories stay as they are", error)
                self._stopping.wait(POLL_MS / 1000)

    def _is_replaced(self) -> bool:
        """Whether the topic was deleted and created again since the last call."""
        before, self._topic_id = self._topic_id, topic_id_of(self.consumer, self.topic) or self._topic_id
        if before in ("", self._topic_id):
            return False
        logger.warning("%s was deleted and created again: reading the new one from its start", self.topic)
        return True

    def _look_at_partitions(self, num_read: int) -> None:
        """Log once if the topic has partitions that are not read."""
        found = len(self.consumer.partitions_for_topic(self.topic) or ()) or num_read
        if found != num_read and found != self._num_told:
            self._num_told = found
            logger.error("%s; until then histories are read from the first %d only",
                         partitions_mismatch(self.topic, num_read, found), num_read)  # fmt: skip

    def _place(self, partitions: list[TopicPartition]) -> bool:
        begin = self.consumer.beginning_offsets(partitions, timeout_ms=ASK_TIMEOUT_MS)
        self._goals = ends(self.consumer, partitions)
        for partition in partitions:
            self.consumer.seek(partition, begin[partition])
        return True

    def _check_goals(self) -> None:
        if self.caught_up.is_set():
            return
        if all((self.consumer.position(each, ASK_TIMEOUT_MS) or 0) >= goal for each, goal in self._goals.items()):
            self.caught_up.set()
            logger.info("histories of %d users", len(self.histories))
