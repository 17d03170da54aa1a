"""What producers send: decode a Kafka record into actions, and say what is wrong with anything else.

`schema/action.schema.json` is the contract; this module agrees with it. JSON numbers such as ``5.0`` count as the
integer 5, a ``null`` in an optional field as its absence, and unknown fields are left alone.

The bytes go through a typed decoder first; only where that refuses is the record decoded again, freely, to find the
reason. The second path is the definition (`_check_action`), the first its fast equal.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NoReturn

import msgspec

from state.config import ActionConfig
from state.hashing import canonical, item_hash

Reason = Literal[
    "empty", "oversized", "malformed", "wrong_type", "missing_field", "unknown_action", "bad_value", "future",
    "wrong_partition",
]  # fmt: skip
MAX_KEY_LEN = 256
MAX_INT = (1 << 63) - 1
MAX_TIMESTAMP_MS = 253_402_300_799_999
"""The end of the year 9999."""
MAX_VALUE = 3.4028234663852886e38
"""float32's largest."""


class Action(msgspec.Struct, frozen=True, gc=False):
    """One action, its keys hashed (`state.hashing`); hashes are 0, and ``value`` NaN, where nothing was given."""

    user: str
    item: str | int
    """As the producer wrote it: the name behind ``item_hash``."""
    item_hash: int
    bits: int
    timestamp_ms: int
    id_hash: int
    domain_hash: int
    value: float
    feature_hash: tuple[int, ...]
    """One a configured feature."""
    user_feature_hash: tuple[int, ...]


class Tick(msgspec.Struct, frozen=True, gc=False):
    """A record that only moves the partition's event clock."""

    timestamp_ms: int


class Rejection(msgspec.Struct, frozen=True):
    """What goes to the dead letters. ``index``: position in a list, -1 when the whole record is meant; ``raw``: the
    bytes refused, which are the record's, or with ``index`` >= 0 that element's as it was written."""

    reason: Reason
    message: str
    index: int
    raw: bytes


class _Wire(msgspec.Struct, gc=False):
    user: str | int
    item: str | int
    action: str | list[str]
    timestamp: int
    id: str | int | None = None
    session: str | int | None = None
    domain: str | int | None = None
    value: float | None = None
    features: dict[str, str | int | None] | None = None
    user_features: dict[str, str | int | None] | None = None


class _Refused(Exception):
    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


Decoded = list[Action | Tick | Rejection]
_one = msgspec.json.Decoder(_Wire)
_many = msgspec.json.Decoder(list[_Wire])
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_free = msgspec.json.Decoder()
_KEY = "a string or an integer"


def tick_record(timestamp_ms: int) -> bytes:
    """The value of a record that moves a partition's clock to ``timestamp_ms``."""
    return b'{"tick":%d}' % timestamp_ms


def decode_record(value: bytes | None, record_ms: int, config: ActionConfig) -> Decoded:
    """Actions of a record in their order, with a `Rejection` in the place of each that is refused. Never raises.

    ``record_ms`` is the record's Kafka timestamp: what lies more than ``max_future_s`` after it is "future".
    """
    if not value:
        return [Rejection("empty", "expected an action as JSON, got no bytes; send a value", -1, b"")]
    if len(value) > config.max_record_bytes:
        message = f"expected at most {config.max_record_bytes} bytes, got {len(value)}; send shorter lists"
        return [Rejection("oversized", message, -1, value)]
    try:
        if value[0] == _LIST:
            wires = _many.decode(value)
            if 0 < len(wires) <= config.max_actions_per_record:
                return [_action(wire, record_ms, config) for wire in wires]
        else:
            return [_action(_one.decode(value), record_ms, config)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _Refused):
        pass
    return _decode_slowly(value, record_ms, config)


_LIST = ord("[")


def _decode_slowly(value: bytes, record_ms: int, config: ActionConfig) -> Decoded:
    try:
        if value.lstrip(b" \t\r\n")[:1] != b"[":
            return [_decode_alone(value, record_ms, config)]
        elements = _raw_list.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [Rejection("malformed", f"expected JSON in UTF-8, got {error}; check the producer's encoder", -1, value)]
    if not elements:
        return [Rejection("empty", "expected at least one action in the list, got none; leave it out", -1, value)]
    if len(elements) > config.max_actions_per_record:
        message = f"expected at most {config.max_actions_per_record} actions in a list, got {len(elements)}; split it"
        return [Rejection("oversized", message, -1, value)]
    return [_decode_element(bytes(raw), index, record_ms, config) for index, raw in enumerate(elements)]


def _decode_alone(value: bytes, record_ms: int, config: ActionConfig) -> Action | Tick | Rejection:
    content = _decode_free(value)
    try:
        if isinstance(content, dict) and "tick" in content and "action" not in content:
            tick_ms = _timestamp(content["tick"], "tick")
            _refuse_future("tick", tick_ms, record_ms, config)
            return Tick(tick_ms)
        return _action(_check_action(content), record_ms, config)
    except _Refused as refused:
        return Rejection(refused.reason, str(refused), -1, value)


def _decode_element(raw: bytes, index: int, record_ms: int, config: ActionConfig) -> Action | Rejection:
    try:
        return _action(_check_action(_decode_free(raw)), record_ms, config)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Rejection("malformed", f"expected JSON in UTF-8, got {error}; check the encoder", index, raw)
    except _Refused as refused:
        return Rejection(refused.reason, str(refused), index, raw)


def _decode_free(raw: bytes) -> Any:
    try:
        return _free.decode(raw)
    except msgspec.ValidationError as error:  # well-formed, but a number beyond a double
        return _Unrepresentable(str(error))


class _Unrepresentable(msgspec.Struct):
    message: str


def _action(wire: _Wire, record_ms: int, config: ActionConfig) -> Action:
    """Checks of content, which no type can express; the same on both paths."""
    user, item, timestamp_ms = wire.user, wire.item, wire.timestamp
    user = _key(user, "user") if type(user) is not str else user
    if not 0 < len(user) <= MAX_KEY_LEN or user[0] == "\0":
        _refuse_key("user", user)
    if not 0 <= timestamp_ms <= MAX_TIMESTAMP_MS:
        _timestamp(timestamp_ms, "timestamp")
    if timestamp_ms > record_ms + config.max_future_ms:
        _refuse_future("timestamp", timestamp_ms, record_ms, config)
    value = wire.value
    if value is not None and not -MAX_VALUE <= value <= MAX_VALUE:
        _refuse("bad_value", f"value: expected a number that fits 32 bits, got {value!r}; rescale it")
    if wire.session is not None:
        _hash(wire.session, "session")
    return Action(
        user,
        item,
        _hash(item, "item"),
        _bits(wire.action, config.kinds),
        timestamp_ms,
        0 if wire.id is None else _hash(wire.id, "id"),
        0 if wire.domain is None else _hash(wire.domain, "domain"),
        math.nan if value is None else value,
        _columns(wire.features, config.features, "features"),
        _columns(wire.user_features, config.user_features, "user_features"),
    )


def _hash(key: str | int, field: str) -> int:
    return item_hash(_key(key, field))


def _key(key: str | int, field: str) -> str:
    if isinstance(key, int):
        if not -MAX_INT - 1 <= key <= MAX_INT:
            _refuse("bad_value", f"{field}: expected an integer of 64 bits, got {key}; send it as a string")
    elif not 0 < len(key) <= MAX_KEY_LEN:
        _refuse_key(field, key)
    return canonical(key)


def _refuse_key(field: str, key: str) -> NoReturn:
    wanted = f"1 to {MAX_KEY_LEN} characters" + (" that do not start with NUL" if field == "user" else "")
    _refuse("bad_value", f"{field}: expected {wanted}, got {len(key)}: {key[:40]!r}; shorten or hash it")


def _bits(names: str | list[str], kinds: tuple[str, ...]) -> int:
    if not names:
        _refuse("bad_value", "action: expected at least one kind, got none; say what happened")
    bits = 0
    for name in (names,) if isinstance(names, str) else names:
        try:
            bits |= 1 << kinds.index(name)
        except ValueError:
            if not name:
                _refuse("bad_value", "action: expected a kind, got an empty string; say what happened")
            known = ", ".join(kinds)
            _refuse("unknown_action", f"action: expected one of {known}, got {name[:40]!r}; configure it under kinds")
    return bits


def _columns(given: dict[str, str | int | None] | None, names: tuple[str, ...], field: str) -> tuple[int, ...]:
    if not given:
        return (0,) * len(names)
    for name, entry in given.items():
        if entry is not None:
            _hash(entry, f"{field}.{name[:40]}")
    return tuple(0 if (entry := given.get(name)) is None else item_hash(entry) for name in names)


def _refuse(reason: Reason, message: str) -> NoReturn:
    raise _Refused(reason, message)


def _refuse_future(field: str, timestamp_ms: int, record_ms: int, config: ActionConfig) -> None:
    if timestamp_ms > record_ms + config.max_future_ms:
        ahead_s = (timestamp_ms - record_ms) / 1000
        limit = f"at most {config.max_future_s:g} s after the record's own time"
        _refuse("future", f"{field}: expected {limit}, got {ahead_s:g} s; check the producer's clock and its unit (ms)")


# The definition: what JSON is an action. `_Wire` says the same in types, but for integral floats.


def _check_action(content: Any) -> _Wire:
    if isinstance(content, _Unrepresentable):
        _refuse("bad_value", f"expected numbers that a double can hold, got {content.message}; send smaller ones")
    if not isinstance(content, dict):
        _refuse("wrong_type", f"expected an object, got {_name(content)}; send one action or a list of actions")
    for field in ("user", "item", "action", "timestamp"):
        if field not in content:
            _refuse("missing_field", f"{field}: expected in every action, got none; add it")
    optional = {name: content.get(name) for name in ("id", "session", "domain")}
    return _Wire(
        _check_key(content["user"], "user"),
        _check_key(content["item"], "item"),
        _check_names(content["action"]),
        _timestamp(content["timestamp"], "timestamp"),
        **{name: None if entry is None else _check_key(entry, name) for name, entry in optional.items()},
        value=_check_number(content.get("value")),
        features=_check_features(content.get("features"), "features"),
        user_features=_check_features(content.get("user_features"), "user_features"),
    )


def _check_key(entry: Any, field: str) -> str | int:
    entry = _integral(entry)
    if isinstance(entry, bool) or not isinstance(entry, str | int):
        _refuse("wrong_type", f"{field}: expected {_KEY}, got {_name(entry)}; send the id as text")
    return entry


def _check_names(entry: Any) -> str | list[str]:
    if isinstance(entry, str) or (isinstance(entry, list) and all(isinstance(name, str) for name in entry)):
        return entry
    _refuse("wrong_type", f"action: expected a string or a list of strings, got {_name(entry)}; name the kinds")


def _timestamp(entry: Any, field: str) -> int:
    entry = _integral(entry)
    if isinstance(entry, bool) or not isinstance(entry, int):
        _refuse("wrong_type", f"{field}: expected an integer, got {_name(entry)}; send milliseconds since 1970")
    if not 0 <= entry <= MAX_TIMESTAMP_MS:
        _refuse("bad_value", f"{field}: expected 0 to {MAX_TIMESTAMP_MS}, got {entry}; send milliseconds since 1970")
    return entry


def _check_number(entry: Any) -> float | None:
    if entry is None:
        return None
    if isinstance(entry, bool) or not isinstance(entry, int | float):
        _refuse("wrong_type", f"value: expected a number, got {_name(entry)}; leave it out where there is none")
    try:
        return float(entry)
    except OverflowError:
        return math.inf


def _check_features(entry: Any, field: str) -> dict[str, str | int | None] | None:
    if entry is None:
        return None
    if not isinstance(entry, dict):
        _refuse("wrong_type", f"{field}: expected an object, got {_name(entry)}; send names and their values")
    return {k: None if v is None else _check_key(v, f"{field}.{k[:40]}") for k, v in entry.items()}


def _integral(entry: Any) -> Any:
    return int(entry) if isinstance(entry, float) and entry.is_integer() else entry


def _name(entry: Any) -> str:
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return "null" if entry is None else names.get(type(entry), "a number that no double holds")
