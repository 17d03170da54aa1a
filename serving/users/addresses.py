"""Addresses under which servers reach each other."""

from __future__ import annotations

import platform
from typing import Any

from wire.checks import expect, is_base_url

EVERY_INTERFACE = frozenset({"0.0.0.0", "::"})  # noqa: S104


class OwnAddress:
    """The limit of a server's own base URL, which may be empty."""

    def check(self, key: str, value: Any) -> None:
        """Raise `ConfigError` unless it is one."""
        fine = isinstance(value, str) and (not value or is_base_url(value))
        expect(fine, key, "http://HOST:PORT, or nothing", value, "leave the path out")


class Addresses:
    """The limit of a list of base URLs."""

    def check(self, key: str, value: Any) -> None:
        """Raise `ConfigError` unless each is one."""
        fine = isinstance(value, tuple) and all(isinstance(each, str) and is_base_url(each) for each in value)
        expect(fine, key, "a list of http://HOST:PORT", value, "leave the path out")


def address_of(host: str, port: int) -> str:
    """The base URL of what listens there, as seen from other machines where it listens on every interface."""
    name = platform.node() if host in EVERY_INTERFACE else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
