"""A dead letter: the bytes that were refused as the record's value; where they came from, and why, as its headers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

Headers = list[tuple[str, bytes]]
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a dead letter says of its record. ``index``: position in a list, or -1 for the whole record.

    (topic, partition, offset, index) identifies it: after a restore it may be written again.
    """

    reason: str = UNKNOWN
    message: str = ""
    topic: str = ""
    partition: int = -1
    offset: int = -1
    index: int = -1

    @property
    def key(self) -> bytes:
        """The record's key."""
        return self.place.encode()

    @property
    def place(self) -> str:
        """Where the refused record is, as text."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    def headers(self) -> Headers:
        """The record's headers."""
        return [(name, str(entry).encode("utf-8", "replace")) for name, entry in asdict(self).items()]


def read_headers(headers: Iterable[tuple[str, bytes | None]]) -> DeadLetter:
    """What the headers of a record say; anyone may have written it, so what is missing or unreadable is the default."""
    given = {name: (value or b"").decode("utf-8", "replace") for name, value in headers}
    partition, offset, index = (_number(given.get(name, "")) for name in ("partition", "offset", "index"))
    return DeadLetter(
        given.get("reason") or UNKNOWN, given.get("message", ""), given.get("topic", ""), partition, offset, index
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 19 else -1
