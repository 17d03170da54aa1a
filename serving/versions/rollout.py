"""Which line of training and which version should answer, as decided by an operator or this server's configuration,
and which version is held back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from kafka import KafkaConsumer

from serving.topic_follower import TopicFollower
from wire.control import LINE_KEY, PIN_KEY, Pin, Switch, Which, decode_pin, decode_switch, parse_version
from wire.errors import ClientRefused, VersionError
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
        self.missing: Which | None = None
        """The pinned version, if it is not available and the newest answers instead; ``held`` names it too, unless a
        newer one is held back."""
        self._why_missing = ""

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

    def miss(self, which: Which, why: str) -> None:
        """Note that the pinned version is not available, so that the newest answers instead."""
        self.hold(which, why)
        self.missing, self._why_missing = which, why

    def release(self) -> None:
        """Note that no version is held back, other than a pinned one that is missing."""
        self.held, self.why = self.missing, self._why_missing

    def begin_anew(self) -> None:
        """Note that another version or line is wanted now."""
        self.missing, self._why_missing = None, ""
        self.release()


@dataclass
class _Decided:
    pin: Pin | None = None
    switch: Switch | None = None


class PinFollower(TopicFollower):
    """Keeps a `Rollout` up to date with the control topic. A deployment may lack that topic."""

    what: ClassVar[str] = "control topic: it cannot be read, so pins and switches are not seen"
    retry_s: ClassVar[float] = RETRY_S

    def __init__(self, connect: Callable[[], KafkaConsumer], topic: str, rollout: Rollout) -> None:
        super().__init__("control", connect)
        self._topic, self._rollout = topic, rollout
        rollout.known.clear()
        self._num_foreign = 0

    def failed(self) -> None:
        """Let nobody wait for what cannot be read."""
        self._rollout.known.set()

    def level_of(self, error: Exception) -> int:
        """Only what a person must mend is worth a line: other threads say that the broker is away."""
        is_refused = isinstance(error, ClientRefused) or refusal(error, "the broker") is not None
        return logging.ERROR if is_refused else logging.DEBUG

    def follow(self, consumer: KafkaConsumer) -> None:
        """Take the last decisions, once all earlier ones are read, then every new one."""
        (partition,) = partitions_of(consumer, self._topic)
        end = ends(consumer, [partition])[partition]
        consumer.seek_to_beginning(partition)
        decided, reached = _Decided(), 0
        while not self.stopping.is_set():
            for record in consumer.poll(timeout_ms=POLL_MS).get(partition, []):
                self._note(record, decided)
            before, reached = reached, consumer.position(partition) or 0
            if reached < before:  # another topic, without the earlier decisions
                return
            if reached >= end:
                self._rollout.ordered, self._rollout.switched = decided.pin, decided.switch
                self._rollout.known.set()

    def _note(self, record: Any, decided: _Decided) -> None:
        try:
            if record.key == PIN_KEY:
                decided.pin = decode_pin(record.value) if record.value else None
            elif record.key == LINE_KEY:
                decided.switch = decode_switch(record.value) if record.value else None
        except VersionError as error:
            self._num_foreign += 1
            if is_told(self._num_foreign):
                logger.warning("control topic: %s (number %d so far)", error, self._num_foreign)
