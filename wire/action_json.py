"""Which JSON is an action: types, limits, and the reasons for refusing anything else.

`Wire` expresses this for a typed decoder, which is fast. `check` applies it to any JSON value and is the definition: it
finds the reason for a refusal, and accepts integral floats such as ``5.0`` as integers, below 2**53.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NoReturn

import msgspec

from wire.hashing import canonical
from wire.moment import describe

Reason = Literal[
    "empty", "oversized", "malformed", "wrong_type", "missing_field", "unknown_action", "bad_value", "bad_time",
    "future", "wrong_partition",
]  # fmt: skip
MAX_KEY_LEN = 256
MAX_INT = (1 << 63) - 1
MAX_USERS, MAX_USERS_BYTES = 1_000, 50_000
"""The most that a request may name: users, and bytes of them in JSON, so that they fit into an example's header."""
MAX_EXACT = (1 << 53) - 1
"""Above this, a float stands for several integers: an id that was converted to one may have become another id."""
MAX_VALUE = 3.4028234663852886e38
"""The largest float32."""
_KEY = "a string or an integer"
_NAMES = {
    bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


class Wire(msgspec.Struct, gc=False):
    """An action as decoded from JSON, unchecked."""

    user: str | int
    item: str | int
    action: str | list[str]
    timestamp: int
    id: str | int | None = None
    session: str | int | None = None
    domain: str | int | None = None
    value: float | None = None
    propensity: float | None = None
    features: dict[str, str | int | None] | None = None
    user_features: dict[str, str | int | None] | None = None


class Refused(Exception):
    """Why something is not an action."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def refuse(reason: Reason, message: str) -> NoReturn:
    """Raise `Refused`."""
    raise Refused(reason, message)


_free = msgspec.json.Decoder()


def decode_free(raw: bytes) -> Any:
    """Any JSON value. Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError."""
    try:
        return _free.decode(raw)
    except msgspec.ValidationError as error:  # well-formed, but with a number that no double can hold
        return _Unrepresentable(str(error))


class _Unrepresentable(msgspec.Struct):
    message: str


class ForgetRequest(msgspec.Struct, frozen=True):
    """``{"forget": true, "user": …}`` or ``{"forget": true, "item": …}``: in a record of its own, never in a list.
    ``{"forget": false, "item": …}`` revokes an item's request. ``user``: canonical; empty if it is about an item.

    ``{"forget": true, "users": […], "before_offset": …}``: each of these users whose last action stands before that
    offset of the partition. Workers send it (`stream.retention`)."""

    user: str
    item: str | int = ""
    is_back: bool = False
    users: tuple[str, ...] = ()
    before_offset: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The users that it is about; none if it is about an item."""
        return self.users or ((self.user,) if self.user else ())

    def concerns(self, last_offset: int) -> bool:
        """Whether a user of `names` whose last action is at this offset is to be forgotten."""
        return not self.users or last_offset < self.before_offset

    @property
    def keys(self) -> tuple[str, ...]:
        """The users or the item, canonical: each would have the request in its partition."""
        return self.names or (canonical(self.item),)


def forget_request_of(content: Any) -> ForgetRequest | None:
    """The request in a JSON value; None if it is not one. Raises `Refused` for one that cannot be carried out."""
    if not isinstance(content, dict) or "forget" not in content or "action" in content:
        return None
    forget, fields = content["forget"], [name for name in ("user", "item", "users") if content.get(name) is not None]
    if not isinstance(forget, bool) or len(fields) != 1:
        refuse("bad_value", "forget: expected true (or false, for an item), and either user or item; correct it")
    field, entry = fields[0], content[fields[0]]
    if field == "item":
        return ForgetRequest("", _name_to_forget(entry, field), is_back=not forget)
    if not forget:
        refuse("bad_value", "forget: a user who was forgotten cannot be brought back; leave it out")
    if field == "user":
        return ForgetRequest(canonical(_name_to_forget(entry, field)))
    return _users_to_forget(entry, content.get("before_offset"))


def _users_to_forget(entry: Any, before_offset: Any) -> ForgetRequest:
    if not isinstance(entry, list) or not 0 < len(entry) <= MAX_USERS:
        refuse("bad_value", f"users: expected a list of 1 to {MAX_USERS:,} users; correct it")
    users = tuple(dict.fromkeys(canonical(_name_to_forget(each, "users")) for each in entry))
    if len(msgspec.json.encode(users)) > MAX_USERS_BYTES:
        refuse("oversized", f"users: expected at most {MAX_USERS_BYTES:,} bytes of them; name fewer")
    before = _integral(before_offset)
    if isinstance(before, bool) or not isinstance(before, int) or not 0 <= before <= MAX_INT:
        refuse("bad_value", "before_offset: expected an offset, beside users; add it")
    return ForgetRequest("", users=users, before_offset=before)


def _name_to_forget(entry: Any, field: str) -> str | int:
    key = _check_key(entry, field)
    text = canonical(key)
    if isinstance(key, int) and not -MAX_INT - 1 <= key <= MAX_INT:
        refuse("bad_value", f"{field}: expected an integer of 64 bits, got {text[:40]}; send it as a string")
    if not text.isprintable() and any(0xD800 <= ord(each) < 0xE000 for each in text):
        refuse("bad_value", f"{field}: expected text in UTF-8, got {text[:40]!r}; check the terminal's encoding")
    if not 0 < len(text) <= MAX_KEY_LEN or text[0] == "\0":
        refuse("bad_value", f"{field}: expected 1 to {MAX_KEY_LEN} characters that do not start with NUL, got "
               f"{len(text)}; send the id as the actions have it")  # fmt: skip
    return key


def check(content: Any) -> Wire:
    """An action whose fields have the right types. Raises `Refused`."""
    if isinstance(content, _Unrepresentable):
        refuse("bad_value", f"expected numbers that a double can hold, got {content.message}; send smaller ones")
    if not isinstance(content, dict):
        refuse("wrong_type", f"expected an object, got {_name(content)}; send one action or a list of actions")
    for field in ("user", "item", "action", "timestamp"):
        if field not in content:
            refuse("missing_field", f"{field}: expected in every action, got none; add it")
    optional = {name: content.get(name) for name in ("id", "session", "domain")}
    return Wire(
        _check_key(content["user"], "user"),
        _check_key(content["item"], "item"),
        _check_names(content["action"]),
        _check_timestamp(content["timestamp"]),
        **{name: None if entry is None else _check_key(entry, name) for name, entry in optional.items()},
        value=_check_number(content.get("value"), "value"),
        propensity=_check_number(content.get("propensity"), "propensity"),
        features=_check_features(content.get("features"), "features"),
        user_features=_check_features(content.get("user_features"), "user_features"),
    )


def _check_timestamp(entry: Any) -> int:
    """An integer; raises `Refused`. Whether it is a plausible time is a separate question (`wire.moment`)."""
    entry = _integral(entry)
    if isinstance(entry, bool) or not isinstance(entry, int):
        shown = describe(entry) if isinstance(entry, str | float) else _name(entry)
        refuse("wrong_type", f"timestamp: expected milliseconds since 1970 as an integer, got {shown}")
    return entry


def _check_key(entry: Any, field: str) -> str | int:
    entry = _integral(entry)
    if isinstance(entry, float) and abs(entry) > MAX_EXACT:
        refuse("bad_value", f"{field}: expected {_KEY}, got {entry!r}, a float that stands for several integers; "
               "send the id as text")  # fmt: skip
    if isinstance(entry, bool) or not isinstance(entry, str | int):
        refuse("wrong_type", f"{field}: expected {_KEY}, got {_name(entry)}; send the id as text")
    return entry


def _check_names(entry: Any) -> str | list[str]:
    if isinstance(entry, str) or (isinstance(entry, list) and all(isinstance(name, str) for name in entry)):
        return entry
    refuse("wrong_type", f"action: expected a string or a list of strings, got {_name(entry)}; name the kinds")


def _check_number(entry: Any, field: str) -> float | None:
    if entry is None:
        return None
    if isinstance(entry, bool) or not isinstance(entry, int | float):
        refuse("wrong_type", f"{field}: expected a number, got {_name(entry)}; leave it out if there is none")
    try:
        return float(entry)
    except OverflowError:
        return math.inf


def _check_features(entry: Any, field: str) -> dict[str, str | int | None] | None:
    if entry is None:
        return None
    if not isinstance(entry, dict):
        refuse("wrong_type", f"{field}: expected an object, got {_name(entry)}; send names and their values")
    return {k: None if v is None else _check_key(v, f"{field}.{k[:40]}") for k, v in entry.items()}


def _integral(entry: Any) -> Any:
    return int(entry) if isinstance(entry, float) and entry.is_integer() and abs(entry) <= MAX_EXACT else entry


def _name(entry: Any) -> str:
    return _NAMES.get(type(entry), "a number that no double can hold")
