"""Addresses under which servers reach each other."""

from __future__ import annotations

import platform
import re
from typing import Any

from wire.checks import expect

ADDRESS = r"https?://(\[[\w:.%]+\]|[\w.-]+)(:[0-9]{1,5})?"
"""A base URL without a path."""
EVERY_INTERFACE = frozenset({"0.0.0.0", "::"})  # noqa: S104


class Addresses:
    """The limit of a list of base URLs."""

    def check(self, key: str, value: Any) -> None:
        """Raise `ConfigError` unless each is one."""
        fine = isinstance(value, tuple) and all(isinstance(each, str) and is_address(each) for each in value)
        expect(fine, key, "a list of http://HOST:PORT", value, "leave the path out")


def is_address(text: str) -> bool:
    """Whether the text is a base URL without a path."""
    return re.fullmatch(ADDRESS, text) is not None


def address_of(host: str, port: int) -> str:
    """The base URL of what listens there, as seen from other machines where it listens on every interface."""
    name = platform.node() if host in EVERY_INTERFACE else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
