"""A thread that follows a topic as long as the server runs, and whose failure ends the server."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from kafka import KafkaConsumer, TopicPartition

from serving.errors import says_what_to_do
from wire.errors import HeadraceError
from wire.kafka.consumer import topic_id_of
from wire.kafka.retry import StoppedError, wait_for_partitions

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class TopicThread(threading.Thread):
    """Follows ``topic`` with a consumer of its own. Subclasses say how, in `follow`."""

    label: ClassVar[str]
    """What the log calls it."""
    connect: Callable[[threading.Event], KafkaConsumer]
    """Makes the consumer, once a broker answers; raises `StoppedError` when the event is set."""
    topic: str
    consumer: KafkaConsumer = field(init=False)
    """There as soon as `follow` is called."""
    on_failure: Callable[[BaseException], None] = field(default=lambda _: None, kw_only=True)
    """Called when the thread fails."""

    def __post_init__(self) -> None:
        super().__init__(name=self.label, daemon=True)
        self.stopping = threading.Event()
        self._topic_id = ""
        self.is_connected = self._is_found = False
        self.failure: BaseException | None = None

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self.stopping.set()

    def run(self) -> None:
        """Wait until a broker answers and the topic exists, then follow it until stopped."""
        try:
            with contextlib.closing(self.connect(self.stopping)) as self.consumer:
                self.is_connected = True
                partitions = wait_for_partitions(self.consumer, self.topic, self.stopping)
                self._is_found = True
                self.follow(partitions)
        except StoppedError:
            pass
        except BaseException as error:
            self.failure = error
            self.on_failure(error)
            if isinstance(error, HeadraceError) or says_what_to_do(error):
                logger.error("the %s ended: %s", self.label, error)
            else:
                logger.exception("the %s ended", self.label)

    def follow(self, partitions: list[TopicPartition]) -> None:
        """Follow the topic's partitions until `stopping` is set."""
        raise NotImplementedError

    @property
    def waits_for(self) -> str:
        """What it waits for before the server can answer, in a few words; empty: nothing."""
        return "" if self._is_found else f"topic {self.topic} to exist (headrace topics --create)"

    def is_replaced(self) -> bool:
        """Whether the topic was deleted and created again since the last call."""
        before, self._topic_id = self._topic_id, topic_id_of(self.consumer, self.topic) or self._topic_id
        return before not in ("", self._topic_id)
