"""Actions in a file of JSON: one per line, or a list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from stream.errors import FileError
from stream.files.content import lines_of
from stream.files.delimited import first_line
from stream.files.kinds import unknown_kinds
from wire.action import Action, Rejection, decode_record
from wire.action_json import ForgetRequest
from wire.config import ActionConfig


def read_json(path: Path, text: str, config: ActionConfig, now_ms: int) -> list[dict[str, Any]]:
    """The file's actions, in order of time. Raises `FileError`, which names the line or the list's element."""
    found: list[dict[str, Any]] = []
    for place, raw in _json_values(path, text):
        outcomes = decode_record(raw, now_ms, config)
        for outcome in outcomes:
            if isinstance(outcome, Rejection):
                raise FileError(f"{place}: {_said(outcome, config)}")
            if isinstance(outcome, ForgetRequest):
                what = f"user {outcome.user}" if outcome.user else f"item {outcome.item}"
                raise FileError(f"{place}: expected an action, got a request to forget {what}; use headrace forget")
        try:
            content = msgspec.json.decode(raw)
        except msgspec.ValidationError as error:  # in a field that is not used
            raise FileError(
                f"{place}: expected numbers that a double can hold, got {error}; leave that field out"
            ) from None
        actions = content if isinstance(content, list) else [content]
        found += [_plain(one, action) for one, action in zip(outcomes, actions, strict=True) if isinstance(one, Action)]
    found.sort(key=itemgetter("timestamp"))
    return found


def _plain(outcome: Action, action: dict[str, Any]) -> dict[str, Any]:
    """The same action with integers written as such: 5.0 is 5."""
    user = action["user"]
    if isinstance(user, float) or not isinstance(action["timestamp"], int):
        return {**action, "user": int(user) if isinstance(user, float) else user, "timestamp": outcome.timestamp_ms}
    return action


def _json_values(path: Path, text: str) -> Iterator[tuple[str, bytes]]:
    """Each JSON value's place and bytes: the elements of one list, or the lines, each an action or a list. Lists may be
    of any length: the producer makes records of its own."""
    if text.lstrip()[0] == "[" and not _is_json(first_line(text)):
        yield from _elements(str(path), path, text)
        return
    for number, line in enumerate(lines_of(text), 1):
        if line.lstrip()[:1] == "[" and _is_json(line):
            yield from _elements(f"{path}:{number}", path, line)
        elif line.strip():
            yield f"{path}:{number}", line.encode()


def _elements(place: str, path: Path, text: str) -> Iterator[tuple[str, bytes]]:
    try:
        elements = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        number = _line_of(error, text)
        raise FileError(f"{path}:{number}: expected a list of actions as JSON, got {error}; fix it") from None
    if not elements:
        yield place, b"[]"
    yield from ((f"{place}: element {number}", bytes(raw)) for number, raw in enumerate(elements, 1))


def _is_json(line: str) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _line_of(error: Exception, text: str) -> int:
    found = re.search(r"byte (\d+)", str(error))
    return text.encode()[: int(found[1])].count(b"\n") + 1 if found else 1


def _said(rejection: Rejection, config: ActionConfig) -> str:
    if rejection.reason == "malformed":
        got = rejection.message.removeprefix("expected JSON in UTF-8, got ").rpartition(";")[0]
        return f"expected an action as JSON, got {got}; write each on its own line, or all as one list"
    if rejection.reason == "unknown_action":
        action = msgspec.json.decode(rejection.raw)["action"]
        kinds = [action] if isinstance(action, str) else action
        return unknown_kinds([kind for kind in kinds if kind not in config.kinds], config)
    return rejection.message
