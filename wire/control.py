"""An operator's decisions about a deployment: records of ``headrace.control.v1`` (compacted).

`PIN_KEY`: the version that servers answer from, and why; a tombstone lets them follow the newest again. `LINE_KEY`: the
line of training (`KafkaConfig.line`) whose versions they follow; a tombstone: the one in their configuration.
`MIGRATION_KEY`: the deployment that this one continues (`headrace repartition`).
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from wire.checks import MAX_WHOLE
from wire.errors import CodecError, VersionError
from wire.json_value import Whole, decode_json

PIN_KEY, LINE_KEY, MIGRATION_KEY = b"pin", b"line", b"migration"
Decision = TypeVar("Decision", "Pin", "Switch", "Migration")
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


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """This deployment continues the one with the prefix ``source``. ``is_done``: all of its users are here; no worker
    starts before that. ``ends``: partition → where the actions of ``source`` that they cover end."""

    source: str
    is_done: bool
    made_ms: Whole
    made_by: str = ""
    ends: dict[int, Whole] = {}


_pin, _switch, _migration = msgspec.json.Decoder(Pin), msgspec.json.Decoder(Switch), msgspec.json.Decoder(Migration)


def encode_decision(decision: Pin | Switch | Migration) -> bytes:
    """A decision → JSON."""
    return msgspec.json.encode(decision)


def decode_pin(value: bytes) -> Pin:
    """JSON → `Pin`. Raises `VersionError`."""
    return _decoded(value, _pin, "pin")


def decode_switch(value: bytes) -> Switch:
    """JSON → `Switch`. Raises `VersionError`."""
    return _decoded(value, _switch, "line")


def decode_migration(value: bytes) -> Migration:
    """JSON → `Migration`. Raises `VersionError`."""
    return _decoded(value, _migration, "migration")


def _decoded(value: bytes, decoder: msgspec.json.Decoder[Decision], what: str) -> Decision:
    try:
        return decode_json(value, decoder)
    except CodecError as error:
        raise VersionError(f"{what}: {error}") from error


def parse_version(text: str, what: str = "version") -> Which:
    """``EPOCH/NUMBER`` → (epoch, number). Raises `VersionError`."""
    epoch, slash, number = text.strip().partition("/")
    are_whole = all(each.isdecimal() and len(each) <= 16 and int(each) <= MAX_WHOLE for each in (epoch, number))
    if not (slash and are_whole):
        raise VersionError(
            f"{what}: expected EPOCH/NUMBER, such as 3/17, got {text[:80]!r}; `headrace versions` lists them"
        )
    return int(epoch), int(number)
