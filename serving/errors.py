"""What a server can refuse or stop for.

    ServingError
    ├── StartError       the server cannot start (broker away, port in use); the process ends with 1
    ├── NotReadyError    no version has arrived yet: 503
    ├── OverloadedError  more requests wait than `max_waiting`: 503
    └── RequestError     the request cannot be answered as it is: 422

Each message says what was expected, what came and what to do.
"""

from __future__ import annotations

from typing import Any

from wire.errors import HeadraceError


class ServingError(HeadraceError):
    """The base of everything above."""


class StartError(ServingError):
    """The server cannot start here."""


class NotReadyError(ServingError):
    """There is no version to answer from yet."""


class OverloadedError(ServingError):
    """Too many requests are waiting already."""


class RequestError(ServingError):
    """A request that is well-formed, but cannot be answered: ``field``, ``expected``, ``got`` and what to ``do``."""

    def __init__(self, field: str, expected: str, got: Any, do: str) -> None:
        super().__init__(f"{field}: expected {expected}, got {got!r}; {do}")
        self.field, self.expected, self.got, self.do = field, expected, got, do
