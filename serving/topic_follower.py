"""A thread that reads topics as long as the server runs, and starts again whenever that fails."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import ClassVar

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from wire.errors import HeadraceError
from wire.kafka.retry import StoppedError

logger = logging.getLogger(__name__)
RETRY_S = 1.0
SETTLED_S = 30.0
"""A consumer that was followed for so long worked: what fails after that is said again."""


class TopicFollower(threading.Thread):
    """Reads with a consumer of its own, another one after each failure. What was read stays known meanwhile.

    The failure of a `serving.topic_thread.TopicThread` ends the server; this one's does not. Subclasses say how to
    read, in `follow`, which begins anew each time.
    """

    what: ClassVar[str]
    """What cannot be done while it fails, for the log."""
    retry_s: ClassVar[float] = RETRY_S

    def __init__(self, name: str, connect: Callable[[], KafkaConsumer]) -> None:
        super().__init__(name=name, daemon=True)
        self._connect = connect
        self.stopping = threading.Event()

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self.stopping.set()

    def run(self) -> None:
        """Follow until stopped, whatever happens. The same failure again and again is a warning once."""
        told = ""
        while not self.stopping.is_set():
            began_s = time.monotonic()
            try:
                with contextlib.closing(self._connect()) as consumer:
                    began_s = time.monotonic()
                    self.follow(consumer)
            except StoppedError:
                return
            except (KafkaError, OSError, HeadraceError) as error:
                is_new = str(error) != told or time.monotonic() - began_s > SETTLED_S
                logger.log(self.level_of(error) if is_new else logging.DEBUG, "%s (%s); trying again", self.what, error)
                told = str(error)
            except Exception:
                logger.exception("%s; starting again", self.what)
            try:
                self.failed()
            except Exception:
                logger.exception("%s; starting again", self.what)
            self.stopping.wait(self.retry_s)

    def follow(self, consumer: KafkaConsumer) -> None:
        """Read until `stopping` is set."""
        raise NotImplementedError

    def failed(self) -> None:
        """Called after each failure, and after each return of `follow`."""

    def level_of(self, _error: Exception) -> int:
        """How to log a failure that is not like the last one."""
        return logging.WARNING
