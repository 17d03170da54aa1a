"""Whether the broker answers, and if not, since when; and how the threads that need it wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from kafka import KafkaConsumer

from wire.config import KafkaConfig
from wire.kafka.retry import StoppedError, connect_patiently


class Contact:
    """When the broker last answered; shared by everything that talks to it."""

    def __init__(self) -> None:
        self._heard = time.monotonic()
        self._up = True

    def heard(self) -> None:
        """Note that the broker has just answered."""
        self._heard, self._up = time.monotonic(), True

    def missed(self) -> None:
        """Note that the broker did not answer."""
        self._up = False

    @property
    def is_up(self) -> bool:
        """Whether the last attempt was answered."""
        return self._up

    @property
    def away_s(self) -> float:
        """How long the broker has not answered; 0 while it does."""
        return 0.0 if self._up else time.monotonic() - self._heard


class Connector:
    """Makes the consumers of several threads once the broker answers. One thread at a time waits for it, so that the
    log has one line about it and not one of each."""

    def __init__(self, kafka: KafkaConfig, contact: Contact) -> None:
        self._kafka, self._contact = kafka, contact
        self._lock = threading.Lock()
        contact.missed()

    def of(self, **options: Any) -> Callable[[threading.Event], KafkaConsumer]:
        """What makes a consumer with these options: a function of the event that ends the wait."""

        def connect(stop: threading.Event) -> KafkaConsumer:
            with self._lock:
                if stop.is_set():
                    raise StoppedError("connecting")
                consumer = connect_patiently(self._kafka, stop, **options)
            self._contact.heard()
            return consumer

        return connect
