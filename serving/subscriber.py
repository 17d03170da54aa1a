"""Follow the weights topic: bootstrap from it alone, apply each version off the request path, swap.

A server starts at the base of the last complete version and reads forward. What is torn, corrupt, out of order or from
a fenced epoch is dropped by `VersionAssembler`; a delta whose base is not here (something before it was dropped) sends
the subscriber back to look for a newer base, and the last good version goes on answering.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from serving.contact import Contact
from serving.guard import Guard
from serving.holder import WeightsManager
from serving.rollout import Rollout
from wire.control import Which
from wire.errors import HeadraceError, VersionError
from wire.kafka.consumer import POLL_MS, ends, topic_id_of
from wire.kafka.refusal import refusal
from wire.kafka.retry import StoppedError, wait_for_partitions
from wire.weights import Manifest, Version, VersionAssembler, claim_of, decode_manifest, record_kind

logger = logging.getLogger(__name__)
SCAN_RECORDS = 64
CONTACT_EVERY_S = 1.0
CONTACT_TIMEOUT_MS = 2000
CONTROL_S = 5.0
"""How long to wait at start for what is pinned."""


@dataclass(frozen=True, slots=True)
class StartPoint:
    """Where to read from (a base's first chunk), and the lowest epoch that counts there."""

    offset: int
    epoch_floor: int


@dataclass(slots=True)
class _Seen:
    """A manifest or a claim that a scan met."""

    offset: int
    epoch: int
    manifest: Manifest | None = None


@dataclass(slots=True)
class Counters:
    """What became of versions."""

    num_applied: int = 0
    num_dropped: int = 0
    num_unlinked: int = 0
    num_refused: int = 0


@dataclass(eq=False)
class WeightsSubscriber(threading.Thread):
    """The thread that feeds a `WeightsManager` from the topic."""

    consumer: KafkaConsumer
    topic: str
    holder: WeightsManager
    contact: Contact = field(default_factory=Contact)
    counters: Counters = field(default_factory=Counters)
    rollout: Rollout = field(default_factory=Rollout)
    guard: Guard = field(default_factory=lambda: Guard(None))
    on_failure: Callable[[BaseException], None] = field(default=lambda _: None)
    """Called when the thread ends though nobody stopped it."""

    def __post_init__(self) -> None:
        super().__init__(name="weights", daemon=True)
        self._stopping = threading.Event()
        self._assembler = VersionAssembler(on_drop=self._dropped)
        self._floor = 0
        self._topic_id = ""
        self._searched_after = -1
        self._pin: Which | None = None
        self._is_frozen = False
        """Whether what comes is let pass: the pinned version answers, or is not to be had."""
        self.started_following = threading.Event()
        self.failure: BaseException | None = None

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._stopping.set()

    def run(self) -> None:
        """Bootstrap, then follow, until stopped."""
        try:
            self._follow(wait_for_partitions(self.consumer, self.topic, self._stopping)[0])
        except StoppedError:
            pass
        except BaseException as error:
            self.failure = error
            self.on_failure(error)
            if isinstance(error, HeadraceError):
                logger.error("the weights subscriber ended: %s", error)
            else:
                logger.exception("the weights subscriber ended")
        finally:
            self.consumer.close()

    def _follow(self, partition: TopicPartition) -> None:
        self.consumer.assign([partition])
        self.rollout.known.wait(CONTROL_S)
        searching, asked = True, 0.0
        while not self._stopping.is_set():
            try:
                searching = self._is_repinned() or searching
                if searching:
                    searching = not self._start_from_base(partition)
                if time.monotonic() - asked > CONTACT_EVERY_S:
                    asked = time.monotonic()
                    self.consumer.end_offsets([partition], timeout_ms=CONTACT_TIMEOUT_MS)
                    self._heard()
                    searching = self._is_replaced() or searching
                    if searching:
                        continue
                searching = self._feed(self.consumer.poll(timeout_ms=POLL_MS).get(partition, [])) or searching
            except OffsetOutOfRangeError as error:
                searching = True
                logger.warning("weights topic: the next record is gone (%s); looking for the last base", error)
            except KafkaError as error:
                if refused := refusal(error, str(self.consumer.config["bootstrap_servers"])):
                    raise refused from error
                if self.contact.is_up:
                    logger.warning("the broker does not answer (%s); answering from the last version", error)
                self.contact.missed()
                self._stopping.wait(POLL_MS / 1000)

    def _is_replaced(self) -> bool:
        """Whether the topic was deleted and created again since the last look: then everything begins anew."""
        before, self._topic_id = self._topic_id, topic_id_of(self.consumer, self.topic) or self._topic_id
        if before in ("", self._topic_id):
            return False
        logger.warning(
            "%s was deleted and created again: following the new one from its start, and answering from the last "
            "version until it has a base", self.topic,
        )  # fmt: skip
        self._floor = 0
        self._assembler = VersionAssembler(on_drop=self._dropped)
        self.holder.begin_anew()
        return True

    def _heard(self) -> None:
        if not self.contact.is_up:
            logger.info("the broker answers again, after %.0f s", self.contact.away_s)
        self.contact.heard()

    def _start_from_base(self, partition: TopicPartition) -> bool:
        """Read from the best start point to the end that the topic has now; whether to follow on from there."""
        begin = self.consumer.beginning_offsets([partition], timeout_ms=CONTACT_TIMEOUT_MS)[partition]
        end = ends(self.consumer, [partition], CONTACT_TIMEOUT_MS / 1000)[partition]
        self._heard()
        self._swap()
        self.holder.discard_staged()
        self._searched_after = self.holder.num_swaps
        if self._pin is not None and not self._awaits_pin(partition, begin, end):
            self.consumer.seek(partition, end)
            self.started_following.set()
            return True
        points = self._start_points(partition, begin, end)
        for point in itertools.chain(points, [StartPoint(begin, 0)]):
            self._assembler = VersionAssembler(on_drop=self._dropped, epoch_floor=max(self._floor, point.epoch_floor))
            if self.holder.current is not None and not self.holder.is_anew:
                self._assembler.last = self.holder.current.which
            self._feed_quietly(self._records(partition, point.offset, end))
            self._swap()
            if self.holder.current is not None:
                break
        self.consumer.seek(partition, end)
        self.started_following.set()
        return True

    # What is pinned

    def _is_repinned(self) -> bool:
        """Whether another version is wanted than before."""
        wanted = self.rollout.wanted
        if wanted == self._pin:
            return False
        self._pin, self._is_frozen = wanted, False
        self.rollout.release()
        logger.warning(
            "answering from %s", "the newest version" if wanted is None else f"version {_name(wanted)} alone"
        )
        return True

    def _awaits_pin(self, partition: TopicPartition, begin: int, end: int) -> bool:
        """Go to the pinned version; whether it is still to come, so that there is nothing to do but follow."""
        pin, current = self._pin, self.holder.current
        assert pin is not None
        if current is not None and current.which == pin:
            self._is_frozen = True
            return False
        newest, found = self._find(partition, begin, end, pin)
        if found is None:
            if newest is None or pin > newest:
                return True
            self._miss("it is not in the topic (any more)")
            return False
        self._read_version(partition, found)
        current = self.holder.current
        if current is None or current.which != pin:
            self._miss("it is not whole, or its base is gone")
        self._is_frozen = True
        return False

    def _miss(self, why: str) -> None:
        """The pinned version cannot be had: stay where we are, which may be nowhere."""
        assert self._pin is not None
        self.rollout.hold(self._pin, f"pinned, but {why}")
        current = self.holder.current
        logger.error("version %s is pinned, but %s; answering from %s", _name(self._pin), why,
                     f"version {_name(current.which)} instead" if current else "none")  # fmt: skip
        self._is_frozen = True

    def _find(
        self, partition: TopicPartition, begin: int, end: int, pin: Which
    ) -> tuple[Which | None, tuple[int, Manifest] | None]:
        """The newest version that the topic names, and where the manifest of ``pin`` is."""
        upper, size, newest = end, SCAN_RECORDS, None
        while upper > begin and not self._stopping.is_set():
            lower = max(begin, upper - size)
            for each in reversed(self._scan(partition, lower, upper)):
                if each.manifest is not None:
                    newest = max(newest or each.manifest.which, each.manifest.which)
                    if each.manifest.which == pin:
                        return newest, (each.offset, each.manifest)
            upper, size = lower, size * 2
        return newest, None

    def _read_version(self, partition: TopicPartition, found: tuple[int, Manifest]) -> None:
        """From its base to itself, and into service; what is in use stays where that does not work out."""
        offset, manifest = found
        assembler = VersionAssembler(on_drop=logger.debug)
        self.holder.begin_anew()
        for record in self._records(partition, manifest.base_offset, offset + 1):
            version = assembler.feed(record.key, record.headers, record.value)
            if version is not None and self.holder.accepts(version.manifest) and not self._put(version):
                break
        if self.holder.staged is not None and self.holder.staged.which == manifest.which:
            self._swap()
        else:
            self.holder.end_anew()

    def _start_points(self, partition: TopicPartition, begin: int, end: int) -> Iterator[StartPoint]:
        """Bases to try, the newest first; if the topic names none, its beginning."""
        seen: list[_Seen] = []
        upper, size, tried = end, SCAN_RECORDS, end
        while upper > begin and not self._stopping.is_set():
            lower = max(begin, upper - size)
            seen = [*self._scan(partition, lower, upper), *seen]
            upper, size = lower, size * 2
            for point in _candidates(seen, tried):
                if lower > begin and not any(each.offset < point.offset for each in seen):
                    break  # what stands before that base may have fenced it off: look further back first
                tried = point.offset
                if tried >= begin:
                    yield point

    def _scan(self, partition: TopicPartition, lower: int, upper: int) -> list[_Seen]:
        found = []
        for record in self._records(partition, lower, upper):
            kind = record_kind(record.headers)
            try:
                if kind == "manifest":
                    manifest = decode_manifest(record.value)
                    found.append(_Seen(record.offset, manifest.epoch, manifest))
                elif (claim := claim_of(record)) is not None:
                    found.append(_Seen(record.offset, claim.epoch))
            except VersionError:
                continue
        return found

    def _records(self, partition: TopicPartition, lower: int, upper: int) -> Iterator[Any]:
        """Records of offsets lower … upper - 1. Raises KafkaError when they do not come."""
        self.consumer.seek(partition, lower)
        deadline = time.monotonic() + 30.0
        while self.consumer.position(partition, CONTACT_TIMEOUT_MS) < upper and not self._stopping.is_set():
            records = self.consumer.poll(timeout_ms=POLL_MS).get(partition, [])
            if records:
                deadline = time.monotonic() + 30.0
            elif time.monotonic() > deadline:
                raise KafkaError(f"expected records up to offset {upper}, got none for 30 s")
            for record in records:
                if record.offset < upper:
                    yield record

    def _feed(self, records: list[Any]) -> bool:
        """Records of the topic, in order; whether to look for a newer base (once after each version served)."""
        is_linked = self._is_frozen or self._feed_quietly(records)
        self._swap()
        if not records:
            self.holder.settle()
        return not is_linked and self._searched_after != self.holder.num_swaps

    def _feed_quietly(self, records: Any) -> bool:
        is_linked = True
        for record in records:
            if self._is_frozen:
                break
            version = self._assembler.feed(record.key, record.headers, record.value)
            self._floor = max(self._floor, self._assembler.epoch_floor)
            if version is not None:
                self._floor = max(self._floor, version.manifest.epoch)
                self._assembler.epoch_floor = self._floor
                is_linked = self._stage(version) and is_linked
        return is_linked

    def _stage(self, version: Version) -> bool:
        """Whether the version had what it builds on."""
        manifest = version.manifest
        if self._pin is not None and manifest.which > self._pin:
            self._miss("its place was passed without it")
            return True
        if not self.holder.accepts(manifest):
            self.counters.num_unlinked += 1
            what = f"{manifest.kind} onto {manifest.onto_number}"
            logger.warning("version %s (%s) has no base here; waiting for the next base", _name(manifest.which), what)
            return False
        problem = self.guard.problem(manifest) if self._pin is None else ""
        if problem:
            self._swap()  # what was staged before it is good
        if self._put(version):
            self._judge(manifest, problem)
        if manifest.which == self._pin:
            self._swap()
            self._is_frozen = True
        return True

    def _put(self, version: Version) -> bool:
        """Whether it fits."""
        try:
            self.holder.stage(version)
        except (HeadraceError, ValueError, RuntimeError, KeyError, IndexError) as error:
            self.counters.num_refused += 1
            name = _name(version.manifest.which)
            logger.warning("version %s does not fit this build, and is not served: %s", name, error)
            return False
        self.counters.num_applied += 1
        return True

    def _judge(self, manifest: Manifest, problem: str) -> None:
        """Hold it back, or let it answer."""
        if problem:
            if self.rollout.held is None:
                logger.error("version %s is held back (%s); answering from the last good one until one is good again",
                             _name(manifest.which), problem)  # fmt: skip
            self.rollout.hold(manifest.which, problem)
            return
        if self.rollout.held is not None:
            logger.warning("version %s is good again", _name(manifest.which))
        self.rollout.release()
        self.guard.accept(manifest)

    def _swap(self) -> bool:
        before, staged = self.holder.current, self.holder.staged
        if staged is not None and staged.which == self.rollout.held:
            return False
        self.holder.swap()
        current = self.holder.current
        if current is before or current is None:
            return False
        # A delta every other second is no news; a new line of versions, or the first one, is.
        is_news = before is None or before.which[0] != current.which[0]
        logger.log(logging.INFO if is_news else logging.DEBUG, "answering from version %d/%d (%s)", *current.which,
                   current.manifest.kind)  # fmt: skip
        return True

    def _dropped(self, reason: str) -> None:
        self.counters.num_dropped += 1
        logger.warning("%s", reason)


def _name(which: Which) -> str:
    return f"{which[0]}/{which[1]}"


def _candidates(seen: list[_Seen], below: int) -> list[StartPoint]:
    """Distinct bases under offset ``below`` of the versions that count, the newest version's first."""
    floor, points = 0, {}
    for each in seen:
        if each.epoch >= floor and each.manifest is not None and each.manifest.base_offset < below:
            points[each.manifest.base_offset] = StartPoint(each.manifest.base_offset, 0)
        floor = max(floor, each.epoch)
    ordered = sorted(points, reverse=True)
    return [
        StartPoint(offset, max((each.epoch for each in seen if each.offset < offset), default=0)) for offset in ordered
    ]
