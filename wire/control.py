"""What an operator decides for all servers of a deployment: records of ``headrace.control.v1`` (compacted).

One key so far, `PIN_KEY`: the version that servers answer from, and why; a tombstone lets them follow the newest again.
"""

from __future__ import annotations

import msgspec

from wire.errors import CodecError, VersionError
from wire.json_value import Whole, decode_json

PIN_KEY = b"pin"
Which = tuple[int, int]
"""(epoch, number) of a version."""


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """Answer from this version and no other. ``made_ms``: wall clock; ``made_by``: user and machine."""

    epoch: Whole
    number: Whole
    made_ms: Whole
    made_by: str = ""
    reason: str = ""

    @property
    def which(self) -> Which:
        """(epoch, number)."""
        return self.epoch, self.number


def encode_pin(pin: Pin) -> bytes:
    """`Pin` → JSON."""
    return msgspec.json.encode(pin)


def decode_pin(value: bytes) -> Pin:
    """JSON → `Pin`. Raises `VersionError`."""
    try:
        pin: Pin = decode_json(value, Pin)
    except CodecError as error:
        raise VersionError(f"pin: {error}") from error
    return pin


def parse_version(text: str, what: str = "version") -> Which:
    """``EPOCH/NUMBER`` → (epoch, number). Raises `VersionError`."""
    epoch, slash, number = text.strip().partition("/")
    if not (slash and epoch.isdecimal() and number.isdecimal()):
        raise VersionError(f"{what}: expected EPOCH/NUMBER, such as 3/17, got {text!r}; `headrace versions` lists them")
    return int(epoch), int(number)
