"""What no value of a configuration may be, whatever its key: what no owner would think of refusing.

A number beyond what Kafka, a clock or 32 bits can hold would be a traceback hours later, in a client's library; so
would a control character in a path or a name. TOML's ``true`` is no number, though Python takes it for 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from wire.checks import expect

MAX_WHOLE = 2**53
"""Beyond it a double would lose units."""
MAX_FLOAT = 3.4e38
"""What 32 bits hold."""
MAX_S = 1e9
"""Thirty years."""
MAX_DAYS = 1e5
MAX_CHARACTERS = 4_000


def check_plausible(sections: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a value that cannot be meant. ``sections``: name → dataclass."""
    for section, config in sections.items():
        for each in fields(config):
            for key, value in _leaves(f"{section}.{each.name}", getattr(config, each.name)):
                _check(key, value)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple):
        yield from ((key, entry) for entry in value)
    elif isinstance(value, Mapping):
        yield from ((f"{key}.{name}", entry) for name, entry in value.items())
    else:
        yield key, value


def _check(key: str, value: Any) -> None:
    if isinstance(value, str | Path):
        text = str(value)
        expected = f"at most {MAX_CHARACTERS} characters, none of them a control character"
        expect(len(text) <= MAX_CHARACTERS and text.isprintable(), key, expected, text, "remove what is too much")
        is_host = not key.endswith("host") or _is_host(text)
        expect(is_host, key, "a host name or an address", text, "127.0.0.1 is this machine, 0.0.0.0 any address of it")
    elif isinstance(value, bool):
        return
    elif isinstance(value, int):
        expect(abs(value) <= MAX_WHOLE, key, f"at most {MAX_WHOLE}", value, "give a smaller number")
    elif isinstance(value, float):
        most = MAX_S if key.endswith("_s") else MAX_DAYS if key.endswith("_days") else MAX_FLOAT
        expect(abs(value) <= most, key, f"at most {most:g}", value, "give a smaller number")


def _is_host(text: str) -> bool:
    try:
        return bool(text.encode("idna"))
    except UnicodeError:
        return False


def check_switches(table: Mapping[str, Any], types: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `ConfigError` where the file says true or false for a number. ``types``: section → key → its type."""
    for section, entries in table.items():
        known = types.get(section, {})
        for key, value in entries.items() if isinstance(entries, Mapping) else ():
            is_number = known.get(key) in (int, float)
            expect(not (isinstance(value, bool) and is_number), f"{section}.{key}", "a number", value, "give a number")
