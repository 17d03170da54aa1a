"""What waits in a partition's outbox: examples and dead letters, in the order in which they go out."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from state.action import Rejection
from state.codec import restamp, unpack

_EXAMPLE = b"\x01"
_DEAD_LETTER = b"\x02"


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One record to produce. ``number``: the example's, -1 for a dead letter. ``record_ms``: Kafka time of the newest
    action behind it. ``headers`` only of dead letters."""

    index: int
    is_example: bool
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    number: int
    record_ms: int


class _DeadLetter(msgspec.Struct, array_like=True):
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    record_ms: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_DeadLetter)


def stored_example(value: bytes) -> bytes:
    """What the store keeps of an encoded example."""
    return _EXAMPLE + value


def stored_dead_letter(rejection: Rejection, topic: str, partition: int, offset: int, record_ms: int) -> bytes:
    """What the store keeps of a rejection: key and headers say where the refused bytes came from."""
    headers = [
        ("reason", rejection.reason), ("message", rejection.message), ("topic", topic), ("partition", str(partition)),
        ("offset", str(offset)), ("index", str(rejection.index)),
    ]  # fmt: skip
    return _DEAD_LETTER + _encoder.encode(
        _DeadLetter(
            f"{topic}/{partition}/{offset}".encode(),
            rejection.raw,
            [(name, text.encode("utf-8", "replace")) for name, text in headers],
            record_ms,
        )
    )


def entry_of(index: int, stored: bytes, writer_epoch: int) -> OutboxEntry:
    """The record to produce, an example under its present writer's epoch. Raises CodecError, msgspec.DecodeError."""
    if stored[:1] == _DEAD_LETTER:
        letter = _decoder.decode(memoryview(stored)[1:])
        return OutboxEntry(index, False, letter.key, letter.value, letter.headers, -1, letter.record_ms)
    value = stored[1:]
    header, _ = unpack(value)
    if header.writer_epoch != writer_epoch:
        value = restamp(value, writer_epoch)
    return OutboxEntry(index, True, header.user.encode(), value, [], header.number, header.newest_record_ms)
