"""Which users and items were to be forgotten, and since when: what `headrace dead-letters --resend` must not send.

The requests are in the actions topic, for as long as that keeps them. An action is older than a request if it stands
before it in the topic; in another partition, if it stands before whatever was written there after the request.

Days of actions are many, and requests are few. So the topic is read by whole batches, and only those that have the word
are read by records.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition

from headrace.sentences import say
from wire.action_json import ForgetRequest, Refused, decode_free, forget_request_of
from wire.config import KafkaConfig
from wire.dead_letter import DeadLetter
from wire.hashing import canonical
from wire.kafka.batches import by_batch
from wire.kafka.consumer import Span, connect, read, spans

Key = tuple[str, str]
"""("user" or "item", its canonical name)."""
END = 1 << 63
NEAR = 10_000
"""Batches that are no further apart are read by records together with what is between them."""
PROGRESS_EVERY_S = 5.0
_ESCAPED = re.compile(b"".join(rb"(?:%c|\\u00(?i:%02x))" % (letter, letter) for letter in b"forget"))
"""The word as JSON may spell it."""


class Forgotten:
    """The newest request about each user and item. ``held``: what the actions topic holds, by partition."""

    def __init__(self, topic: str, held: Mapping[int, Span]) -> None:
        self._topic, self._held = topic, held
        self._until: dict[Key, dict[int, int]] = {}
        """By partition: the offset before which actions are older than the request."""

    @classmethod
    def read(cls, kafka: KafkaConfig, consumer: KafkaConsumer, topic: str, letters: Mapping[int, int]) -> Forgotten:
        """Every request that may be newer than a letter. ``letters``: partition → the first offset that a letter is
        from."""
        held = spans(consumer, topic)
        forgotten, newest = cls(topic, held), dict[Key, Any]()
        for request, record in _requests(kafka, consumer, topic, _since(consumer, topic, held, letters)):
            if request.users:
                forgotten._note_quiet(request, record.partition)
                continue
            key = _key_of(request)
            if key not in newest or newest[key].timestamp <= record.timestamp:
                newest[key] = record
        for key, record in newest.items():
            after = _first_after(consumer, topic, held, record.timestamp)
            since = max(record.offset, forgotten._until.get(key, {}).get(record.partition, 0))
            forgotten._until[key] = {**after, record.partition: since}
        return forgotten

    def _note_quiet(self, request: ForgetRequest, partition: int) -> None:
        """Users whom a worker forgot since they were quiet: of what it refused, only what is as old is left out."""
        for user in request.users:
            until = self._until.setdefault(("user", user), dict.fromkeys(self._held, 0))
            until[partition] = max(until[partition], request.before_offset)

    def is_known(self, letter: DeadLetter) -> bool:
        """Whether the actions topic still holds all that has come since this letter's action."""
        span = self._held.get(letter.partition) if letter.topic == self._topic else None
        return span is not None and letter.offset >= span.first

    def since(self, kafka: KafkaConfig, consumer: KafkaConsumer) -> Iterator[tuple[Key, Any]]:
        """The requests that have come since these were read, as records of the actions topic; without those about quiet
        users, which do not concern who acts afterwards."""
        now = spans(consumer, self._topic) if self._held else {}
        later = {number: Span(self._held[number].end, span.end) for number, span in now.items() if number in self._held}
        for request, record in _requests(kafka, consumer, self._topic, later):
            if not request.users:
                yield _key_of(request), record

    def covers(self, letter: DeadLetter, action: Mapping[str, Any]) -> bool:
        """Whether the action's user or item was to be forgotten after the action came."""
        for what in ("user", "item"):
            name = action[what]
            key = what, canonical(int(name) if isinstance(name, float) else name)
            if key in self._until and letter.offset < self._until[key].get(letter.partition, END):
                return True
        return False


def _key_of(request: ForgetRequest) -> Key:
    return ("user", request.user) if request.user else ("item", canonical(request.item))


def _since(
    consumer: KafkaConsumer, topic: str, held: Mapping[int, Span], letters: Mapping[int, int]
) -> Mapping[int, Span]:
    """Where in each partition to begin: at the time of the first action that a letter is from."""
    known = {number: first for number, first in letters.items() if number in held}
    if not known or any(first < held[number].first for number, first in known.items()):
        return held if known else {}
    ones = {number: Span(first, min(first + 1, held[number].end)) for number, first in known.items()}
    times = [record.timestamp for record in read(consumer, topic, ones)]
    if len(times) < len(ones):
        return held
    begin = _first_after(consumer, topic, held, min(times) - 1)
    return {number: Span(min(begin[number], span.end), span.end) for number, span in held.items()}


def _first_after(consumer: KafkaConsumer, topic: str, held: Mapping[int, Span], time_ms: int) -> dict[int, int]:
    """By partition: the first offset that was written later than this; `END` if there is none."""
    asked = {TopicPartition(topic, number): time_ms + 1 for number in held}
    found = consumer.offsets_for_times(asked)
    # The embedded broker says so by a time of -1, and offset 0.
    return {each.partition: at.offset if (at := found.get(each)) and at.timestamp >= 0 else END for each in asked}


def _requests(
    kafka: KafkaConfig, consumer: KafkaConsumer, topic: str, wanted: Mapping[int, Span]
) -> Iterator[tuple[ForgetRequest, Any]]:
    for number, span in _candidates(kafka, topic, wanted):
        for record in read(consumer, topic, {number: span}):
            request = request_of(record.value)
            if request is not None and not request.is_back:
                yield request, record


def _candidates(kafka: KafkaConfig, topic: str, wanted: Mapping[int, Span]) -> list[tuple[int, Span]]:
    """Where a request may be: the partition and the offsets of batches that have the word, the near ones together."""
    found, told_s, num_read = list[tuple[int, Span]](), time.monotonic(), 0
    num = sum(max(0, span.end - span.first) for span in wanted.values())
    if not num:
        return found
    consumer = by_batch(connect(kafka))
    try:
        last = dict[int, Span]()
        for record in read(consumer, topic, wanted):
            batch = record.value
            first = batch.base_offset
            num_read += record.offset + 1 - first
            if time.monotonic() - told_s > PROGRESS_EVERY_S:
                told_s = time.monotonic()
                say(f"looking for requests to forget: {num_read:,} of {num:,} records of {topic} are read")
            if not _has_word(batch.data):
                continue
            before = last.get(record.partition)
            if before is not None and first - before.end > NEAR:
                found.append((record.partition, before))
                before = None
            last[record.partition] = Span(before.first if before else first, record.offset + 1)
    finally:
        consumer.close()
    inside = [*found, *last.items()]
    return [(number, Span(max(span.first, wanted[number].first), span.end)) for number, span in inside]


def _has_word(data: bytes | bytearray) -> bool:
    return b"forget" in data or (b"\\u00" in data and _ESCAPED.search(data) is not None)


def request_of(value: bytes | None) -> ForgetRequest | None:
    """The request that a record is. Lists, which most records are, have none."""
    if not value or value[:1] == b"[" or not _has_word(value):
        return None
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, Refused):
        return forget_request_of(decode_free(value))
    return None
