"""What the weights topic says: which versions are valid, which steps they contain, which trainer leads.

Reads the topic's tail, in windows that grow towards its beginning, until the wanted step is found: starting a trainer
never requires reading all of a long-lived topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from wire.kafka.consumer import Span, ends, read, read_from
from wire.weights import Claim, Manifest, claim_of, manifest_of

FIRST_WINDOW = 256


class ClaimLog:
    """The claims in the weights topic: the one that is in force, and the highest epoch seen, in versions too."""

    def __init__(self, consumer: KafkaConsumer, where: TopicPartition) -> None:
        self._consumer, self._where = consumer, where
        self.newest: Claim | None = None
        self.highest = -1
        self._next_offset = -1

    def refresh(self) -> None:
        """Read on: at first backwards from the topic's end until there is a claim, later only new records."""
        if self._next_offset >= 0:
            self._note(read_from(self._consumer, self._where, self._next_offset))
            return
        first = self._consumer.beginning_offsets([self._where])[self._where]
        end = ends(self._consumer, [self._where])[self._where]
        window = FIRST_WINDOW
        while self._next_offset < 0:
            start = max(first, end - window)
            self._note(read_from(self._consumer, self._where, start))
            if start > first and self.newest is None:
                window, self._next_offset = window * 4, -1
            else:
                self._next_offset = max(self._next_offset, end)

    def _note(self, records: Iterator[Any]) -> None:
        for record in records:
            self._next_offset = record.offset + 1
            if (manifest := manifest_of(record)) is not None:
                self.highest = max(self.highest, manifest.epoch)
            elif (claim := claim_of(record)) is not None:
                self._take(claim)

    def _take(self, claim: Claim) -> None:
        newest = self.newest
        is_release = newest is not None and claim.released and claim.claimant == newest.claimant
        if newest is None or claim.epoch > newest.epoch or is_release:
            self.newest = claim
        self.highest = max(self.highest, claim.epoch)


def read_manifests(
    consumer: KafkaConsumer, where: TopicPartition, enough: Callable[[list[Manifest]], bool], end: int | None = None
) -> tuple[list[Manifest], int]:
    """Valid manifests in log order, from far enough back that ``enough`` holds (or all); the highest epoch seen."""
    first = consumer.beginning_offsets([where])[where]
    end = ends(consumer, [where])[where] if end is None else end
    window = FIRST_WINDOW
    while True:
        start = max(first, end - window)
        manifests, epoch = _counting(read(consumer, where.topic, {where.partition: Span(start, end)}))
        if start == first or enough(manifests):
            return manifests, epoch
        window *= 4


def _counting(records: Iterator[Any]) -> tuple[list[Manifest], int]:
    manifests: list[Manifest] = []
    floor = highest = -1
    for record in records:
        if (claim := claim_of(record)) is not None:
            floor = max(floor, claim.epoch)
        elif (manifest := manifest_of(record)) is not None:
            highest = max(highest, manifest.epoch)
            newest = (manifests[-1].epoch, manifests[-1].number) if manifests else (-1, -1)
            if manifest.epoch >= floor and (manifest.epoch, manifest.number) > newest:
                manifests.append(manifest)
    return manifests, max(highest, floor)
