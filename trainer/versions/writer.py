"""Writes one epoch's records to the weights topic, and notices when another trainer has claimed a higher one, or the
topic is no longer the one in which this epoch was claimed."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from trainer.errors import FencedError
from trainer.versions.election import send_claim
from trainer.versions.weights import Weights, newest_weights
from wire.config import KafkaConfig
from wire.kafka.consumer import PROMPT, Span, make_consumer, partitions_of, read, read_from
from wire.kafka.identity import LOOK_S, TopicWatch, identities
from wire.kafka.producer import make_producer
from wire.tensors import Tensors
from wire.topics import Topics
from wire.weights import MANIFEST_HEADERS, Claim, Manifest, chunk_headers, claim_of, encode_manifest, version_key

MOST_IN_FLIGHT = 16
SEND_TIMEOUT_S = 20
REMEDY = (
    "If it is gone, create it again: headrace topics --create; then start the trainer, which claims another epoch "
    "there and begins with a whole version"
)


class WeightsWriter:
    """The leader's connections, made when they are needed. Every call may raise the broker's errors."""

    def __init__(self, kafka: KafkaConfig, chunk_bytes: int) -> None:
        self._kafka, self._chunk_bytes = kafka, chunk_bytes
        self._topic = TopicPartition(Topics.under(kafka.prefix, kafka.line).weights, 0)
        self._consumer: KafkaConsumer | None = None
        self._producer: KafkaProducer | None = None
        self._watch: TopicWatch | None = None
        self._looked_s = -math.inf
        self._checked_offset = 0
        self._claimant = ""
        self.epoch = -1
        """The epoch that is led; -1 before `begin`."""

    def begin(self, claimant: str, epoch: int, next_offset: int) -> None:
        """Write under ``epoch``, which ``claimant`` has claimed; ``next_offset`` is the one after the claim."""
        self._claimant, self.epoch, self._checked_offset = claimant, epoch, next_offset

    def newest_weights(self, base_offset: int) -> Weights | None:
        """The newest weights before this epoch; None if no reader could get any. ``base_offset``: of their base."""
        reader = self._made_consumer()
        first = reader.beginning_offsets([self._topic])[self._topic]
        for start in (max(base_offset, first), first):  # from the topic's start if the last base is damaged
            weights, _ = newest_weights(
                read(reader, self._topic.topic, {self._topic.partition: Span(start, self._checked_offset)})
            )
            if weights is not None:
                return weights
        return None

    def check_topic(self) -> None:
        """Every few seconds, raise `TopicMissing` or `TopicReplaced` if the topic is not that of this epoch any more:
        deltas in a topic without their base, and without a claim that fences off others, are of no use."""
        if time.monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = time.monotonic()
        name = self._topic.topic
        if self._watch is None:
            found = identities(self._kafka, [name])
            self._watch = TopicWatch(self._kafka, found, {name: REMEDY}) if found else None
        else:
            self._watch.look(f"epoch {self.epoch} of this trainer")

    def check_fence(self) -> None:
        """Raise `FencedError` if another trainer has claimed a higher epoch."""
        for record in read_from(self._made_consumer(), self._topic, self._checked_offset):
            self._checked_offset = record.offset + 1
            claim = claim_of(record)
            if claim is not None and claim.epoch > self.epoch:
                raise FencedError(
                    f"epoch {self.epoch}: another trainer ({claim.claimant}) has claimed epoch {claim.epoch}; this "
                    "one stops. Start it again to have it wait as a standby"
                )

    def send_claim(self, *, released: bool = False) -> None:
        """Repeat the claim of this epoch, or (``released``) give it up."""
        claim = Claim(epoch=self.epoch, claimant=self._claimant, released=released)
        send_claim(self._made_producer(), self._topic.topic, claim)

    def send_chunks(self, number: int, blob: Tensors) -> int:
        """Send a version's chunks; returns the offset of the first.

        Only a few are in flight at a time; the others need no memory beyond the blob's arrays.
        """
        writer, key = self._made_producer(), version_key(self.epoch, number)
        sends, first_offset = deque[Any](), -1
        for index, chunk in enumerate(blob.chunks(self._chunk_bytes)):
            headers = chunk_headers(index)
            sends.append(writer.send(self._topic.topic, key=key, value=chunk, headers=headers, partition=0))
            if index == 0 or len(sends) > MOST_IN_FLIGHT:
                offset = self._acknowledged(sends.popleft()).offset
                first_offset = first_offset if index else offset
        for send in sends:
            self._acknowledged(send)
        return int(first_offset)

    def send_manifest(self, manifest: Manifest) -> None:
        """Send a version's manifest, unless another trainer leads by now."""
        self.check_fence()
        key, value = version_key(self.epoch, manifest.number), encode_manifest(manifest)
        self._acknowledged(
            self._made_producer().send(self._topic.topic, key=key, value=value, headers=MANIFEST_HEADERS, partition=0)
        )

    def _acknowledged(self, send: Any) -> Any:
        try:
            return send.get(SEND_TIMEOUT_S)
        except KafkaError:
            # The producer may still hold the failed batch; a new one does not. Readers ignore repeated chunks.
            if self._producer is not None:
                self._producer.close(timeout=0)
                self._producer = None
            raise

    def _made_consumer(self) -> KafkaConsumer:
        if self._consumer is None:
            self._consumer = make_consumer(self._kafka, **PROMPT)
            partitions_of(self._consumer, self._topic.topic)
        return self._consumer

    def _made_producer(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = make_producer(self._kafka)
        return self._producer

    def close(self) -> None:
        """Close the connections."""
        for client in (self._producer, self._consumer, self._watch):
            if client is not None:
                client.close()
