"""The server's HTTP: FastAPI over a `Service`. Every answer says its version, every refusal what was wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import FastAPI, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.messages import (
    Health,
    Problem,
    RankAnswer,
    RankRequest,
    Readiness,
    RecommendAnswer,
    RecommendRequest,
    VersionAnswer,
    VersionName,
)
from serving.metrics import ServerMetrics
from serving.refusals import REFUSALS, UNAVAILABLE, Body, add_refusals, refusal
from serving.service import Service


def build_app(service: Service) -> FastAPI:
    """The application. It owns nothing: start and stop the service around it."""
    app = FastAPI(
        title="Headrace", description=__doc__, version="1", default_response_class=Body, redirect_slashes=False
    )
    metrics = ServerMetrics(service.readings)
    app.state.metrics = service.metrics = metrics
    app.add_middleware(Gate, metrics=metrics, max_body_bytes=service.config.max_body_bytes)
    add_refusals(app)
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
                await refusal(413, problem, headers={"connection": "close"})(scope, receive, sending)
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
