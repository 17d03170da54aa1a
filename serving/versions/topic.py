"""Reading a range of the weights topic: the records themselves, where a version is, and which bases to start from.

Scans go backwards from the end in ranges that double, because what is wanted is nearly always among the newest records.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from wire.control import Which
from wire.errors import VersionError
from wire.kafka.consumer import POLL_MS, asking, ends
from wire.weights import Manifest, claim_of, decode_manifest, record_kind

SCAN_RECORDS = 64
"""Length of the first range of a scan."""
REQUEST_TIMEOUT_MS = 2000
RECORDS_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class StartPoint:
    """Where to read from (a base's first chunk), and the lowest epoch that counts there."""

    offset: int
    epoch_floor: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """A manifest or a claim found by a scan."""

    offset: int
    epoch: int
    manifest: Manifest | None = None


class WeightsTopic:
    """One partition of the weights topic, read by range. Moves the consumer's position."""

    def __init__(self, consumer: KafkaConsumer, partition: TopicPartition, stopping: threading.Event) -> None:
        self.consumer, self.partition, self._stopping = consumer, partition, stopping

    def bounds(self) -> tuple[int, int]:
        """The first offset that the topic still has, and the one after the last. Raises KafkaError."""
        begin = self.consumer.beginning_offsets([self.partition], timeout_ms=REQUEST_TIMEOUT_MS)[self.partition]
        return begin, ends(self.consumer, [self.partition], REQUEST_TIMEOUT_MS / 1000)[self.partition]

    def records(self, lower: int, upper: int) -> Iterator[Any]:
        """The records at offsets lower … upper - 1. Raises KafkaError if none arrive for `RECORDS_TIMEOUT_S`."""
        self.consumer.seek(self.partition, lower)
        deadline = time.monotonic() + RECORDS_TIMEOUT_S
        with asking(self.consumer):
            while self.consumer.position(self.partition, REQUEST_TIMEOUT_MS) < upper and not self._stopping.is_set():
                records = self.consumer.poll(timeout_ms=POLL_MS).get(self.partition, [])
                if records:
                    deadline = time.monotonic() + RECORDS_TIMEOUT_S
                elif time.monotonic() > deadline:
                    raise KafkaError(f"expected records up to offset {upper}, got none for {RECORDS_TIMEOUT_S:.0f} s")
                for record in records:
                    if record.offset < upper:
                        yield record

    def find(self, begin: int, end: int, which: Which) -> tuple[Which | None, tuple[int, Manifest] | None]:
        """The newest version that the topic names, and offset and manifest of ``which``, if it is there."""
        newest = None
        for lower, upper in self._ranges(begin, end):
            for each in reversed(self._scan(lower, upper)):
                if each.manifest is not None:
                    newest = max(newest or each.manifest.which, each.manifest.which)
                    if each.manifest.which == which:
                        return newest, (each.offset, each.manifest)
        return newest, None

    def start_points(self, begin: int, end: int) -> Iterator[StartPoint]:
        """Bases to try, the newest first."""
        seen: list[_Seen] = []
        tried = upper = end
        size = SCAN_RECORDS
        while upper > begin and not self._stopping.is_set():
            lower = max(begin, upper - size)
            seen = [*self._scan(lower, upper), *seen]
            for point in _candidates(seen, tried):
                if lower > begin and not any(each.offset < point.offset for each in seen):
                    # A claim before that base may have fenced it off, so look there first. What lies between may be
                    # hundreds of chunks, and is read from that base on in any case.
                    lower = max(begin, min(lower, point.offset))
                    break
                tried = point.offset
                if tried >= begin:
                    yield point
            upper, size = lower, size * 2

    def _ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        upper, size = end, SCAN_RECORDS
        while upper > begin and not self._stopping.is_set():
            lower = max(begin, upper - size)
            yield lower, upper
            upper, size = lower, size * 2

    def _scan(self, lower: int, upper: int) -> list[_Seen]:
        found = []
        for record in self.records(lower, upper):
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


def _candidates(seen: list[_Seen], below: int) -> list[StartPoint]:
    """Distinct bases below offset ``below`` of the versions that are not fenced off, the newest first."""
    floor, points = 0, set[int]()
    for each in seen:
        if each.epoch >= floor and each.manifest is not None and each.manifest.base_offset < below:
            points.add(each.manifest.base_offset)
        floor = max(floor, each.epoch)
    return [
        StartPoint(offset, max((each.epoch for each in seen if each.offset < offset), default=0))
        for offset in sorted(points, reverse=True)
    ]
