"""Follows the weights topic: bootstraps from it alone, applies each version off the request path, swaps it in.

A server starts at the base of the last complete version and reads forward. `VersionAssembler` drops what is torn,
corrupt, out of order or from a fenced epoch. A delta that does not build on the version held here (something before it
was dropped) makes the subscriber look for a newer base; meanwhile the last good version goes on answering.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from serving.contact import Contact
from serving.topic_thread import TopicThread
from serving.versions.intake import VersionIntake, name_of
from serving.versions.manager import WeightsManager
from serving.versions.topic import REQUEST_TIMEOUT_MS, StartPoint, WeightsTopic
from wire.assembler import NONE, VersionAssembler
from wire.control import Which
from wire.errors import TopicMissing
from wire.kafka.consumer import POLL_MS, partitions_of
from wire.kafka.refusal import refusal
from wire.kafka.retry import SAY_AGAIN_S
from wire.weights import Manifest, Version

logger = logging.getLogger(__name__)
CONTACT_EVERY_S = 1.0
CONTROL_S = 5.0
"""How long to wait at startup to learn which version is pinned."""


@dataclass(eq=False)
class WeightsSubscriber(TopicThread):
    """The thread that feeds a `WeightsManager` from the topic."""

    label: ClassVar[str] = "weights subscriber"
    intake: VersionIntake
    contact: Contact = field(default_factory=Contact)
    topic_of: Callable[[str], str] | None = None
    """Line of training → its weights topic; None if there is only one."""
    histories_ready: threading.Event | None = None
    """Until this is set, nothing is done that can wait, because the histories are being read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._assembler = VersionAssembler(on_drop=self.intake.dropped)
        self._floor = 0
        self._searched_after = -1
        self._line = self._missing_line = self.intake.rollout.own_line
        self._line_due_s = 0.0
        self._wanted: Which | None = None
        self._pin: Which | None = None
        """The wanted version, unless it is not available while nothing else answers."""
        self._is_frozen = False
        """Whether new versions are ignored: the pinned version answers, or is not available."""
        self.started_following = threading.Event()
        self._told_s = 0.0
        self._at = self._end = 0
        """The offset after the last record, and the end that is read up to at first."""

    @property
    def waits_for(self) -> str:
        """Why there is no version yet."""
        if self.manager.current is not None or not self.is_connected:
            return ""
        if not self.started_following.is_set():
            place = f", at offset {self._at:,} of {self._end:,}" if self._at else ""
            return super().waits_for or f"a first version: looking for a base in {self.topic}{place}"
        counters, rollout = self.intake.counters, self.intake.rollout
        if rollout.held is not None:
            return f"version {name_of(rollout.held)}: {rollout.why}"
        if num := counters.num_refused + counters.num_dropped:
            return f"a first version: {num} in {self.topic} could not be served, and the log says why"
        if num := counters.num_unlinked:
            return f"a base: the {num} versions in {self.topic} are changes to one that is not there"
        return f"a first version: {self.topic} has none yet; is a trainer running?"

    @property
    def manager(self) -> WeightsManager:
        """The versions that are held."""
        return self.intake.manager

    def follow(self, partitions: list[TopicPartition]) -> None:
        """Bootstrap, then follow, until stopped."""
        partition = partitions[0]
        topic = WeightsTopic(self.consumer, partition, self.stopping)
        self.consumer.assign([partition])
        self.intake.rollout.known.wait(CONTROL_S)
        searching, asked = True, 0.0
        while not self.stopping.is_set():
            try:
                if (other := self._other_line()) is not None:
                    topic, partition, searching = other, other.partition, True
                searching = self._is_repinned() or searching
                if searching:
                    searching = not self._start_from_base(topic)
                if time.monotonic() - asked > CONTACT_EVERY_S:
                    asked = time.monotonic()
                    self.consumer.end_offsets([partition], timeout_ms=REQUEST_TIMEOUT_MS)
                    self._heard()
                    searching = self._begins_anew() or searching
                    if searching:
                        continue
                searching = self._feed(self.consumer.poll(timeout_ms=POLL_MS).get(partition, [])) or searching
            except OffsetOutOfRangeError as error:
                searching = True
                logger.warning("weights topic: the next record is gone (%s); looking for the last base", error)
            except KafkaError as error:
                if refused := refusal(error, str(self.consumer.config["bootstrap_servers"]), "reading"):
                    raise refused from error
                if self.contact.is_up or time.monotonic() - self._told_s > SAY_AGAIN_S:
                    self._told_s = time.monotonic()
                    logger.warning("%s (%s); answering from the last version", self._absence(), error)
                self.contact.missed()
                asked = time.monotonic()  # a broker that is slow to say where topics end may still send what they hold
                self.stopping.wait(POLL_MS / 1000)

    def _absence(self) -> str:
        """What is away: a client only says that nothing was answered."""
        try:
            is_known = bool(self.consumer.partitions_for_topic(self.topic))
        except KafkaError:
            is_known = True
        return "the broker does not answer" if is_known else f"topic {self.topic} is gone: headrace topics --create"

    def _begins_anew(self) -> bool:
        """Start over if the topic was deleted and created again; whether it was."""
        if not self.is_replaced():
            return False
        logger.warning(
            "%s was deleted and created again: following the new topic from its start, and answering from the last "
            "version until it has a base", self.topic,
        )  # fmt: skip
        self._floor = 0
        self._assembler = VersionAssembler(on_drop=self.intake.dropped)
        self.manager.begin_anew()
        return True

    def _heard(self) -> None:
        if not self.contact.is_up:
            logger.info("the broker answers again, after %.0f s", self.contact.away_s)
        self.contact.heard()

    def _start_from_base(self, topic: WeightsTopic) -> bool:
        """Read from the best start point to the topic's present end; whether to follow on from there."""
        begin, end = topic.bounds()
        self._end = end
        self._heard()
        self.intake.swap()
        self.manager.discard_staged()
        self._searched_after = self.manager.num_swaps
        if self._pin is not None and not self._awaits_pin(topic, begin, end) and self._is_frozen:
            self.consumer.seek(topic.partition, end)
            self.started_following.set()
            return True
        for point in itertools.chain(topic.start_points(begin, end), [StartPoint(begin, 0)]):
            floor, current = max(self._floor, point.epoch_floor), self.manager.current
            held = current.which if current is not None and not self.manager.is_anew else NONE
            self._assembler = VersionAssembler(self.intake.dropped, floor, last=held, held=held)
            self._feed_quietly(topic.records(point.offset, end))
            self._assembler.held = NONE  # whatever is that old from now on should not come
            self.intake.swap()
            if self.manager.current is not None:
                break
        self.consumer.seek(topic.partition, end)
        self.started_following.set()
        return True

    def _other_line(self) -> WeightsTopic | None:
        """The weights topic of another line of training, if an operator has switched to one since the last call. The
        last version answers until that topic has a base."""
        line = self.intake.rollout.line
        if line == self._line or self.topic_of is None or time.monotonic() < self._line_due_s:
            return None
        self._line_due_s = time.monotonic() + CONTACT_EVERY_S
        name = self.topic_of(line)
        try:
            partition = partitions_of(self.consumer, name)[0]
        except TopicMissing as error:
            if line != self._missing_line:
                logger.error("line %r: %s; answering from line %r until then", line, error, self._line)
            self._missing_line = line
            return None
        logger.warning("answering from the versions of line %r in %s as soon as it has one", line, name)
        self._line, self.topic, self._topic_id = line, name, ""
        self._floor, self._is_frozen, self._pin, self._wanted = 0, False, None, None
        self._assembler = VersionAssembler(on_drop=self.intake.dropped)
        self.intake.guard.forget()
        self.intake.rollout.begin_anew()
        self.manager.begin_anew()
        self.consumer.assign([partition])
        return WeightsTopic(self.consumer, partition, self.stopping)

    # Pinned versions

    def _is_repinned(self) -> bool:
        """Whether the wanted version has changed."""
        wanted = self.intake.rollout.wanted
        if wanted == self._wanted:
            return False
        self._pin, self._wanted, self._is_frozen = wanted, wanted, False
        self.intake.rollout.begin_anew()
        logger.warning(
            "answering from %s", "the newest version" if wanted is None else f"version {name_of(wanted)} alone"
        )
        return True

    def _awaits_pin(self, topic: WeightsTopic, begin: int, end: int) -> bool:
        """Go to the pinned version, if it is in the topic; whether it is still to come, so that we must follow."""
        pin, current = self._pin, self.manager.current
        assert pin is not None
        if current is not None and current.which == pin:
            self._is_frozen = True
            return False
        newest, found = topic.find(begin, end, pin)
        if found is None:
            if newest is None or pin > newest:
                return True
            self._miss("it is not in the topic (any more)")
            return False
        self._read_version(topic, found)
        current = self.manager.current
        if current is None or current.which != pin:
            self._miss("it is incomplete, or its base is gone")
        else:
            self._is_frozen = True
        return False

    def _miss(self, why: str) -> None:
        """The pinned version is not available: keep what answers now; if nothing does, follow the newest version."""
        assert self._pin is not None
        name, why, current = name_of(self._pin), f"pinned, but {why}", self.manager.current
        logger.error("version %s is %s; answering from %s", name, why,
                     f"version {name_of(current.which)} instead" if current else "the newest")  # fmt: skip
        if current is not None:
            self.intake.rollout.hold(self._pin, why)
            self._is_frozen = True
        else:
            self.intake.rollout.miss(self._pin, f"{why}; answering from the newest")
            self._pin, self._searched_after = None, -1

    def _read_version(self, topic: WeightsTopic, found: tuple[int, Manifest]) -> None:
        """Read a version, starting with its base, and put it into service; if that fails, the present one stays."""
        offset, manifest = found
        assembler = VersionAssembler(on_drop=logger.debug)
        self.manager.begin_anew()
        for record in topic.records(manifest.base_offset, offset + 1):
            version = assembler.feed(record.key, record.headers, record.value)
            if version is not None and self.manager.accepts(version.manifest) and not self.intake.put(version):
                break
        if self.manager.staged is not None and self.manager.staged.which == manifest.which:
            self.intake.swap()
        else:
            self.manager.end_anew()

    # Versions as they come

    def _feed(self, records: list[Any]) -> bool:
        """Take records of the topic, in order; whether to look for a newer base (once after each version served)."""
        is_linked = self._is_frozen or self._feed_quietly(records)
        self.intake.swap()
        if not records and (self.histories_ready is None or self.histories_ready.is_set()):
            self.manager.settle()
        return not is_linked and self._searched_after != self.manager.num_swaps

    def _feed_quietly(self, records: Any) -> bool:
        is_linked = True
        for record in records:
            if self._is_frozen:
                break
            version = self._assembler.feed(record.key, record.headers, record.value)
            self._at, self._floor = record.offset + 1, max(self._floor, self._assembler.epoch_floor)
            if version is not None:
                self._floor = max(self._floor, version.manifest.epoch)
                self._assembler.epoch_floor = self._floor
                is_linked = self._stage(version) and is_linked
        return is_linked

    def _stage(self, version: Version) -> bool:
        """Whether the version builds on what is held here."""
        manifest = version.manifest
        if self._pin is not None and manifest.which > self._pin:
            self._miss("later versions have arrived without it")
            return self._is_frozen
        if not self.intake.take(version, is_pinned=self._pin is not None):
            return False
        if manifest.which == self._pin:
            self.intake.swap()
            self._is_frozen = True
        return True
