"""What a number or text that should be milliseconds since 1970 looks like instead, and what to do about it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NamedTuple

MS_PER_DAY = 86_400_000
MAX_TIMESTAMP_MS = 253_402_300_799_999
"""The end of the year 9999."""
RECENT_MS = (631_152_000_000, 4_102_444_800_000)
"""1990 to 2100, where the time of an action most likely lies."""
_MANY = 1e20
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}")


class Unit(NamedTuple):
    """A unit of time since 1970: its name and its length in milliseconds."""

    name: str
    in_ms: float
    remedy: str


UNITS = (
    Unit("milliseconds", 1, "send it as it is"),
    Unit("seconds", 1000, "multiply by 1000"),
    Unit("microseconds", 1e-3, "divide by 1000"),
    Unit("nanoseconds", 1e-6, "divide by 1000000"),
)


def unit_of(number: float) -> Unit | None:
    """The unit in which ``number`` is a time between 1990 and 2100, if there is one: no two overlap."""
    if not abs(number) < _MANY:  # also for NaN
        return None
    return next((unit for unit in UNITS if RECENT_MS[0] <= number * unit.in_ms < RECENT_MS[1]), None)


def describe(entry: int | float | str) -> str:  # noqa: PYI041 an int is shown differently
    """What came instead of a usable time, the unit that it looks like, and the remedy."""
    if isinstance(entry, str):
        return _describe_text(entry)
    unit = unit_of(entry)
    if not isinstance(entry, int):
        looks = f", which looks like {unit.name}" if unit and unit.in_ms != 1 else ""
        return f"the fraction {entry!r}{looks}; send whole milliseconds"
    if unit is None or unit.in_ms == 1:
        return f"{_shown(entry)}; check the producer's clock and its unit"
    return f"{_shown(entry)}, which looks like {unit.name}; {unit.remedy}"


def _shown(number: int) -> str:
    return f"{number} ({iso_of(number)})" if abs(number) <= MAX_TIMESTAMP_MS else str(number)[:40]


def _describe_text(entry: str) -> str:
    shown = f"the text {entry[:40]!r}"
    try:
        number = float(entry)
    except ValueError:
        looks = ", which looks like ISO 8601" if _ISO.match(entry) else ""
        return f"{shown}{looks}; send the number of milliseconds"
    unit = unit_of(number)
    return f"{shown}{f', which looks like {unit.name}' if unit else ''}; send a number of milliseconds, without quotes"


def iso_of(timestamp_ms: int) -> str:
    """The moment as a date, if the calendar has it; otherwise the number."""
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(timestamp_ms)
