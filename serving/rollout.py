"""Which line of training and which version should answer, as decided by an operator or this server's configuration,
and which version is held back."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from wire.control import LINE_KEY, PIN_KEY, Pin, Switch, Which, decode_pin, decode_switch, parse_version
from wire.errors import ClientRefused, HeadraceError, VersionError
from wire.kafka.consumer import POLL_MS, ends, partitions_of
from wire.kafka.refusal import refusal
from wire.thinned_log import is_told

logger = logging.getLogger(__name__)
RETRY_S = 5.0


class Rollout:
    """Shared by the threads that decide, follow and report. ``own``, ``own_line``: this server's configuration.
    ``known``: the control topic has been read."""

    def __init__(self, own: str = "", own_line: str = "") -> None:
        self.own: Which | None = parse_version(own, "serving.pin") if own else None
        self.own_line = own_line
        self.ordered: Pin | None = None
        self.switched: Switch | None = None
        self.known = threading.Event()
        self.known.set()
        self.num_held = 0
        self.held: Which | None = None
        """The newest or pinned version while it is held back; None while it answers."""
        self.why = ""
        """Why it is held back."""

    @property
    def line(self) -> str:
        """The line of training whose versions answer."""
        return self.switched.line if self.switched is not None else self.own_line

    @property
    def wanted(self) -> Which | None:
        """The version to answer from; None for the newest good one. The server's own pin takes precedence. A pin counts
        for its own line of training."""
        line, ordered = self.line, self.ordered
        if self.own is not None and line == self.own_line:
            return self.own
        return ordered.which if ordered is not None and ordered.line == line else None

    def hold(self, which: Which, why: str) -> None:
        """Note that a version is held back."""
        if self.held != which:
            self.num_held += 1
        self.held, self.why = which, why

    def release(self) -> None:
        """Note that no version is held back."""
        self.held, self.why = None, ""


class PinFollower(threading.Thread):
    """Keeps a `Rollout` up to date with the control topic. A deployment may lack that topic."""

    def __init__(self, make: Callable[[], KafkaConsumer], topic: str, rollout: Rollout) -> None:
        super().__init__(name="control", daemon=True)
        self._make, self._topic, self._rollout = make, topic, rollout
        rollout.known.clear()
        self._num_foreign = 0
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._stopping.set()

    def run(self) -> None:
        """Follow until stopped; start over whenever the broker has been away, or after any other failure."""
        is_told = False
        while not self._stopping.is_set():
            try:
                with contextlib.closing(self._make()) as consumer:
                    self._follow(consumer)
            except (KafkaError, HeadraceError) as error:
                refused = isinstance(error, ClientRefused) or refusal(error, "the broker") is not None
                level = logging.ERROR if refused and not is_told else logging.DEBUG
                is_told = is_told or refused
                logger.log(level, "control topic: it cannot be read: %s", error)
            except Exception:
                logger.exception(
                    "control topic: following it failed; starting again. Until then pins and switches are not seen"
                )
            self._rollout.known.set()
            self._stopping.wait(RETRY_S)

    def _follow(self, consumer: KafkaConsumer) -> None:
        (partition,) = partitions_of(consumer, self._topic)
        end = ends(consumer, [partition])[partition]
        consumer.seek_to_beginning(partition)
        while not self._stopping.is_set():
            self._note_all(consumer, partition)
            if (consumer.position(partition) or 0) >= end:
                self._rollout.known.set()

    def _note_all(self, consumer: KafkaConsumer, partition: TopicPartition) -> None:
        for record in consumer.poll(timeout_ms=POLL_MS).get(partition, []):
            try:
                if record.key == PIN_KEY:
                    self._rollout.ordered = decode_pin(record.value) if record.value else None
                elif record.key == LINE_KEY:
                    self._rollout.switched = decode_switch(record.value) if record.value else None
            except VersionError as error:
                self._num_foreign += 1
                if is_told(self._num_foreign):
                    logger.warning("control topic: %s (number %d so far)", error, self._num_foreign)
