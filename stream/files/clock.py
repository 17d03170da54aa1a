"""Times of a table, in whatever unit they are written."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from stream.files.cells import BadCell, Rounded, float_of, shown
from wire.config import ActionConfig
from wire.moment import MAX_TIMESTAMP_MS, RECENT_MS, UNITS, Unit, iso_of, unit_of

_UTC = re.compile(r" ?(UTC|GMT)$")
"""A suffix that some databases write after a time."""
_SECONDS = next(unit for unit in UNITS if unit.name == "seconds")

MAX_SHOWN = 7


class Milliseconds(int):
    """A time since 1970 whose unit is known."""

    def __repr__(self) -> str:
        return f"the time {int(self)} ms"


class Clock:
    """Reads times: all of a file in the unit of its first (seconds, milliseconds, microseconds or nanoseconds), or as
    ISO 8601, in UTC if no zone is given."""

    def __init__(self, config: ActionConfig, now_ms: int) -> None:
        self._config = config
        self._latest_ms = min(now_ms + config.max_future_ms, MAX_TIMESTAMP_MS)
        self._unit: Unit | None = None
        self._usual = (math.inf, -math.inf, 1.0)
        """Numbers from the first to the second need no further check; the third converts them to milliseconds."""

    def read(self, cell: Any) -> int:
        """Milliseconds since 1970. Raises `BadCell`."""
        if type(cell) is str:
            low, high, in_ms = self._usual
            try:
                number = float_of(cell)
            except ValueError:
                pass
            else:
                if low <= number <= high and "e" not in cell and "E" not in cell:
                    return round(number * in_ms)
        return self._bounded(cell, self._ms(cell))

    def _bounded(self, cell: Any, timestamp_ms: int) -> int:
        if not self._config.min_timestamp_ms <= timestamp_ms <= self._latest_ms:
            since, until = iso_of(self._config.min_timestamp_ms), iso_of(self._latest_ms)
            raise BadCell(
                f"timestamp: expected a time from {since} (action.min_timestamp_ms) to {until} (now, and "
                f"action.max_future_s), got {cell!s:.40}, which would be {iso_of(timestamp_ms)}; {_remedy(cell)}"
            )
        return timestamp_ms

    def _ms(self, cell: Any) -> int:
        if isinstance(cell, str):
            try:
                number = float_of(cell)
            except ValueError:
                return _ms_of(_iso(cell))
        elif isinstance(cell, Milliseconds):
            return int(cell)
        elif isinstance(cell, datetime):
            return _ms_of(cell)
        elif isinstance(cell, date):
            return _ms_of(datetime(cell.year, cell.month, cell.day, tzinfo=UTC))
        elif isinstance(cell, Rounded):
            raise BadCell(
                f"timestamp: expected a time, got {cell!s:.40} of a 32-bit column, which rounds it; export integers"
            )
        elif isinstance(cell, int | float | Decimal) and not isinstance(cell, bool):
            number = float(cell)
        else:
            raise BadCell(f"timestamp: expected a time, got {shown(cell)}; fix or drop the row")
        if not math.isfinite(number):
            raise BadCell(f"timestamp: expected a time, got {cell!s:.40}; fix or drop the row")
        unit = self._unit_for(number, cell)
        if isinstance(cell, str) and _last_digit_of(cell) * unit.in_ms > 1000:
            raise BadCell(
                f"timestamp: expected a time to the second, got {cell!s:.40}, whose last digits were rounded; export "
                "the column as whole numbers"
            )
        return round(number * unit.in_ms)

    def _unit_for(self, number: float, cell: Any) -> Unit:
        looks = unit_of(number)
        if self._unit is None:
            self._unit = looks or _SECONDS
            self._usual = self._usual_of(self._unit)
        if looks is not None and looks != self._unit:
            raise BadCell(
                f"timestamp: expected {self._unit.name} as in the first row, got {cell!s:.40}, which looks like "
                f"{looks.name}; write all of them in one unit"
            )
        return self._unit

    def _usual_of(self, unit: Unit) -> tuple[float, float, float]:
        low_ms, high_ms = max(self._config.min_timestamp_ms, RECENT_MS[0]), min(self._latest_ms, RECENT_MS[1] - 1)
        return low_ms / unit.in_ms, high_ms / unit.in_ms, unit.in_ms


def _last_digit_of(number: str) -> float:
    """What a 1 in the place of the last digit is worth: 1e10 for 1.76E+12. 0 without an exponent, and with more digits
    than spreadsheets and data frames show of such numbers (`MAX_SHOWN`): then those that are left out are zeros."""
    digits, _, exponent = number.strip().lower().partition("e")
    whole, _, fraction = digits.lstrip("+-").partition(".")
    return 10.0 ** (int(exponent) - len(fraction)) if exponent and len(whole + fraction) <= MAX_SHOWN else 0.0


def _remedy(cell: Any) -> str:
    """What to do about a time that is out of range: 20240506 is a day."""
    try:
        return f"write the day as {date.fromisoformat(str(cell))}"
    except ValueError:
        return "fix or drop the row"


def _iso(text: str) -> datetime:
    try:
        return datetime.fromisoformat(_UTC.sub("+00:00", text.strip().upper()))
    except ValueError:
        raise BadCell(
            f"timestamp: expected seconds, milliseconds, microseconds or nanoseconds since 1970, or ISO 8601 such as "
            f"2024-05-06T07:08:09Z, got {text[:40]!r}; convert it"
        ) from None


def _ms_of(moment: datetime) -> int:
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1000)
