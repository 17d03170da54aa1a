"""Reads the status topic into `Peers`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar

from kafka import KafkaConsumer

from serving.topic_follower import TopicFollower
from serving.users.peers import Peers
from wire.kafka.consumer import follow, spans

NUM_EARLIER = 1000
"""How many of the newest reports are read at first."""


class PeerFollower(TopicFollower):
    """Feeds `Peers` as long as the server runs. ``known``: set once what was in the topic at first is read."""

    what: ClassVar[str] = "status topic: other servers' reports cannot be read now"

    def __init__(self, connect: Callable[[], KafkaConsumer], topic: str, peers: Peers, known: threading.Event) -> None:
        super().__init__("peers", connect)
        self._topic, self._peers, self.known = topic, peers, known

    def follow(self, consumer: KafkaConsumer) -> None:
        """Hear the newest reports, then every new one."""
        held = spans(consumer, self._topic)[0]
        if held.first == held.end:
            self.known.set()
        for record in follow(consumer, self._topic, num_last=NUM_EARLIER):
            if record is not None:
                self._peers.hear(record.value, is_earlier=record.offset < held.end)
                if record.offset + 1 >= held.end:
                    self.known.set()
            if self.stopping.is_set():
                return
