"""What is wrong with a configuration, in one line: where a value came from, its key, what was expected, what came."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic_core import ErrorDetails

from wire.checks import shown_of

PREFIX = "HEADRACE_"
"""The prefix of environment variables."""
# pydantic's names for wrong types, and what to tell the user.
EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dataclass_type": "a table of keys",
    "dict_type": "a table of keys",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "path_type": "a path",
    "string_type": "a string",
    "tuple_type": "a list",
}

_WAITS = "remove it: processes wait for their broker without end"
FORMER = {
    "trainer.on_hole": "it is on_gap now",
    "serving.replay_after_s": "it is historical_after_s now",
    "stream.start_timeout_s": _WAITS,
    "stream.recover_timeout_s": _WAITS,
    "serving.connect_timeout_s": _WAITS,
}
"""Keys of earlier releases, and what to do about them."""


class Explainer:
    """Describes pydantic's errors. ``sections``: name → its dataclass; ``source``: the file, with content ``table``."""

    def __init__(self, sections: Mapping[str, Any], source: str, table: Mapping[str, Any]) -> None:
        self._sections = sections
        self._source = source
        self._table = table

    def explain(self, error: ErrorDetails) -> str:
        """One line: where the value came from, its key, what was expected and what came."""
        if not error["loc"]:
            return self._contradiction(error)
        section, *key = (str(part) for part in error["loc"])
        reason = {
            "extra_forbidden": self._unknown_section if isinstance(error["input"], dict) else self._stray_key,
            "unexpected_keyword_argument": self._unknown_key,
            "value_error": self._refused_value,
        }.get(error["type"], self._wrong_type)
        return f"{self._origin(error)}: {reason(error, section, key)}"

    def _contradiction(self, error: ErrorDetails) -> str:
        """Two sections disagree: "section.key: expected …"."""
        message = str(error["ctx"]["error"])
        variable = _variable(*message.split(":", 1)[0].split(".", 1))
        return f"{variable or self._source}: {message}"

    def _unknown_section(self, _error: ErrorDetails, section: str, _key: list[str]) -> str:
        known = self._sections
        return f"[{section}]: there is no such section{nearest(section, known)}; sections: {', '.join(known)}"

    def _stray_key(self, _error: ErrorDetails, name: str, _key: list[str]) -> str:
        homes = [f"[{section}]" for section, owner in self._sections.items() if name in keys_of(owner)]
        advice = " or ".join(homes) or f"one of: {', '.join(self._sections)}"
        return f"{name}: expected every key in its section, got it outside of them; write it under {advice}"

    def _unknown_key(self, _error: ErrorDetails, section: str, key: list[str]) -> str:
        # Its value is not shown: it may be a password that belongs elsewhere.
        if (advice := FORMER.get(f"{section}.{key[0]}")) is not None:
            return f"[{section}] {key[0]}: there is no such key any more; {advice}"
        known = keys_of(self._sections[section])
        return (
            f"[{section}] {key[0]:.80}: there is no such key{nearest(key[0], known)}; "
            f"keys of [{section}]: {', '.join(known)}"
        )

    def _refused_value(self, error: ErrorDetails, section: str, _key: list[str]) -> str:
        message = str(error["ctx"]["error"])
        return message if message.startswith(f"{section}.") else f"{section}.{message}"

    def _wrong_type(self, error: ErrorDetails, section: str, key: list[str]) -> str:
        expected = EXPECTED.get(error["type"], error["msg"].removeprefix("Input should be "))
        got = shown_of(".".join((section, *key)), error["input"])
        return f"[{section}] {'.'.join(key) or section}: expected {expected}, got {got}"

    def _origin(self, error: ErrorDetails) -> str:
        """The file or environment variable that the value came from."""
        section, *key = (str(part) for part in error["loc"])
        # The message of an owner's check begins with the key: "key: expected …".
        named = str(error.get("ctx", {}).get("error", "")).split(":", 1)[0].strip().removeprefix(f"{section}.")
        return _variable(section, key[0] if key else named) or (
            self._source if section in self._table else "environment"
        )


def keys_of(owner: Any) -> list[str]:
    """The keys of a section."""
    return [field.name for field in fields(owner)]


def _variable(section: str, key: str = "") -> str | None:
    """The environment variable that sets the key, as it is spelled there, if there is one."""
    return {name.upper(): name for name in os.environ}.get(f"{PREFIX}{section}__{key.replace('.', '__')}".upper())


def nearest(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """A suggestion for a misspelt word; empty if there is none."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
