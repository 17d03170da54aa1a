"""Values that are allowed, and probably meant in another unit: milliseconds in a key that is in seconds, megabytes in
one that is in bytes. `wire.checks.Number.usual` says beside each key what is usual; outside of it a process warns at
its start, in one line, and goes on: there may be a reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from wire.checks import Limit, Number

_UNITS: dict[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "_s": ("seconds", (("milliseconds", 1e-3), ("minutes", 60.0), ("hours", 3600.0), ("days", 86_400.0))),
    "_ms": ("milliseconds", (("seconds", 1e3),)),
    "_days": ("days", (("hours", 1 / 24), ("seconds", 1 / 86_400))),
    "_bytes": ("bytes", (("kilobytes", 1e3), ("megabytes", 1e6), ("gigabytes", 1e9))),
}
"""End of a key → its unit, and how much of it others are."""


class Doubt(NamedTuple):
    """A value that is not usual: ``words`` name the key, what is usual and what it is, ``remedy`` says what to do."""

    words: str
    remedy: str


def doubts(config: Any, section: str, limits: Mapping[str, Limit]) -> Iterator[Doubt]:
    """Each value of a section that is not usual."""
    for name, limit in limits.items():
        if isinstance(limit, Number) and limit.is_unusual(value := getattr(config, name)):
            yield _doubt(f"{section}.{name}", limit, value)


def _doubt(name: str, limit: Number, value: float) -> Doubt:
    unit, others = next((each for end, each in _UNITS.items() if name.endswith(end)), ("", ()))
    kind = f" {unit}" if unit else ""
    words = f"{name}: expected {limit.usual_words}{kind} as a rule, got {value:.15g}"
    meant = [
        f"{value * factor:.15g} if {other} are meant"
        for other, factor in others
        if not limit.is_unusual(value * factor)
    ]
    return Doubt(words, f"write {', '.join(meant)}" if meant else "correct it, unless it is meant")
