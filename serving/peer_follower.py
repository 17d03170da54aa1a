"""Reads the status topic into `Peers`, in a thread with its own consumer."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from serving.peers import Peers
from wire.errors import HeadraceError
from wire.kafka.consumer import follow, spans

logger = logging.getLogger(__name__)
RETRY_S = 1.0
NUM_EARLIER = 1000
"""How many of the newest reports are read at first."""


class PeerFollower(threading.Thread):
    """Feeds `Peers` as long as the server runs. ``known``: set once what was in the topic at first is read."""

    def __init__(self, connect: Callable[[], KafkaConsumer], topic: str, peers: Peers, known: threading.Event) -> None:
        super().__init__(name="peers", daemon=True)
        self._connect, self._topic, self._peers, self.known = connect, topic, peers, known
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._stopping.set()

    def run(self) -> None:
        """Follow until stopped, whatever happens; what was known of other servers stays."""
        told = ""
        while not self._stopping.is_set():
            try:
                with contextlib.closing(self._connect()) as consumer:
                    self._follow(consumer)
            except (KafkaError, OSError, HeadraceError) as error:
                level, told = logging.DEBUG if str(error) == told else logging.WARNING, str(error)
                logger.log(level, "status topic: other servers' reports cannot be read now (%s); trying again", error)
            except Exception:
                logger.exception("status topic: following it failed; starting again")
            self._stopping.wait(RETRY_S)

    def _follow(self, consumer: KafkaConsumer) -> None:
        held = spans(consumer, self._topic)[0]
        if held.first == held.end:
            self.known.set()
        for record in follow(consumer, self._topic, num_last=NUM_EARLIER):
            if record is not None:
                self._peers.hear(record.value, is_earlier=record.offset < held.end)
                if record.offset + 1 >= held.end:
                    self.known.set()
            if self._stopping.is_set():
                return
