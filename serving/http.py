"""The server's HTTP: FastAPI over a `Service`. Every answer says its version, every refusal what was wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import NotReadyError, OverloadedError, RequestError
from serving.messages import (
    Health,
    Problem,
    RankAnswer,
    RankRequest,
    Readiness,
    RecommendAnswer,
    RecommendRequest,
    Refusal,
    VersionAnswer,
    VersionName,
)
from serving.metrics import ServerMetrics
from serving.service import Service

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
    "json_invalid": "send valid JSON",
    "value_error": "send exactly one of them",
}
EXPECTED = {"missing": "a value", "extra_forbidden": "no such field", "json_invalid": "JSON"}


class Body(JSONResponse):
    """JSON by msgspec, which is much faster than the standard library's."""

    def render(self, content: Any) -> bytes:
        """Plain values → bytes."""
        return msgspec.json.encode(content)


def build_app(service: Service) -> FastAPI:
    """The application. It owns nothing: start and stop the service around it."""
    app = FastAPI(
        title="Headrace", description=__doc__, version="1", default_response_class=Body, redirect_slashes=False
    )
    metrics = ServerMetrics(service.readings)
    app.state.metrics = service.metrics = metrics
    app.add_middleware(Gate, metrics=metrics, max_body_bytes=service.config.max_body_bytes)
    _add_refusals(app)
    _add_answers(app, service)
    _add_standing(app, service, metrics)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/recommend", response_model=RecommendAnswer, responses=REFUSALS, summary="Which items next?")
    async def recommend(request: RecommendRequest) -> Response:
        return Body(await service.recommend(request))

    @app.post(
        "/rank", response_model=RankAnswer, responses=REFUSALS, summary="How likely is each action on these items?"
    )
    async def rank(request: RankRequest) -> Response:
        return Body(await service.rank(request))

    @app.get("/version", response_model=VersionAnswer, responses=UNAVAILABLE, summary="Which weights answer now?")
    async def version() -> Response:
        current = service.version()
        return Body({
            "version": {"epoch": current.which[0], "number": current.which[1]}, "model_id": current.manifest.model_id,
            "freshness_s": current.freshness_s, "age_s": max(0.0, time.time() - current.swapped_ms / 1000),
            "num_items": current.num_items, "num_interactions": current.manifest.num_interactions,
        })  # fmt: skip


def _add_standing(app: FastAPI, service: Service, metrics: ServerMetrics) -> None:
    @app.get("/healthz", response_model=Health, summary="Alive?")
    async def healthz() -> Response:
        return Body({"status": "alive"})

    @app.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not yet"}},
             summary="Has it what it needs to answer?")  # fmt: skip
    async def readyz() -> Response:
        current = service.holder.current
        name = VersionName(epoch=current.which[0], number=current.which[1]) if current else None
        readiness = Readiness(
            ready=service.is_ready, version=name, histories=service.histories_ready.is_set(),
            broker=service.contact.is_up, broker_away_s=service.contact.away_s,
            freshness_s=current.freshness_s if current else None,
        )  # fmt: skip
        return Body(readiness.model_dump(), status_code=200 if service.is_ready else 503)

    @app.get("/metrics", response_class=Response, summary="For Prometheus",
             responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})  # fmt: skip
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return refusal(422, *(_problem(each) for each in error.errors()))

    @app.exception_handler(RequestError)
    async def unfit(_request: Request, error: RequestError) -> Response:
        return refusal(422, Problem(field=error.field, expected=error.expected, got=error.got, do=error.do))

    @app.exception_handler(NotReadyError)
    async def unready(_request: Request, error: NotReadyError) -> Response:
        problem = Problem(field="", expected="a version of the weights", got=None, do=str(error))
        return refusal(503, problem, {"retry-after": RETRY_AFTER_S})

    @app.exception_handler(OverloadedError)
    async def overloaded(_request: Request, error: OverloadedError) -> Response:
        return refusal(
            503, Problem(field="", expected="fewer requests", got=None, do=str(error)), {"retry-after": RETRY_AFTER_S}
        )

    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> Response:
        problem = Problem(
            field="", expected="a request as in /openapi.json", got=error.status_code, do=str(error.detail)
        )
        return refusal(error.status_code, problem, dict(error.headers or {}))


def refusal(status: int, *problems: Problem | dict[str, str]) -> Response:
    """A refusal with its problems; a dict among them is headers."""
    headers = {key: value for each in problems if isinstance(each, dict) for key, value in each.items()}
    detail = [each.model_dump() for each in problems if isinstance(each, Problem)]
    return Body({"detail": detail}, status_code=status, headers=headers)


def _problem(error: Any) -> Problem:
    kind, place = error["type"], [str(part) for part in error["loc"] if part not in ("body", "function-before")]
    expected = EXPECTED.get(kind, str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be "))
    got = None if kind in ("missing", "value_error", "json_invalid") else _short(error.get("input"))
    return Problem(field=".".join(place) or "body", expected=expected, got=got, do=DO.get(kind, "correct it"))


def _short(value: Any) -> Any:
    """The value as JSON can carry it, cut where it is long."""
    if value is None or isinstance(value, bool | int):
        return value if value is None or -(2**63) <= value < 2**64 else str(value)[:200]
    return (value if isinstance(value, str) else repr(value))[:200].encode(errors="replace").decode()


class Gate:
    """Bounds the body and measures every request; plain ASGI, because it is on every request's way."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, max_body_bytes: int) -> None:
        self._app, self._metrics, self._max_body_bytes = app, metrics, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, num_bytes = time.perf_counter(), 500, 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def receiving() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise HTTPException(413, self._too_large(num_bytes))
            return message

        declared = _declared_bytes(scope["headers"])
        self._metrics.in_flight.inc()
        try:
            if declared > self._max_body_bytes:
                problem = Problem(field="body", expected=f"at most {self._max_body_bytes} bytes", got=declared,
                                  do=self._too_large(declared))  # fmt: skip
                await refusal(413, problem, {"connection": "close"})(scope, receive, sending)
            else:
                await self._app(scope, receiving, sending)
        finally:
            self._metrics.in_flight.dec()
            known = getattr(scope.get("route"), "path", "other")
            self._metrics.observe(known, status, time.perf_counter() - started)

    def _too_large(self, num_bytes: int) -> str:
        return f"{num_bytes} bytes are more than serving.max_body_bytes = {self._max_body_bytes}; send less"


def _declared_bytes(headers: Sequence[tuple[bytes, bytes]]) -> int:
    text = next((value for name, value in headers if name == b"content-length"), b"0")
    return int(text) if text.isdigit() else 0
