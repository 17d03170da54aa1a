"""Leader election: one trainer claims an epoch in the weights topic, all others wait as standbys.

The claim with the highest epoch decides which trainer leads (the first claim of an epoch wins); the leader's heartbeats
in the status topic show that it is alive. A trainer that finds a leader waits until

- the leader has released its claim, as a trainer does that is stopped normally;
- or the leader was an earlier process on the same checkpoint folder, whose lock this process now holds;
- or the leader has sent no heartbeat for ``trainer.takeover_after_s`` (at least three heartbeats, which are sent every
  ``lag_every_s``) while the broker answered this trainer: the standby measures silence by its own clock, a look at a
  time, and neither an outage of the broker nor a pause of its own counts as silence.

So a live leader is never fenced off, unless an operator asks for it (``--take-over``).
"""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from trainer.config import TrainerConfig
from trainer.errors import CheckpointError, TrainerError
from trainer.versions.log import ClaimLog, read_manifests
from wire.config import KafkaConfig
from wire.errors import TopicMissing
from wire.json_value import MAX_EPOCH
from wire.kafka.consumer import PROMPT, make_consumer, partitions_of, read, spans
from wire.kafka.producer import make_producer
from wire.kafka.retry import StoppedError, patiently
from wire.status import ServerStatus, TrainerStatus, status_of
from wire.topics import Topics
from wire.weights import CLAIM_HEADERS, CLAIM_KEY, Claim, Manifest

log = structlog.get_logger("trainer")
LOOK_S = 0.5
"""How often a standby checks whether the leader is still there."""
ANSWER_S = 20.0


@dataclass(frozen=True, slots=True)
class Claimant:
    """A trainer's name in its claims: ``place`` identifies the checkpoint folder, for all processes that use it."""

    place: str
    process: str

    @staticmethod
    def on(folder: Path | None) -> Claimant:
        """This process, on a checkpoint folder whose lock it holds (None: it has no folder)."""
        process = f"{os.getpid()}/{uuid.uuid4().hex[:8]}"
        if folder is None:
            return Claimant(f"{platform.node()}/{uuid.uuid4().hex[:8]}", process)
        path = folder / "identity"
        try:
            name = path.read_text(errors="replace").strip() if path.exists() else ""
            if not name.isalnum():  # damaged, or not written yet
                name, temporary = uuid.uuid4().hex[:8], folder / "tmp-identity"
                temporary.write_text(name)
                temporary.rename(path)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint_dir {folder}: cannot be written ({error.strerror}); free some space or fix the permissions"
            ) from error
        return Claimant(f"{platform.node()}/{folder.resolve()}/{name}", process)

    @property
    def name(self) -> str:
        """The name written into a claim."""
        return f"{self.place}/{self.process}"

    def is_earlier_life(self, name: str) -> bool:
        """Whether an earlier process on the same folder made the claim: we hold the lock, so that one has ended."""
        return name.startswith(f"{self.place}/")


@dataclass(frozen=True, slots=True)
class Leadership:
    """This process's epoch, the offset after its claim, and the versions published before it."""

    epoch: int
    next_offset: int
    manifests: list[Manifest]


class Election:
    """Makes this process the leader, once no other trainer leads. One `lead` per process."""

    def __init__(
        self,
        kafka: KafkaConfig,
        config: TrainerConfig,
        claimant: Claimant,
        stop: threading.Event,
        on_standby: Callable[[], None] = lambda: None,
    ) -> None:
        self._kafka, self._config, self._claimant, self._stop = kafka, config, claimant, stop
        self._on_standby = on_standby
        self._topics = Topics.under(kafka.prefix, kafka.line)
        self._where = TopicPartition(self._topics.weights, 0)
        self._patience_s = max(config.takeover_after_s, 3 * config.lag_every_s)

    def lead(self, enough: Callable[[list[Manifest]], bool], *, at_once: bool = False) -> Leadership:
        """Wait until no other trainer leads, and claim the next epoch; returns the manifests before it, read backwards
        until ``enough`` holds.

        ``at_once``: fence off the present leader. Raises `wire.kafka.retry.StoppedError` if the process is asked to
        stop.
        """
        return patiently(
            lambda: self._lead(enough, at_once), "claiming an epoch in the weights topic", self._kafka, self._stop
        )

    def _lead(self, enough: Callable[[list[Manifest]], bool], at_once: bool) -> Leadership:
        reader = make_consumer(self._kafka, **PROMPT)
        try:
            partitions_of(reader, self._where.topic)
            writer = make_producer(self._kafka)
            try:
                claims = ClaimLog(reader, self._where)
                while True:
                    claims.refresh()
                    if not at_once:
                        self._wait_for_turn(claims)
                    epoch = 1 + max(claims.highest, self._newest_served(reader))
                    led = self._claim(reader, writer, epoch, enough)
                    if led is not None:
                        return led
            finally:
                writer.close(timeout=5)
        finally:
            reader.close()

    def _newest_served(self, reader: KafkaConsumer) -> int:
        """The highest epoch that a server of this line answers from; -1 if none is known. Where the weights topic has
        lost its claims (to retention, or a broker that was restored), servers would drop whatever began at 0 again."""
        try:
            held = spans(reader, self._topics.status)
            reports = [status_of(each.value) for each in read(reader, self._topics.status, held)]
        except TopicMissing:
            return -1
        ours = [each.epoch for each in reports if isinstance(each, ServerStatus) and each.line == self._kafka.line]
        return max(ours, default=-1)

    def _claim(
        self, reader: KafkaConsumer, writer: KafkaProducer, epoch: int, enough: Callable[[list[Manifest]], bool]
    ) -> Leadership | None:
        """Claim an epoch; None if another trainer's claim of it came first. Raises `TrainerError` if nobody would read
        it."""
        if epoch > MAX_EPOCH:
            raise TrainerError(
                f"{self._where.topic}: expected an epoch below {MAX_EPOCH} in the topics of weights and statuses, got "
                f"{epoch - 1}, above which there is none: a foreign record; start over under another kafka.prefix"
            )
        claim = Claim(epoch=epoch, claimant=self._claimant.name)
        sent = send_claim(writer, self._where.topic, claim)
        manifests, taken = read_manifests(reader, self._where, enough, end=sent.offset)
        if taken >= epoch:
            return None
        log.info("epoch claimed", epoch=epoch, versions_before=len(manifests))
        return Leadership(epoch, sent.offset + 1, manifests)

    def _wait_for_turn(self, claims: ClaimLog) -> None:
        """Return once there is no leader, or the leader is gone."""
        if self._is_over(claims.newest):
            return
        leader = claims.newest
        assert leader is not None
        log.warning(
            "standby: another trainer leads; this one takes over once it is gone",
            leader=leader.claimant, epoch=leader.epoch, after_silence_s=self._patience_s,
        )  # fmt: skip
        self._on_standby()
        statuses = self._follow_statuses()
        silent_s, looked_s = 0.0, time.monotonic()
        try:
            while not self._is_over(claims.newest):
                if self._stop.wait(LOOK_S):
                    raise StoppedError("waiting as a standby")
                claims.refresh()
                silent_s, looked_s = silent_s + _counted(time.monotonic() - looked_s), time.monotonic()
                if self._has_beaten(statuses, leader) or claims.newest != leader:
                    silent_s = 0.0
                leader = claims.newest or leader
                if silent_s > self._patience_s:
                    log.warning("taking over: the leader is silent", leader=leader.claimant, epoch=leader.epoch)
                    return
        finally:
            statuses.close()

    def _is_over(self, claim: Claim | None) -> bool:
        return claim is None or claim.released or self._claimant.is_earlier_life(claim.claimant)

    def _follow_statuses(self) -> KafkaConsumer:
        statuses = make_consumer(self._kafka, **PROMPT)
        partitions = partitions_of(statuses, self._topics.status)
        statuses.assign(partitions)
        statuses.seek_to_end(*partitions)
        return statuses

    @staticmethod
    def _has_beaten(statuses: KafkaConsumer, claim: Claim) -> bool:
        found = False
        while batches := statuses.poll(timeout_ms=20):
            for record in (record for records in batches.values() for record in records):
                found |= _is_of(record.value, claim)
        return found


def _counted(waited_s: float) -> float:
    """How much of the time between two looks counts as silence. Where it is longer than a look takes, this process did
    not run or the broker did not answer, and what the leader has sent meanwhile may come only with the next look."""
    return min(waited_s, 2 * LOOK_S)


def _is_of(value: bytes | None, claim: Claim) -> bool:
    status = status_of(value)
    return isinstance(status, TrainerStatus) and status.claimant == claim.claimant and not status.is_standby


def send_claim(writer: KafkaProducer, topic: str, claim: Claim) -> Any:
    """Write a claim; returns the broker's record metadata. Raises KafkaError."""
    value = msgspec.json.encode(claim)
    return writer.send(topic, key=CLAIM_KEY, value=value, headers=CLAIM_HEADERS, partition=0).get(ANSWER_S)
