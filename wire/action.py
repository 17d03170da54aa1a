"""Decoding what producers send: a Kafka record becomes actions, or rejections that say what is wrong.

`schema/action.schema.json` is the contract; this module agrees with it. JSON numbers such as ``5.0`` count as the
integer 5, a ``null`` in an optional field counts as its absence, and unknown fields are ignored.

The bytes go through a typed decoder first. Only if that refuses them is the record decoded again, as untyped JSON, to
find the reason. The second path is the definition (`wire.action_json.check`), the first its fast equivalent. What types
cannot express is checked here, in the same way on both paths.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from typing import NoReturn

import msgspec

from wire.action_json import (
    MAX_INT,
    MAX_KEY_LEN,
    MAX_VALUE,
    ForgetRequest,
    Reason,
    Refused,
    Wire,
    check,
    decode_free,
    forget_request_of,
    refuse,
)
from wire.config import ActionConfig
from wire.hashing import canonical, key_hash
from wire.moment import MAX_TIMESTAMP_MS, describe, iso_of
from wire.unread import Unread


class Action(msgspec.Struct, frozen=True, gc=False):
    """One action with hashed keys (`wire.hashing`). Absent fields are 0, or NaN for ``value``."""

    user: str
    item: str | int
    """The item's key as the producer wrote it."""
    item_hash: int
    bits: int
    timestamp_ms: int
    id_hash: int
    session_hash: int
    domain_hash: int
    value: float
    feature_hash: tuple[int, ...]
    """One hash per configured feature; with ``action.propensity``, behind them the bits of the propensity."""
    user_feature_hash: tuple[int, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Its user, as for a request to forget: its record's Kafka key, which decides the partition."""
        return (self.user,)


class Rejection(msgspec.Struct, frozen=True):
    """A dead letter. ``index``: position in a list, or -1 if the whole record is refused; ``raw``: the refused bytes,
    those of the record or, with ``index`` >= 0, of that element as it was written."""

    reason: Reason
    message: str
    index: int
    raw: bytes


Decoded = list[Action | Rejection | ForgetRequest]
_one = msgspec.json.Decoder(Wire)
_many = msgspec.json.Decoder(list[Wire])
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])


def decode_record(value: bytes | None, record_ms: int, config: ActionConfig) -> Decoded:
    """The actions of a record in order, with a `Rejection` in place of each refused one; or its one `ForgetRequest`.
    Never raises.

    ``record_ms`` is the record's Kafka timestamp: an action more than ``max_future_s`` ahead of it is "future".
    """
    if not value:
        if isinstance(value, Unread):
            return [Rejection(value.reason, value.why, -1, b"")]
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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Refused):
        pass
    return _decode_slowly(value, record_ms, config)


_LIST = ord("[")
WHOLE = -1
"""Instead of an index: the whole record."""


def _decode_slowly(value: bytes, record_ms: int, config: ActionConfig) -> Decoded:
    try:
        if value.lstrip(b" \t\r\n")[:1] != b"[":
            return [_decode_element(value, WHOLE, record_ms, config)]
        elements = _raw_list.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [_malformed(error, -1, value)]
    if not elements:
        return [Rejection("empty", "expected at least one action in the list, got none; leave it out", -1, value)]
    if len(elements) > config.max_actions_per_record:
        message = f"expected at most {config.max_actions_per_record} actions in a list, got {len(elements)}; split it"
        return [Rejection("oversized", message, -1, value)]
    return [_decode_element(bytes(raw), index, record_ms, config) for index, raw in enumerate(elements)]


def _decode_element(raw: bytes, index: int, record_ms: int, config: ActionConfig) -> Action | Rejection | ForgetRequest:
    try:
        content = decode_free(raw)
        if index == WHOLE and (request := forget_request_of(content)) is not None:
            return request
        return _action(check(content), record_ms, config)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _malformed(error, index, raw)
    except Refused as refused:
        return Rejection(refused.reason, str(refused), index, raw)


def _malformed(error: Exception, index: int, raw: bytes) -> Rejection:
    message = f"expected JSON in UTF-8, got {error}; check the producer's encoder"
    return Rejection("malformed", message, index, raw)


def _action(wire: Wire, record_ms: int, config: ActionConfig) -> Action:
    user, item, timestamp_ms, value = wire.user, wire.item, wire.timestamp, wire.value
    if not isinstance(user, str):
        _check_key(user, "user")
        user = canonical(user)
    if not 0 < len(user) <= MAX_KEY_LEN or user[0] == "\0":
        _refuse_text("user", user)
    _check_time(timestamp_ms, record_ms, config)
    if value is not None and not -MAX_VALUE <= value <= MAX_VALUE:
        refuse("bad_value", f"value: expected a number that fits 32 bits, got {value!r}; rescale it")
    return Action(
        user,
        item,
        _hash(item, "item"),
        _bits(wire.action, config),
        timestamp_ms,
        0 if wire.id is None else _hash_once(wire.id, "id"),
        0 if wire.session is None else _hash(wire.session, "session"),
        0 if wire.domain is None else _hash(wire.domain, "domain"),
        math.nan if value is None else value,
        _item_columns(wire, config),
        _columns(wire.user_features, config.user_features, "user_features"),
    )


def _item_columns(wire: Wire, config: ActionConfig) -> tuple[int, ...]:
    columns = _columns(wire.features, config.features, "features")
    propensity = 0 if wire.propensity is None else _propensity_bits(wire.propensity)
    return (*columns, propensity) if config.propensity else columns


def _propensity_bits(propensity: float) -> int:
    """The bits of a probability as a double."""
    if not 0 < propensity <= 1:
        refuse("bad_value", f"propensity: expected a probability above 0 and up to 1, got {propensity!r}; leave it out "
               "if it is not known")  # fmt: skip
    return int.from_bytes(struct.pack("<d", propensity), "little")


@lru_cache(1 << 16, typed=True)
def _hash_checked(key: str | int) -> int:
    _check_key(key, "")
    return key_hash(key)


def _hash(key: str | int, field: str) -> int:
    try:
        return _hash_checked(key)
    except Refused:
        _check_key(key, field)
        raise


def _hash_once(key: str | int, field: str) -> int:
    """The hash of a key that will not recur: caching it would evict keys that do."""
    _check_key(key, field)
    return key_hash(key)


def _check_key(key: str | int, field: str, part: str = "") -> None:
    if isinstance(key, str):
        if not 0 < len(key) <= MAX_KEY_LEN:
            _refuse_text(_spelled(field, part), key)
    elif not -MAX_INT - 1 <= key <= MAX_INT:
        message = f"{_spelled(field, part)}: expected an integer of 64 bits, got {str(key)[:40]}; send it as a string"
        refuse("bad_value", message)


def _spelled(field: str, part: str) -> str:
    return f"{field}.{part[:40]}" if part else field


def _refuse_text(field: str, key: str) -> NoReturn:
    wanted = f"1 to {MAX_KEY_LEN} characters" + (" that do not start with NUL" if field == "user" else "")
    refuse("bad_value", f"{field}: expected {wanted}, got {len(key)}: {key[:40]!r}; shorten or hash it")


def _bits(names: str | list[str], config: ActionConfig) -> int:
    if not names:
        refuse("bad_value", "action: expected at least one kind, got none; say what happened")
    bits, bit_of = 0, config.bit_of
    if type(names) is str and (bit := bit_of.get(names)) is not None:
        return bit
    for name in (names,) if isinstance(names, str) else names:
        bits |= bit_of.get(name) or _refuse_kind(name, config)
    return bits


def _refuse_kind(name: str, config: ActionConfig) -> NoReturn:
    if not name:
        refuse("bad_value", "action: expected a kind, got an empty string; say what happened")
    known = ", ".join(config.kinds)
    refuse("unknown_action", f"action: expected one of {known}, got {name[:40]!r}; configure it under kinds")


def _columns(given: dict[str, str | int | None] | None, names: tuple[str, ...], field: str) -> tuple[int, ...]:
    if not given:
        return (0,) * len(names)
    try:
        found = [0 if (entry := given.get(name)) is None else _hash_checked(entry) for name in names]
    except Refused:
        found = []
    if not found or sum(map(given.__contains__, names)) < len(given):  # one was refused; or others are only checked
        for name, entry in given.items():
            if entry is not None:
                _check_key(entry, field, name)
    return tuple(found)


def _check_time(timestamp_ms: int, record_ms: int, config: ActionConfig) -> None:
    latest_ms = record_ms + config.max_future_ms
    if not config.min_timestamp_ms <= timestamp_ms <= latest_ms or max(timestamp_ms, record_ms) > MAX_TIMESTAMP_MS:
        _refuse_time(timestamp_ms, record_ms, config)


def _refuse_time(timestamp_ms: int, record_ms: int, config: ActionConfig) -> NoReturn:
    if not config.min_timestamp_ms <= timestamp_ms <= MAX_TIMESTAMP_MS:
        since = iso_of(config.min_timestamp_ms)
        wanted = f"milliseconds since 1970, no earlier than {since} (action.min_timestamp_ms)"
        refuse("bad_time", f"timestamp: expected {wanted}, got {describe(timestamp_ms)}")
    # A producer may set the record's own time too, perhaps in the same wrong unit.
    if not config.min_timestamp_ms <= record_ms <= MAX_TIMESTAMP_MS:
        wanted = "a record whose own Kafka timestamp is in milliseconds since 1970, to compare with"
        refuse("future", f"timestamp: expected {wanted}, got {describe(record_ms)}")
    ahead_s = (timestamp_ms - record_ms) / 1000
    limit = f"at most {config.max_future_s:g} s after the record's own time (action.max_future_s)"
    refuse("future", f"timestamp: expected {limit}, got {ahead_s:g} s; check the clock of the producer or the device")
