"""Which partitions of the users a server holds: all of them, some by number, or a share.

    all        every partition
    0-3,7      these
    1/4        the first of four shares: partitions 0, 4, 8, …

A share stays right whatever the number of partitions is. Shares 1/N to N/N together are all partitions, each once.
"""

from __future__ import annotations

import re
from typing import Any

from wire.checks import expect

EVERY, NONE = "all", "none"
ADVICE = "all holds every user"
_RANGES = re.compile(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*", re.ASCII)
_SHARE = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})", re.ASCII)


class Partitions:
    """The limit of a key that says which partitions are held."""

    def check(self, key: str, value: Any) -> None:
        """Raise `ConfigError` unless the value is in one of the forms above."""
        expected = "all, numbers of partitions such as 0-3,7, or a share such as 1/4"
        expect(isinstance(value, str) and is_holding(value), key, expected, value, ADVICE)


def is_holding(text: str) -> bool:
    """Whether the text is in one of the forms above."""
    if share := _SHARE.fullmatch(text):
        return int(share[1]) <= int(share[2])
    return text == EVERY or (
        _RANGES.fullmatch(text) is not None and all(first <= last for first, last in _ranges(text))
    )


def partitions_held(text: str, num_partitions: int) -> frozenset[int]:
    """The partitions that are meant, of those that there are; none for a text in no form."""
    if text == EVERY:
        return frozenset(range(num_partitions))
    if not is_holding(text):
        return frozenset()
    if share := _SHARE.fullmatch(text):
        return frozenset(range(int(share[1]) - 1, num_partitions, int(share[2])))
    return frozenset(number for first, last in _ranges(text) for number in range(first, min(last + 1, num_partitions)))


def beyond(text: str, num_partitions: int) -> bool:
    """Whether partitions are meant by number that do not exist."""
    return _RANGES.fullmatch(text) is not None and any(last >= num_partitions for _, last in _ranges(text))


def as_ranges(numbers: frozenset[int] | set[int] | list[int]) -> str:
    """Numbers of partitions in the second form; empty for none."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in found)


def _ranges(text: str) -> list[tuple[int, int]]:
    pairs = [part.partition("-") for part in text.split(",")]
    return [(int(first), int(last or first)) for first, _, last in pairs]
