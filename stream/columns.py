"""Columns of a table of actions or ratings: which is which by its name, and what its cells mean.

A cell is text (in a delimited file) or a value (in Parquet). Each is checked as the worker would check it, so that a
bad file is refused before any of it is sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from wire.action_json import MAX_INT, MAX_KEY_LEN, MAX_VALUE
from wire.config import ActionConfig
from wire.moment import MAX_TIMESTAMP_MS, RECENT_MS, UNITS, Unit, iso_of, unit_of

RATING_KINDS = ("rate", "like", "love")
"""``ActionConfig.kinds`` for ratings; ``SequenceConfig.join_window_s`` is 0 for them."""
ALIASES: dict[str, tuple[str, ...]] = {
    "user": ("user_id", "userid", "user", "uid", "visitorid", "visitor_id", "customer_id"),
    "item": ("item_id", "itemid", "movieid", "movie_id", "item", "iid", "product_id", "video_id"),
    "timestamp": (
        "timestamp", "unix_timestamp", "time", "timestamp_ms", "time_ms", "event_time", "datetime", "date", "ts",
    ),
    "action": ("action", "actions", "action_type", "event", "event_type", "kind", "behavior", "behavior_type"),
    "rating": ("rating",),
    "value": ("value",),
    "id": ("id", "action_id", "event_id"),
    "session": ("session", "session_id", "sessionid", "user_session"),
    "domain": ("domain",),
}  # fmt: skip
"""Role of a column → the names for it, in lower case; the first that a table has is used."""
_LIKE, _LOVE = 4.0, 5.0
_NOTHING = frozenset({"", "nan", "null", "none", "<na>", "n/a", "nat", "inf", "-inf"})
"""What programs write for a missing value."""
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_UTC = re.compile(r" ?(UTC|GMT)$")
"""As some databases write it after a time."""
_SECONDS = next(unit for unit in UNITS if unit.name == "seconds")


_NO_MORE: dict[str, Any] = {}


class BadCell(ValueError):
    """An unusable cell or header: what was expected, what came, what to do."""


class Row(NamedTuple):
    """One action. ``kinds`` is None for a rating, which is its ``value``."""

    timestamp_ms: int
    user: str | int
    item: str | int
    kinds: list[str] | None
    value: float | None
    more: dict[str, Any]

    def as_action(self) -> dict[str, Any]:
        """Ready for JSON (`schema/action.schema.json`)."""
        kinds = rating_kinds(self.value or 0.0) if self.kinds is None else self.kinds
        action = {"user": self.user, "item": self.item, "action": kinds, "timestamp": self.timestamp_ms}
        return (action if self.value is None else {**action, "value": self.value}) | self.more


def rating_kinds(rating: float) -> list[str]:
    """The action kinds of a rating."""
    return list(RATING_KINDS[: 1 + (rating >= _LIKE) + (rating >= _LOVE)])


@dataclass(frozen=True)
class Columns:
    """Where each role's cell is in a row; -1 for those that the table does not have."""

    place: Mapping[str, int]
    features: Mapping[str, int] = field(default_factory=dict)
    user_features: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_ratings(self) -> bool:
        """Whether rows are ratings, not actions."""
        return self.place["action"] < 0

    def read(self, cells: Sequence[Any], clock: Clock) -> Row:
        """A row's cells as one action. Raises `BadCell`."""
        place = self.place
        timestamp_ms = clock.read(cells[place["timestamp"]])
        user, item = _key(cells[place["user"]], "user"), _key(cells[place["item"]], "item")
        if place["action"] < 0:
            rating = _number(cells[place["rating"]], "rating")
            if rating is None:
                raise BadCell("rating: expected a number, got an empty cell; fill it, or drop the row")
            return Row(timestamp_ms, user, item, None, rating, _NO_MORE)
        kinds = _kinds(cells[place["action"]])
        at = place["value"] if place["value"] >= 0 else place["rating"]
        value = _number(cells[at], "value") if at >= 0 else None
        return Row(timestamp_ms, user, item, kinds, value, self._more(cells))

    def _more(self, cells: Sequence[Any]) -> dict[str, Any]:
        found = {name: cells[self.place[name]] for name in ("id", "session", "domain") if self.place[name] >= 0}
        more: dict[str, Any] = {name: _key(cell, name) for name, cell in found.items() if not _is_nothing(cell)}
        for name, places in (("features", self.features), ("user_features", self.user_features)):
            given = {each: cells[at] for each, at in places.items()}
            values = {each: _key(cell, f"{name}.{each}") for each, cell in given.items() if not _is_nothing(cell)}
            if values:
                more[name] = values
        return more


POSITIONS = Columns({**dict.fromkeys(ALIASES, -1), "user": 0, "item": 1, "rating": 2, "timestamp": 3})
"""MovieLens without a header: user, item, rating, time."""


def columns_named(names: Sequence[str], config: ActionConfig) -> Columns | None:
    """The columns of a table with these names; None if none is a user's or an item's. Raises `BadCell` if others that
    are needed are missing."""
    plain = [_plain(name) for name in names]
    known = [_squeezed(name) for name in plain]
    found = {
        role: next((name for name in map(_squeezed, aliases) if name in known), None)
        for role, aliases in ALIASES.items()
    }
    if found["user"] is None and found["item"] is None:
        return None
    for role in ("user", "item", "timestamp"):
        if found[role] is None:
            raise BadCell(
                f"expected a column for the {role} ({' or '.join(ALIASES[role][:3])}), got {list(names)}; name it"
            )
    if found["action"] is None and found["rating"] is None:
        raise BadCell(f"expected a column named action or rating, got {list(names)}; add or rename it")
    for alias in found.values():
        if alias is not None and known.count(alias) > 1:
            same = [name for name in plain if _squeezed(name) == alias]
            raise BadCell(f"expected one column {same[0]}, got {', '.join(same)}; rename or drop the others")
    place = {role: known.index(alias) if alias else -1 for role, alias in found.items()}
    taken = set(place.values())
    free = {name: at for at, name in enumerate(plain) if at not in taken}
    for name in (*config.features, *config.user_features):
        if plain.count(name.lower()) > 1:
            raise BadCell(f"expected one column {name}, got several; rename or drop the others")
    return Columns(place, _features(config.features, free), _features(config.user_features, free))


def _plain(name: str) -> str:
    return name.strip().strip('"').split(":")[0].strip().lower()


def _squeezed(name: str) -> str:
    """userId, user_id, "User ID" and user-id are the same name."""
    return name.replace("_", "").replace("-", "").replace(" ", "")


def _features(names: Sequence[str], free: Mapping[str, int]) -> dict[str, int]:
    return {name: free[name.lower()] for name in names if name.lower() in free}


class Milliseconds(int):
    """A time since 1970 whose unit is known."""


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
                number = float(cell)
            except ValueError:
                pass
            else:
                if low <= number <= high:
                    return round(number * in_ms)
        return self._bounded(cell, self._ms(cell))

    def _bounded(self, cell: Any, timestamp_ms: int) -> int:
        if not self._config.min_timestamp_ms <= timestamp_ms <= self._latest_ms:
            since, until = iso_of(self._config.min_timestamp_ms), iso_of(self._latest_ms)
            raise BadCell(
                f"timestamp: expected a time from {since} (action.min_timestamp_ms) to {until} (now, and "
                f"action.max_future_s), got {cell!s:.40}, which would be {iso_of(timestamp_ms)}; fix or drop the row"
            )
        return timestamp_ms

    def _ms(self, cell: Any) -> int:
        if isinstance(cell, str):
            try:
                number = float(cell)
            except ValueError:
                return _ms_of(_iso(cell))
        elif isinstance(cell, Milliseconds):
            return int(cell)
        elif isinstance(cell, datetime):
            return _ms_of(cell)
        elif isinstance(cell, date):
            return _ms_of(datetime(cell.year, cell.month, cell.day, tzinfo=UTC))
        elif isinstance(cell, int | float | Decimal) and not isinstance(cell, bool):
            number = float(cell)
        else:
            raise BadCell(f"timestamp: expected a time, got {_shown(cell)}; fix or drop the row")
        if not math.isfinite(number):
            raise BadCell(f"timestamp: expected a time, got {cell!s:.40}; fix or drop the row")
        return round(number * self._unit_for(number, cell).in_ms)

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


def _is_nothing(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell.strip().lower() in _NOTHING
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _key(cell: Any, field: str) -> str | int:
    if type(cell) is str:
        return _key_of_text(cell, field)
    if isinstance(cell, bytes):
        try:
            return _key_of_text(cell.decode(), field)
        except UnicodeDecodeError:
            raise BadCell(f"{field}: expected text in UTF-8, got {_shown(cell)}; write it as text") from None
    if (isinstance(cell, float) and cell.is_integer()) or (isinstance(cell, Decimal) and _is_whole(cell)):
        cell = int(cell)
    if isinstance(cell, bool) or not isinstance(cell, int):
        raise BadCell(f"{field}: expected text or an integer, got {_shown(cell)}; fill it, or drop the row")
    if not -MAX_INT - 1 <= cell <= MAX_INT:
        raise BadCell(f"{field}: expected a 64-bit integer, got {cell}; write it as text")
    return cell


def _is_whole(number: Decimal) -> bool:
    return number.is_finite() and number == number.to_integral_value()


@lru_cache(maxsize=1 << 17)
def _key_of_text(text: str, field: str) -> str | int:
    text = text.strip(" ")  # as in a table that is written in columns; before a cell the reader passes over them
    if _is_nothing(text):
        raise BadCell(f"{field}: expected an id, got {text!r}, which means a missing value; fill it, or drop the row")
    if len(text) > MAX_KEY_LEN:
        raise BadCell(f"{field}: expected at most {MAX_KEY_LEN} characters, got {len(text)}: {text[:40]!r}; shorten it")
    # Integers in a column with missing values are often written 5.0.
    digits = text.removesuffix(".0")
    # "05" is not the same key as "5", so only what reads back the same becomes a number.
    return (
        int(digits)
        if digits.isascii() and digits.isdigit() and len(digits) < 19 and str(int(digits)) == digits
        else text
    )


def _number(cell: Any, field: str) -> float | None:
    """A finite number that fits into 32 bits; None for an empty cell. Raises `BadCell`."""
    try:
        number = math.nan if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell) else float(cell)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if -MAX_VALUE <= number <= MAX_VALUE:
        return number
    if _is_nothing(cell) and not (isinstance(cell, str) and cell.strip()):
        return None
    is_comma = isinstance(cell, str) and _DECIMAL_COMMA.fullmatch(cell.strip()) is not None
    remedy = "use a decimal point" if is_comma else "fix or drop the row"
    raise BadCell(f"{field}: expected a finite number, got {_shown(cell)}; {remedy}")


def _kinds(cell: Any) -> list[str]:
    names = cell.split("|") if isinstance(cell, str) else cell
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadCell(f"action: expected a kind, or several separated by |, got {_shown(cell)}; name what happened")
    kinds = [name.strip() for name in names]
    if not kinds or any(name.lower() in _NOTHING for name in kinds):
        raise BadCell(f"action: expected a kind, got {_shown(cell)}; name what happened, or drop the row")
    return kinds


def _shown(cell: Any) -> str:
    return "an empty cell" if cell is None or cell == "" else repr(cell)[:60]
