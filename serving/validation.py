"""Decodes bodies into requests. A valid body takes one pass in C; an invalid one is checked again, to say what to fix.

The second pass stops at `MAX_PROBLEMS`, and a list that is too long is refused for its length, before its elements are
checked: so the cost of a body is bounded by its size, whatever it contains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from serving.answer_bodies import Problem
from serving.errors import InvalidRequestError

MAX_PROBLEMS = 20
T = TypeVar("T", bound=msgspec.Struct)
EXPECTED: dict[type, str] = {
    inspect.IntType: "an integer",
    inspect.FloatType: "a number",
    inspect.StrType: "a string",
    inspect.BoolType: "true or false",
    inspect.ListType: "a list",
    inspect.StructType: "an object",
    inspect.NoneType: "null",
}
Limit = tuple[int, str]
"""The most that is allowed, and the setting that says so."""


class Decoder:
    """Decodes bodies of one kind. ``limits``: by name of a field, on a list's length or on a number."""

    def __init__(self, kind: type[T], limits: Mapping[str, Limit]) -> None:
        self.kind, self._limits = kind, limits
        self._decode = msgspec.json.Decoder(kind).decode
        self._type = inspect.type_info(kind)

    def decode(self, body: bytes) -> Any:
        """The request. Raises `InvalidRequestError` with the first problems."""
        try:
            request = self._decode(body)
        except msgspec.ValidationError as error:
            raise InvalidRequestError(self._explain(body, error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequestError([_no_json(error, body)]) from None
        if problems := list(islice(self._beyond(request, ""), MAX_PROBLEMS)):
            raise InvalidRequestError(problems)
        return request

    def _beyond(self, request: msgspec.Struct, at: str) -> Iterator[Problem]:
        """The limits that a request of the right types exceeds."""
        for name, limit in self._limits.items():
            value = getattr(request, name, None)
            num = value if isinstance(value, int) else len(value) if isinstance(value, list) else 0
            if num > limit[0]:
                yield _too_much(_join(at, name), num, limit)
            elif name == "requests" and isinstance(value, list):
                for index, each in enumerate(value):
                    yield from self._beyond(each, f"requests.{index}")

    def _explain(self, body: bytes, error: msgspec.ValidationError) -> list[Problem]:
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as unreadable:
            return [_no_json(unreadable, body)]  # the schema's check stops before the bad part
        found = list(islice(self._problems(value, self._type, "", ""), MAX_PROBLEMS))
        return found or [Problem(field="body", expected="a request as in /openapi.json", do=f"correct it: {error}")]

    def _problems(self, value: Any, kind: inspect.Type, at: str, name: str) -> Iterator[Problem]:
        plain = _plain(kind)
        if isinstance(plain, inspect.UnionType):
            fitting = [each for each in map(_plain, plain.types) if _fits(value, each)]
            plain = fitting[0] if fitting else plain
        if isinstance(plain, inspect.StructType) and isinstance(value, dict):
            yield from self._of_object(value, plain, at)
        elif isinstance(plain, inspect.ListType) and isinstance(value, list):
            yield from self._of_list(value, plain, at, name)
        elif not _converts(value, plain):
            yield Problem(field=at or "body", expected=_expected(kind), got=_short(value), do="correct it")

    def _of_object(self, value: dict[str, Any], kind: inspect.StructType, at: str) -> Iterator[Problem]:
        known = {field.encode_name: field for field in kind.fields}
        before = False
        for name, given in value.items():
            if name not in known:
                before = True
                remedy = f"remove it, or correct its name; fields: {', '.join(known)}"
                yield Problem(field=_join(at, name[:200]), expected="no such field", got=_short(given),
                              do=getattr(kind.cls, "ABSENT", {}).get(name, remedy))  # fmt: skip
        for name, field in known.items():
            if name in value:
                for problem in self._problems(value[name], field.type, _join(at, name), name):
                    before = True
                    yield problem
            elif field.required:
                before = True
                yield Problem(field=_join(at, name), expected="a value", do="add it")
        if not before and (expected := _combination(value, kind)):
            given = ", ".join(name for name in known if value.get(name) is not None)
            yield Problem(field=at or "body", expected=expected, got=given or "neither", do="send one of them")

    def _of_list(self, value: list[Any], kind: inspect.ListType, at: str, name: str) -> Iterator[Problem]:
        limit = self._limits.get(name)
        if kind.max_length is not None and len(value) > kind.max_length:
            yield Problem(field=at, expected=f"at most {kind.max_length} of them", got=len(value), do="send fewer")
        elif limit is not None and len(value) > limit[0]:
            yield _too_much(at, len(value), limit)
        elif len(value) < (kind.min_length or 0):
            yield Problem(field=at, expected=f"at least {kind.min_length}", got=len(value), do="send one")
        else:
            for index, each in enumerate(value):
                yield from self._problems(each, kind.item_type, _join(at, str(index)), "")


def _too_much(at: str, got: int, limit: Limit) -> Problem:
    return Problem(field=at, expected=f"at most {limit[0]}", got=_short(got), do=f"ask for less, or raise {limit[1]}")


def _no_json(error: Exception, body: bytes) -> Problem:
    why = (
        "it is nested too deeply"
        if isinstance(error, RecursionError)
        else str(error).removeprefix("JSON is malformed: ")
    )
    return Problem(
        field="body", expected="JSON", got=_short(body[:200].decode(errors="replace")), do=f"correct it: {why}"
    )


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _plain(kind: inspect.Type) -> inspect.Type:
    return _plain(kind.type) if isinstance(kind, inspect.Metadata) else kind


def _fits(value: Any, kind: inspect.Type) -> bool:
    return (isinstance(value, dict) and isinstance(kind, inspect.StructType)) or (
        isinstance(value, list) and isinstance(kind, inspect.ListType)
    )


def _converts(value: Any, kind: inspect.Type) -> bool:
    """Whether a value has the type, including limits on ranges and lengths."""
    if isinstance(kind, inspect.UnionType):
        return any(_converts(value, _plain(each)) for each in kind.types)
    if isinstance(kind, inspect.IntType):
        fits = isinstance(value, int) and not isinstance(value, bool)
        return fits and (kind.ge is None or value >= kind.ge) and (kind.le is None or value <= kind.le)
    if isinstance(kind, inspect.StrType):
        num = len(value) if isinstance(value, str) else -1
        return (kind.min_length or 0) <= num <= (kind.max_length or num)
    if isinstance(kind, inspect.FloatType):
        fits = isinstance(value, float | int) and not isinstance(value, bool)
        return fits and (kind.ge is None or value >= kind.ge) and (kind.le is None or value <= kind.le)
    if isinstance(kind, inspect.DictType):
        num = len(value) if isinstance(value, dict) else -1
        fits = (kind.min_length or 0) <= num <= (num if kind.max_length is None else kind.max_length)
        pairs = value.items() if fits else ()
        return fits and all(
            _converts(k, _plain(kind.key_type)) and _converts(v, _plain(kind.value_type)) for k, v in pairs
        )
    if isinstance(kind, inspect.ListType):
        num = len(value) if isinstance(value, list) else -1
        fits = (kind.min_length or 0) <= num <= (num if kind.max_length is None else kind.max_length)
        return fits and all(_converts(each, _plain(kind.item_type)) for each in value)
    if isinstance(kind, inspect.StructType):
        try:
            msgspec.convert(value, kind.cls)
        except msgspec.ValidationError:
            return False
        return True
    if isinstance(kind, inspect.BoolType):
        return isinstance(value, bool)
    return value is None if isinstance(kind, inspect.NoneType) else True


def _combination(value: dict[str, Any], kind: inspect.StructType) -> str:
    """What a request expects of its fields together, if they are not that (each of them is valid by itself)."""
    try:
        msgspec.convert(value, kind.cls)
    except msgspec.ValidationError as error:
        return str(error).partition(" - at ")[0].removeprefix("expected ")
    return ""


def _expected(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        said = (kind.extra or {}).get("expected")
        return said if isinstance(said, str) else _expected(kind.type)
    if isinstance(kind, inspect.UnionType):
        return ", or ".join(_expected(each) for each in kind.types)
    return EXPECTED.get(type(kind), "something else")


def _short(value: Any) -> Any:
    """The value in a form that JSON can represent, shortened if it is long."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)[:200]
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return str(value)[:200]
