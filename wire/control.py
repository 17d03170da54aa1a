"""What an operator decides for all servers of a deployment: records of ``headrace.control.v1`` (compacted).

`PIN_KEY`: the version that servers answer from, and why; a tombstone lets them follow the newest again. `LINE_KEY`: the
line of training (`KafkaConfig.line`) whose versions they follow; a tombstone: that of their configuration.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from wire.errors import CodecError, VersionError
from wire.json_value import Whole, decode_json

PIN_KEY, LINE_KEY = b"pin", b"line"
Order = TypeVar("Order", "Pin", "Switch")
Which = tuple[int, int]
"""(epoch, number) of a version."""


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """Answer from this version of this line and no other. ``made_ms``: wall clock; ``made_by``: user and machine."""

    epoch: Whole
    number: Whole
    made_ms: Whole
    made_by: str = ""
    reason: str = ""
    line: str = ""

    @property
    def which(self) -> Which:
        """(epoch, number)."""
        return self.epoch, self.number


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """Follow the versions of this line of training; the other fields as in `Pin`."""

    line: str
    made_ms: Whole
    made_by: str = ""
    reason: str = ""


def encode_order(order: Pin | Switch) -> bytes:
    """An order → JSON."""
    return msgspec.json.encode(order)


def decode_pin(value: bytes) -> Pin:
    """JSON → `Pin`. Raises `VersionError`."""
    return _decoded(value, Pin, "pin")


def decode_switch(value: bytes) -> Switch:
    """JSON → `Switch`. Raises `VersionError`."""
    return _decoded(value, Switch, "line")


def _decoded(value: bytes, order: type[Order], what: str) -> Order:
    try:
        decoded: Order = decode_json(value, order)
    except CodecError as error:
        raise VersionError(f"{what}: {error}") from error
    return decoded


def parse_version(text: str, what: str = "version") -> Which:
    """``EPOCH/NUMBER`` → (epoch, number). Raises `VersionError`."""
    epoch, slash, number = text.strip().partition("/")
    if not (slash and epoch.isdecimal() and number.isdecimal()):
        raise VersionError(f"{what}: expected EPOCH/NUMBER, such as 3/17, got {text!r}; `headrace versions` lists them")
    return int(epoch), int(number)
