"""What a server can refuse or stop for.

    ServingError
    ├── StartError          the server cannot start (broker away, port in use); the process ends with 1
    ├── NotReadyError       no version has arrived yet: 503
    ├── OverloadedError     the answer would take longer than `serving.max_wait_s`, or too many wait: 503
    ├── UnauthorizedError   no token, an unknown one, or one that does not reach as far: 401, 403
    └── InvalidRequestError  the request cannot be answered as it is: 422
        └── RequestError    one thing is wrong with it

Each message says what was expected, what came and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.messages import Problem
from wire.errors import HeadraceError


class ServingError(HeadraceError):
    """The base of everything above."""


class StartError(ServingError):
    """The server cannot start here."""


class NotReadyError(ServingError):
    """There is no version to answer from yet."""


class OverloadedError(ServingError):
    """Too much is waiting already; ``retry_after_s``: when it is worth asking again."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnauthorizedError(ServingError):
    """The token that came is not enough; ``status``: 401 (none, or an unknown one) or 403 (it may do less)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class InvalidRequestError(ServingError):
    """A request that cannot be answered, with everything that is wrong with it (or the first problems)."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{each.field}: expected {each.expected}, got {each.got!r}" for each in problems))
        self.problems = list(problems)


class RequestError(InvalidRequestError):
    """A request that is well-formed, but cannot be answered: ``field``, ``expected``, ``got`` and what to ``do``."""

    def __init__(self, field: str, expected: str, got: Any, do: str) -> None:
        super().__init__([Problem(field=field, expected=expected, got=got, do=do)])
