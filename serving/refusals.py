"""What the server does not answer, and how it says so: the field, what was expected, what came, what to do."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.errors import NotReadyError, OverloadedError, RequestError
from serving.messages import Problem, Refusal

RETRY_AFTER_S = "1"
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body is no JSON, or ends early"},
    413: {"model": Refusal, "description": "The body is larger than serving.max_body_bytes"},
    422: {"model": Refusal, "description": "Something in the request is not as it should be"},
    503: {"model": Refusal, "description": "No version yet, or too many requests"},
}
UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: REFUSALS[503]}
DO = {
    "missing": "add it",
    "extra_forbidden": "remove it, or correct its name",
    "one_of": "send one of them",
}
EXPECTED = {
    "missing": "a value",
    "extra_forbidden": "no such field",
    "one_of": "either user or history",
    "int_type": "an integer",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_attributes_type": "an object",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} of them",
    "string_too_short": "at least {min_length} character",
    "string_too_long": "at most {max_length} characters",
}
"""By pydantic's name of the error; what is in braces comes with it."""


class Body(JSONResponse):
    """JSON by msgspec, which is much faster than the standard library's."""

    def render(self, content: Any) -> bytes:
        """Plain values → bytes."""
        return msgspec.json.encode(content)


def refusal(status: int, *problems: Problem, headers: dict[str, str] | None = None) -> Response:
    """An answer that is none."""
    return Body({"detail": [each.model_dump() for each in problems]}, status_code=status, headers=headers)


def add_refusals(app: FastAPI) -> None:
    """Turn every error of a request into a refusal."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return refusal(422, *_problems(error.errors()))

    @app.exception_handler(RequestError)
    async def unfit(_request: Request, error: RequestError) -> Response:
        return refusal(422, Problem(field=error.field, expected=error.expected, got=error.got, do=error.do))

    @app.exception_handler(NotReadyError)
    async def unready(_request: Request, error: NotReadyError) -> Response:
        return _later(Problem(field="", expected="a version of the weights", do=str(error)))

    @app.exception_handler(OverloadedError)
    async def overloaded(_request: Request, error: OverloadedError) -> Response:
        return _later(Problem(field="", expected="fewer requests", do=str(error)))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, _of_http(request, error), headers=dict(error.headers or {}))


def _later(problem: Problem) -> Response:
    return refusal(503, problem, headers={"retry-after": RETRY_AFTER_S})


def _of_http(request: Request, error: HTTPException) -> Problem:
    if error.status_code == 404:
        return Problem(field="path", expected="a path of /openapi.json", got=request.url.path, do="correct it")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return Problem(field="method", expected=allowed, got=request.method, do="send it so")
    return Problem(field="", expected="a request as in /openapi.json", got=error.status_code, do=str(error.detail))


def _problems(errors: Any) -> list[Problem]:
    """One for each field; where a field may be of several types, what each of them would have wanted."""
    found: dict[str, Problem] = {}
    for error in errors:
        problem = _problem(error)
        before = found.get(problem.field)
        wanted = problem.expected if before is None else f"{before.expected}, or {problem.expected}"
        found[problem.field] = problem.model_copy(update={"expected": wanted})
    return list(found.values())


def _problem(error: Any) -> Problem:
    kind, given, more = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "json_invalid":
        return Problem(
            field="body", expected="JSON", do=f"mend it: {more.get('error')}, at character {error['loc'][-1]}"
        )
    if isinstance(given, bytes):  # FastAPI leaves alone what is not said to be JSON
        return Problem(field="content-type", expected="application/json", do="send the header content-type")
    place = [str(part) for part in error["loc"] if str(part) != "body" and not str(part).startswith("constrained-")]
    expected = EXPECTED[kind].format(**more) if kind in EXPECTED else error["msg"].removeprefix("Input should be ")
    got = more.get("given") if kind == "one_of" else None if kind == "missing" else _short(given)
    return Problem(field=".".join(place) or "body", expected=expected, got=got, do=DO.get(kind, "correct it"))


def _short(value: Any) -> Any:
    """The value as JSON can carry it, cut where it is long."""
    if value is None or isinstance(value, bool | int):
        return value if value is None or -(2**63) <= value < 2**64 else str(value)[:200]
    return (value if isinstance(value, str) else repr(value))[:200].encode(errors="replace").decode()
