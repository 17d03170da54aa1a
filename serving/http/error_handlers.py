"""Refusals: responses that say which field is wrong, what was expected, what came, and what to do."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.answer_bodies import Problem, Refusal
from serving.errors import (
    InvalidRequestError,
    MisdirectedError,
    NotReadyError,
    OverloadedError,
    RelayedError,
    UnauthorizedError,
)

encode = msgspec.json.Encoder().encode
Handler = Callable[[Request, Exception], Awaitable[Response]]


class Body(Response):
    """JSON by msgspec, or bytes that are JSON already."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Structs and plain values → bytes."""
        return content if isinstance(content, bytes) else encode(content)


def refusal(status: int, *problems: Problem, headers: dict[str, str] | None = None) -> Response:
    """The response that refuses a request."""
    return Body(Refusal(list(problems)), status_code=status, headers=headers)


def response_to(error: Exception) -> Response:
    """The refusal for an error; re-raises errors that no refusal describes."""
    if isinstance(error, InvalidRequestError):
        return refusal(422, *error.problems)
    if isinstance(error, NotReadyError):
        return _later(Problem(field="", expected=error.expected, do=str(error)), 1)
    if isinstance(error, OverloadedError):
        return _later(Problem(field="", expected="fewer requests", do=str(error)), error.retry_after_s)
    if isinstance(error, RelayedError):
        return Body(error.body, status_code=error.status, headers=error.headers)
    if isinstance(error, MisdirectedError):
        problem = Problem(
            field="user", expected=error.expected, got=error.got, do="GET /partitions, and ask its holder"
        )
        return refusal(421, problem)
    if isinstance(error, UnauthorizedError):
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
        problem = Problem(field="authorization", expected="Bearer TOKEN", do=str(error))
        return refusal(error.status, problem, headers=headers)
    raise error


def _later(problem: Problem, retry_after_s: float) -> Response:
    return refusal(503, problem, headers={"retry-after": str(max(1, math.ceil(retry_after_s)))})


async def _of_ours(_request: Request, error: Exception) -> Response:
    return response_to(error)


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    return refusal(error.status_code, _problem(request, error, headers), headers=headers)


def _problem(request: Request, error: HTTPException, headers: dict[str, str]) -> Problem:
    if error.status_code == 404:
        return Problem(field="path", expected="a path of /openapi.json", got=request.url.path[:200], do="correct it")
    if error.status_code == 405:
        allowed = " or ".join(sorted(headers.get("Allow", "another method").split(", ")))
        return Problem(field="method", expected=allowed, got=request.method[:20], do=f"send {allowed}")
    return Problem(field="", expected="a request as in /openapi.json", got=error.status_code, do=str(error.detail))


ERROR_HANDLERS: dict[Any, Handler] = {
    InvalidRequestError: _of_ours,
    MisdirectedError: _of_ours,
    NotReadyError: _of_ours,
    OverloadedError: _of_ours,
    RelayedError: _of_ours,
    UnauthorizedError: _of_ours,
    HTTPException: _of_http,
}
"""By type of error, for Starlette."""
