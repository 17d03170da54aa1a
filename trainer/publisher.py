"""Versions to ``headrace.weights.v1``, beside the training and never in its way.

The training thread hands over a snapshot (`Publisher.offer`) when the last one was acknowledged; this thread encodes
it, sends the chunks, then the manifest, and tries again for as long as the broker is away. A process that finds a
claim of a higher epoch stops: somebody else is the trainer now.
"""

from __future__ import annotations

import math
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from trainer import clients
from trainer.config import TrainerConfig
from trainer.errors import FencedError
from trainer.weights_log import QUICK, read_manifests, read_new
from wire.config import KafkaConfig
from wire.topics import Topics
from wire.weights import (
    CLAIM_HEADERS,
    CLAIM_KEY,
    MANIFEST_HEADERS,
    Claim,
    Manifest,
    Snapshot,
    checksum,
    chunk_headers,
    encode_blob,
    encode_manifest,
    record_kind,
    split_blob,
    version_key,
)

log = structlog.get_logger("trainer")
FENCE_CHECK_S = 2.0
"""How often a trainer that has nothing to publish looks whether another one has taken over."""


@dataclass(frozen=True, slots=True)
class Published:
    """A version that the broker has acknowledged: its manifest, and when its newest step was trained (monotonic)."""

    manifest: Manifest
    acknowledged_ms: int


class Publisher:
    """One epoch's versions. `claim` first; then `offer` from the training thread, `start`ed in its own thread."""

    def __init__(
        self, kafka: KafkaConfig, config: TrainerConfig, stop: threading.Event, clock: Callable[[], float] = time.time
    ) -> None:
        self._kafka, self._config, self._stop, self._clock = kafka, config, stop, clock
        self._topic = TopicPartition(Topics.under(kafka.prefix).weights, 0)
        self._consumer: KafkaConsumer | None = None
        self._producer: KafkaProducer | None = None
        self._checked_offset = 0
        self._pending: tuple[Snapshot, Manifest] | None = None
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._base = (-1, -1)
        self._base_s = math.inf
        self.epoch = -1
        self.next_number = 0
        self.last: Published | None = None
        self.error: BaseException | None = None

    # Start

    def claim(self, enough: Callable[[list[Manifest]], bool], stop: threading.Event) -> list[Manifest]:
        """Take the next epoch; the manifests that came before it and count (as far back as ``enough`` asks).

        Raises `trainer.clients.StoppedError` once ``stop`` is set while the broker is away.
        """
        return clients.patiently(
            lambda: self._claim(enough), "claiming an epoch in the weights topic", self._kafka, stop
        )

    def _claim(self, enough: Callable[[list[Manifest]], bool]) -> list[Manifest]:
        reader, writer = self._clients()
        _, highest = read_manifests(reader, self._topic, bool)
        claimant = f"{os.uname().nodename}/{os.getpid()}/{uuid.uuid4().hex}"
        while True:
            highest += 1
            claim = msgspec.json.encode(Claim(epoch=highest, claimant=claimant))
            sent = writer.send(self._topic.topic, key=CLAIM_KEY, value=claim, headers=CLAIM_HEADERS, partition=0).get(
                20
            )
            manifests, taken = read_manifests(reader, self._topic, enough, end=sent.offset)
            if taken < highest:
                break
            highest = taken
        self.epoch, self.next_number, self._checked_offset = highest, 0, sent.offset + 1
        log.info("epoch claimed", epoch=self.epoch, versions_before=len(manifests))
        return manifests

    def _clients(self) -> tuple[KafkaConsumer, KafkaProducer]:
        if self._consumer is None:
            self._consumer = clients.consumer(self._kafka, **QUICK)
            clients.partitions_of(self._consumer, self._topic.topic)
        if self._producer is None:
            self._producer = clients.producer(self._kafka)
        return self._consumer, self._producer

    def _patiently(self, action: Callable[[], Any], what: str) -> Any:
        return clients.patiently(action, what, self._kafka, self._stop)

    # The training thread

    @property
    def idle(self) -> bool:
        """Whether the version offered last is acknowledged."""
        return self._pending is None

    @property
    def wants_base(self) -> bool:
        """Whether the next version is to carry everything."""
        return self.base_is_old or self.next_number % self._config.base_every == 0

    @property
    def base_is_old(self) -> bool:
        """Whether the newest base has used up its share of the topic's retention.

        Once it is gone, no server can start from the deltas behind it; so a trainer that learns little, or nothing,
        publishes another in time.
        """
        return self._clock() - self._base_s > self._config.base_max_age_share * self._kafka.actions_retention_s

    def offer(self, snapshot: Snapshot, manifest: Manifest) -> None:
        """Hand over the next version; only when `idle`. This object fills in what concerns the wire."""
        with self._wake:
            assert self._pending is None, "a version was offered while another is on its way"
            self._pending = (snapshot, manifest)
            self.next_number += 1
            if manifest.kind == "base":
                self._base_s = self._clock()
            self._wake.notify_all()

    def start(self) -> None:
        """Begin to send."""
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self.error is not None:
            raise self.error

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything offered is acknowledged; False when it takes longer."""
        with self._wake:
            self._wake.wait_for(lambda: self._pending is None or self.error is not None, timeout_s)
        self.check()
        return self.idle

    def close(self) -> None:
        """End the thread and the connections; what is not acknowledged is left to the next process's base."""
        self._stop.set()
        with self._wake:
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(30)
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
        except clients.StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  (handed to the training thread, which raises it)
            with self._wake:
                self.error = error
                self._wake.notify_all()

    def _next(self) -> tuple[Snapshot, Manifest] | None:
        with self._wake:
            self._wake.wait_for(lambda: self._pending is not None or self._stop.is_set(), FENCE_CHECK_S)
            return None if self._stop.is_set() else self._pending

    def _publish(self) -> None:
        assert self._pending is not None
        snapshot, manifest = self._pending
        blob = encode_blob(snapshot)
        chunks = split_blob(blob, self._config.chunk_bytes)
        manifest.num_chunks, manifest.num_bytes, manifest.checksum = len(chunks), len(blob), checksum(blob)
        self._patiently(self._check_fence, "looking for another trainer")
        first_offset = self._patiently(lambda: self._send_chunks(manifest, chunks), "publishing a version's chunks")
        if manifest.kind == "base":
            self._base = (manifest.number, first_offset)
        manifest.base_number, manifest.base_offset = self._base
        self._patiently(lambda: self._send_manifest(manifest), "publishing a version's manifest")
        with self._wake:
            self.last = Published(manifest, int(time.time() * 1000))
            self._pending = None
            self._wake.notify_all()

    def _send_chunks(self, manifest: Manifest, chunks: list[bytes]) -> int:
        _, writer = self._clients()
        key = version_key(manifest.epoch, manifest.number)
        sends = [
            writer.send(self._topic.topic, key=key, value=chunk, headers=chunk_headers(index), partition=0)
            for index, chunk in enumerate(chunks)
        ]
        return int(min(self._acknowledged(send).offset for send in sends))

    def _send_manifest(self, manifest: Manifest) -> None:
        self._check_fence()
        _, writer = self._clients()
        key = version_key(manifest.epoch, manifest.number)
        self._acknowledged(
            writer.send(
                self._topic.topic, key=key, value=encode_manifest(manifest), headers=MANIFEST_HEADERS, partition=0
            )
        )

    def _acknowledged(self, send: Any) -> Any:
        try:
            return send.get(20)
        except KafkaError:
            # The producer may hold the broken batch; a fresh one starts clean. Readers take repeated chunks by index.
            if self._producer is not None:
                self._producer.close(timeout=0)
                self._producer = None
            raise

    def _check_fence(self) -> None:
        reader, _ = self._clients()
        for record in read_new(reader, self._topic, self._checked_offset):
            self._checked_offset = record.offset + 1
            if record_kind(record.headers) == "claim":
                claim = msgspec.json.decode(record.value, type=Claim)
                if claim.epoch > self.epoch:
                    raise FencedError(
                        f"epoch {self.epoch}: another trainer ({claim.claimant}) has claimed epoch {claim.epoch}; this "
                        "one stops. Run one trainer per kafka.prefix"
                    )
