"""Sends versions to ``headrace.weights.v1`` from a thread of its own, beside training.

The training thread hands over a snapshot (`Publisher.offer`) once the last one is acknowledged; this thread encodes it,
sends the chunks, then the manifest, and retries for as long as the broker is away. A process that finds a claim with a
higher epoch stops: another trainer leads now.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from trainer.collection import MakeBlob
from trainer.config import TrainerConfig
from trainer.election import Claimant, Election, send_claim
from trainer.errors import FencedError, UnsoundVersionError
from trainer.keeper import VersionKeeper
from trainer.weights import Weights, newest_weights
from wire.config import KafkaConfig
from wire.kafka.consumer import PROMPT, Span, make_consumer, partitions_of, read, read_from
from wire.kafka.producer import make_producer
from wire.kafka.retry import StoppedError, patiently
from wire.tensors import Tensors
from wire.topics import Topics
from wire.weights import (
    MANIFEST_HEADERS,
    Claim,
    Manifest,
    chunk_headers,
    claim_of,
    encode_manifest,
    version_key,
)

log = structlog.get_logger("trainer")
FENCE_CHECK_S = 2.0
"""How often a trainer that has nothing to publish checks whether another one has taken over."""


MOST_IN_FLIGHT = 16

MakeManifest = Callable[..., Manifest]
"""Makes a version's manifest, given the fields that only the publisher knows."""


@dataclass(frozen=True, slots=True)
class Published:
    """A version that the broker has acknowledged: its manifest, and when it did (ms, wall clock)."""

    manifest: Manifest
    acknowledged_ms: int


@dataclass(frozen=True, slots=True)
class _Offer:
    """A version on its way."""

    number: int
    kind: str
    make_blob: MakeBlob
    make_manifest: MakeManifest


class Publisher:
    """Publishes one epoch's versions. `lead` first; then `start` the thread, and `offer` from the training thread."""

    def __init__(
        self, kafka: KafkaConfig, config: TrainerConfig, stop: threading.Event, clock: Callable[[], float] = time.time
    ) -> None:
        self._kafka, self._config, self._stop, self._clock = kafka, config, stop, clock
        self._topic = TopicPartition(Topics.under(kafka.prefix, kafka.line).weights, 0)
        self._consumer: KafkaConsumer | None = None
        self._producer: KafkaProducer | None = None
        self._keeper = VersionKeeper(kafka, config.keep_versions)
        self._checked_offset = 0
        self._pending: _Offer | None = None
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._base = (-1, -1)
        self._base_s = math.inf
        self._needs_base = False
        self.claimant = ""
        self.epoch = -1
        self.next_number = 0
        self.last: Published | None = None
        self.unsound: str = ""
        """What is not finite in the version offered last, which was not published."""
        self.error: BaseException | None = None

    # Start and end

    def lead(
        self,
        claimant: Claimant,
        enough: Callable[[list[Manifest]], bool],
        stop: threading.Event,
        *,
        at_once: bool = False,
        on_standby: Callable[[], None] = lambda: None,
    ) -> list[Manifest]:
        """Become the leader, waiting while another trainer leads (`trainer.election`); returns the versions before it.

        Raises `wire.kafka.retry.StoppedError` once ``stop`` is set.
        """
        election = Election(self._kafka, self._config, claimant, stop, on_standby)
        led = election.lead(enough, at_once=at_once)
        self.claimant, self.epoch, self._checked_offset = claimant.name, led.epoch, led.next_offset
        self._keeper.note(led.manifests)
        return led.manifests

    def newest_weights(self, manifests: list[Manifest]) -> Weights | None:
        """The newest weights that a reader can reach among the versions before this epoch; None if there are none."""
        if not manifests:
            return None
        return patiently(
            lambda: self._read_weights(manifests[-1].base_offset), "reading the last version", self._kafka, self._stop
        )

    def _read_weights(self, start: int) -> Weights | None:
        reader, _ = self._clients()
        first = reader.beginning_offsets([self._topic])[self._topic]
        for each in (max(start, first), first):  # from the topic's start if the last base is damaged
            weights, _ = newest_weights(
                read(reader, self._topic.topic, {self._topic.partition: Span(each, self._checked_offset)})
            )
            if weights is not None:
                return weights
        return None

    def _claim(self, *, released: bool = False) -> Claim:
        return Claim(epoch=self.epoch, claimant=self.claimant, released=released)

    def _clients(self) -> tuple[KafkaConsumer, KafkaProducer]:
        if self._consumer is None:
            self._consumer = make_consumer(self._kafka, **PROMPT)
            partitions_of(self._consumer, self._topic.topic)
        if self._producer is None:
            self._producer = make_producer(self._kafka)
        return self._consumer, self._producer

    def _patiently(self, action: Callable[[], Any], what: str) -> Any:
        return patiently(action, what, self._kafka, self._stop)

    # The training thread

    @property
    def idle(self) -> bool:
        """Whether the version last offered is acknowledged."""
        return self._pending is None

    @property
    def wants_base(self) -> bool:
        """Whether the next version should be a base."""
        return self._needs_base or self.base_is_old or self.next_number % self._config.base_every == 0

    def need_base(self) -> None:
        """Make the next version a base: the weights no longer follow from the last delta."""
        self._needs_base = True

    @property
    def base_is_old(self) -> bool:
        """Whether the newest base has used up its share of the topic's retention.

        Once it is gone, no server can start from the deltas after it; so a trainer that learns little, or nothing,
        publishes another one in time.
        """
        return self._clock() - self._base_s > self._config.base_max_age_share * self._kafka.weights_kept_s

    def offer(self, kind: str, make_blob: MakeBlob, make_manifest: MakeManifest) -> None:
        """Hand over the next version; only when `idle`. ``make_manifest`` gets the fields that the publisher knows.

        If ``make_blob`` raises `UnsoundVersionError`, nothing is published, and `unsound` says why.
        """
        with self._wake:
            assert self._pending is None, "a version was offered while another one was on its way"
            self.unsound = ""
            self._pending = _Offer(self.next_number, kind, make_blob, make_manifest)
            self.next_number += 1
            if kind == "base":
                self._base_s, self._needs_base = self._clock(), False
            self._wake.notify_all()

    def start(self) -> None:
        """Start the publishing thread."""
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error that ended the thread, if one did."""
        if self.error is not None:
            raise self.error

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything offered is acknowledged; False if that takes longer than ``timeout_s``."""
        with self._wake:
            self._wake.wait_for(lambda: self._pending is None or self.error is not None, timeout_s)
        self.check()
        return self.idle

    def close(self, *, release: bool = False) -> None:
        """Stop the thread and close the connections; the next process's base covers what is not acknowledged.

        ``release``: tell standbys that this trainer has ended, so that they need not wait for its silence.
        """
        self._stop.set()
        with self._wake:
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(30)
        if release and self.epoch >= 0 and self.error is None:
            try:
                send_claim(self._clients()[1], self._topic.topic, self._claim(released=True))
            except (KafkaError, OSError) as error:
                log.warning("the epoch could not be released: standbys wait for silence instead", error=repr(error))
        for client in (self._producer, self._consumer):
            if client is not None:
                client.close()

    # The publishing thread

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._next() is not None:
                    self._publish()
                elif not self._stop.is_set():
                    self._patiently(self._check_fence, "looking for another trainer")
        except StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  (handed to the training thread, which raises it)
            with self._wake:
                self.error = error
                self._wake.notify_all()

    def _next(self) -> _Offer | None:
        with self._wake:
            self._wake.wait_for(lambda: self._pending is not None or self._stop.is_set(), FENCE_CHECK_S)
            return None if self._stop.is_set() else self._pending

    def _publish(self) -> None:
        offer = self._pending
        assert offer is not None
        try:
            blob = offer.make_blob()
        except UnsoundVersionError as error:
            self._drop(offer, str(error))
            return
        key = version_key(self.epoch, offer.number)
        self._patiently(self._check_fence, "looking for another trainer")
        if offer.kind == "base":  # with each one, so that retention never removes the claim of a live trainer
            self._patiently(self._send_claim, "renewing the claim of this epoch")
        first_offset = self._patiently(lambda: self._send_chunks(key, blob), "publishing a version's chunks")
        if offer.kind == "base":
            self._base = (offer.number, first_offset)
        base_number, base_offset = self._base
        manifest = offer.make_manifest(
            epoch=self.epoch,
            number=offer.number,
            kind=offer.kind,
            onto_number=-1 if offer.kind == "base" else offer.number - 1,
            base_number=base_number,
            base_offset=base_offset,
            num_chunks=max(1, -(-blob.num_bytes // self._config.chunk_bytes)),
            num_bytes=blob.num_bytes,
            checksum=blob.checksum(),
            created_ms=int(time.time() * 1000),
        )
        self._patiently(lambda: self._send_manifest(key, manifest), "publishing a version's manifest")
        with self._wake:
            self.last = Published(manifest, int(time.time() * 1000))
            self._pending = None
            self._wake.notify_all()
        self._keeper.note([manifest])
        if offer.kind == "base":
            self._keeper.trim()

    def _drop(self, offer: _Offer, problem: str) -> None:
        with self._wake:
            self.unsound, self.next_number, self._pending = problem, offer.number, None
            self._wake.notify_all()

    def _send_claim(self) -> None:
        if self._base != (-1, -1):  # before the first base, the claim is fresh
            send_claim(self._clients()[1], self._topic.topic, self._claim())

    def _send_chunks(self, key: bytes, blob: Tensors) -> int:
        """The offset of the first one. A few are on their way at a time: the rest waits in the arrays that it is."""
        _, writer = self._clients()
        sends, first_offset = deque[Any](), -1
        for index, chunk in enumerate(blob.chunks(self._config.chunk_bytes)):
            headers = chunk_headers(index)
            sends.append(writer.send(self._topic.topic, key=key, value=chunk, headers=headers, partition=0))
            if index == 0 or len(sends) > MOST_IN_FLIGHT:
                offset = self._acknowledged(sends.popleft()).offset
                first_offset = first_offset if index else offset
        for send in sends:
            self._acknowledged(send)
        return int(first_offset)

    def _send_manifest(self, key: bytes, manifest: Manifest) -> None:
        self._check_fence()
        _, writer = self._clients()
        value = encode_manifest(manifest)
        self._acknowledged(writer.send(self._topic.topic, key=key, value=value, headers=MANIFEST_HEADERS, partition=0))

    def _acknowledged(self, send: Any) -> Any:
        try:
            return send.get(20)
        except KafkaError:
            # The producer may still hold the failed batch; a new one starts clean. Readers ignore repeated chunks.
            if self._producer is not None:
                self._producer.close(timeout=0)
                self._producer = None
            raise

    def _check_fence(self) -> None:
        reader, _ = self._clients()
        for record in read_from(reader, self._topic, self._checked_offset):
            self._checked_offset = record.offset + 1
            claim = claim_of(record)
            if claim is not None and claim.epoch > self.epoch:
                raise FencedError(
                    f"epoch {self.epoch}: another trainer ({claim.claimant}) has claimed epoch {claim.epoch}; this "
                    "one stops. Start it again to have it wait as a standby"
                )
