"""The errors for which a server refuses a request, or stops.

    ServingError
    ├── StartError          the server cannot start (broker away, port in use); the process ends with 1
    ├── NotReadyError       something needed is not available (yet), such as a version or the broker: 503
    ├── OverloadedError     the answer would take longer than `serving.max_wait_s`, or too many wait: 503
    ├── MisdirectedError    another server forwarded a request for a user who is not held here: 421
    ├── RelayedError        another server, which holds the user, refused the request
    ├── UnauthorizedError   no token, an unknown one, or one whose role is not sufficient: 401, 403
    └── InvalidRequestError  the request cannot be answered as it is: 422
        └── RequestError    one thing is wrong with it

Each message says what was expected, what came and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from serving.answer_bodies import Problem
from wire.errors import ConfigError, HeadraceError


def says_what_to_do(error: BaseException) -> bool:
    """Whether an error is the system's or the configuration's, such as a full disk, and its message is for the
    operator. Connections that fail are not."""
    return isinstance(error, ConfigError) or (
        isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)
    )


class ServingError(HeadraceError):
    """The base of everything above."""


class StartError(ServingError):
    """The server cannot start."""


class NotReadyError(ServingError):
    """Something that an answer needs is not available (yet); ``expected``: what it is."""

    def __init__(self, message: str, expected: str = "a version of the weights") -> None:
        super().__init__(message)
        self.expected = expected


class OverloadedError(ServingError):
    """Too many requests are waiting; ``retry_after_s``: when to try again."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class MisdirectedError(ServingError):
    """A forwarded request that this server must not answer; ``expected``, ``got``: the user's place or the mark."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}; GET /partitions says what this server holds")
        self.expected, self.got = expected, got


class RelayedError(ServingError):
    """Another server's refusal, to be passed on as it is."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(f"another server answered {status}")
        self.status, self.body, self.headers = status, body, dict(headers)


class UnauthorizedError(ServingError):
    """The token is not sufficient; ``status``: 401 (none, or an unknown one) or 403 (its role does not allow this)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class InvalidRequestError(ServingError):
    """A request that cannot be answered, with the problems found (the first ones, if there are many)."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{each.field}: expected {each.expected}, got {each.got!r}" for each in problems))
        self.problems = list(problems)

    def under(self, place: str) -> InvalidRequestError:
        """The same of a request that is the field ``place`` of another one."""
        return InvalidRequestError(
            [replace(each, field=f"{place}.{each.field}" if each.field else place) for each in self.problems]
        )


class RequestError(InvalidRequestError):
    """A well-formed request that cannot be answered: the ``field``, what was ``expected``, what it ``got``, what to
    ``do``."""

    def __init__(self, field: str, expected: str, got: Any, do: str) -> None:
        super().__init__([Problem(field=field, expected=expected, got=got, do=do)])
