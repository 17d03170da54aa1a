"""Columns of a table of actions or ratings: which is which by its name, and what its cells mean.

A cell is text (in a delimited file) or a value (in Parquet). Each is checked as the worker would check it, so that a
bad file is refused before any of it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from stream.files.cells import BadCell, is_nothing, read_key, read_kinds, read_number
from stream.files.clock import Clock
from wire.config import ActionConfig

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
    "propensity": ("propensity",),
}  # fmt: skip
"""Role of a column → the names for it, in lower case; the first that a table has is used."""
_OPTIONAL = ("id", "session", "domain")
_LIKE, _LOVE = 4.0, 5.0


_NO_MORE: dict[str, Any] = {}


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

    @cached_property
    def _has_more(self) -> bool:
        named = any(self.place[name] >= 0 for name in _OPTIONAL)
        return named or self.place["propensity"] >= 0 or bool(self.features) or bool(self.user_features)

    def read(self, cells: Sequence[Any], clock: Clock) -> Row:
        """A row's cells as one action. Raises `BadCell`."""
        place = self.place
        timestamp_ms = clock.read(cells[place["timestamp"]])
        user, item = read_key(cells[place["user"]], "user"), read_key(cells[place["item"]], "item")
        if place["action"] < 0:
            rating = read_number(cells[place["rating"]], "rating")
            if rating is None:
                raise BadCell("rating: expected a number, got an empty cell; fill it, or drop the row")
            return Row(timestamp_ms, user, item, None, rating, self._more(cells) if self._has_more else _NO_MORE)
        kinds = read_kinds(cells[place["action"]])
        at = place["value"] if place["value"] >= 0 else place["rating"]
        value = read_number(cells[at], "value") if at >= 0 else None
        return Row(timestamp_ms, user, item, kinds, value, self._more(cells))

    def _more(self, cells: Sequence[Any]) -> dict[str, Any]:
        found = {name: cells[self.place[name]] for name in _OPTIONAL if self.place[name] >= 0}
        more: dict[str, Any] = {name: read_key(cell, name) for name, cell in found.items() if not is_nothing(cell)}
        at = self.place["propensity"]
        if at >= 0 and (propensity := read_number(cells[at], "propensity")) is not None:
            if not 0 < propensity <= 1:
                raise BadCell(f"propensity: expected a probability above 0 and up to 1, got {propensity:g}; correct it")
            more["propensity"] = propensity
        for name, places in (("features", self.features), ("user_features", self.user_features)):
            given = {each: cells[at] for each, at in places.items()}
            values = {each: read_key(cell, f"{name}.{each}") for each, cell in given.items() if not is_nothing(cell)}
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
    return Columns(
        place, _features("features", config.features, free), _features("user_features", config.user_features, free)
    )


def used_of(names: Sequence[str], config: ActionConfig) -> list[str]:
    """Those of a table's columns that its actions are made of; none if no column is a user's or an item's. Raises
    `BadCell` as `columns_named` does."""
    columns = columns_named(names, config)
    if columns is None:
        return []
    places = {*columns.place.values(), *columns.features.values(), *columns.user_features.values()}
    return [name for place, name in enumerate(names) if place in places]


def _plain(name: str) -> str:
    return name.strip().strip('"').split(":")[0].strip().lower()


def _squeezed(name: str) -> str:
    """userId, user_id, "User ID" and user-id are the same name."""
    return name.replace("_", "").replace("-", "").replace(" ", "")


def _features(kind: str, names: Sequence[str], free: Mapping[str, int]) -> dict[str, int]:
    """Of each feature, its column: ``genre`` or, as flattened JSON has it, ``features.genre``."""
    if names and kind in free and kind not in names:
        each = ", ".join(names)
        raise BadCell(f"expected a column for each feature ({each}), got one column {kind}; write them into columns")
    found = {name: free.get(name.lower(), free.get(f"{kind}.{name.lower()}")) for name in names}
    return {name: at for name, at in found.items() if at is not None}
