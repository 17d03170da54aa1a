"""The server's HTTP: a Starlette application over a `Service`, behind the `Gate`."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, quote

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serving.answer_bodies import Health, Problem
from serving.errors import InvalidRequestError, RequestError, ServingError
from serving.http.access import Access
from serving.http.error_handlers import ERROR_HANDLERS, Body, refusal, response_to
from serving.http.gate import Gate
from serving.http.openapi import openapi
from serving.http.readings import readings_of
from serving.metrics import ServerMetrics
from serving.operations import Operation, limits, operations_of
from serving.pages import EventStream, Files
from serving.service import Answer, Service
from serving.users.placing import Placing
from serving.users.question import MARK, Question
from serving.validation import Decoder
from wire.thinned_log import is_told

logger = logging.getLogger(__name__)
PENANCE, MOST_PENANCE_S = 50.0, 0.5
"""A refusal is delayed by this multiple of the time that decoding the body took; at most `MOST_PENANCE_S`."""
MARK_NAME = MARK.encode()
FAULT = Problem(field="", expected="an answer", do="report it: the server's log says what happened")


def build_app(service: Service, access: Access | None = None) -> Starlette:
    """The application. It owns nothing: the caller starts and stops the service."""
    metrics = ServerMetrics(lambda: readings_of(service))
    service.metrics = metrics
    config = service.config
    operations = operations_of(config)
    gate = Middleware(Gate, metrics=metrics, access=access or Access.read(config.tokens_file),
                      max_body_bytes=config.max_body_bytes, read_timeout_s=config.read_timeout_s,
                      name=service.name)  # fmt: skip
    answers: dict[str, Answer] = {
        "/recommend": service.recommend, "/recommend/batch": service.recommend_batch, "/rank": service.rank,
        "/rank/batch": service.rank_batch, "/similar": service.similar, "/items": service.items,
        "/explain": service.explain, "/actions": service.send_action,
        "/forget": service.forget,
    }  # fmt: skip
    states: dict[str, Any] = {
        "/version": _version, "/healthz": _healthz, "/readyz": _readyz, "/metrics": _metrics, "/about": _about,
        "/users": _users, "/history": _history, "/partitions": _partitions,
    }  # fmt: skip
    streams = {"/events": EventStream(service).open}
    routes = [
        Route(each.path, Answering(each, answers[each.path], limits(config), service.placing), methods=[each.method])
        if each.path in answers
        else Route(
            each.path, streams.get(each.path) or functools.partial(states[each.path], service), methods=[each.method]
        )
        for each in operations
    ]
    document = msgspec.json.encode(openapi(operations, config))

    async def described(_request: Request) -> Response:
        return Body(document)

    routes += [Route("/openapi.json", described), *Files.read().routes(with_page=config.page)]
    app = Starlette(routes=routes, middleware=[gate], exception_handlers=ERROR_HANDLERS)
    app.router.redirect_slashes = False
    return app


class Answering:
    """An operation that takes a body and returns one. Plain ASGI, because most requests take this path."""

    def __init__(
        self, operation: Operation, answer: Answer, most: dict[str, tuple[int, str]], placing: Placing
    ) -> None:
        assert operation.request is not None
        self._decoder, self._answer, self._path = Decoder(operation.request, most), answer, operation.path
        self._placing = placing if operation.is_of_users else None
        self._num_faults = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, whose body the gate has read."""
        if (problem := _unreadable(scope["headers"])) is not None:
            await refusal(415, problem)(scope, receive, send)
            return
        message, began, spent_s = await receive(), time.perf_counter(), 0.0
        try:
            try:
                request = self._decoder.decode(message["body"])
            finally:
                spent_s = time.perf_counter() - began
            if self._placing is None:
                body = await self._answer(request)
            else:
                mark, token = _mark_and_token(scope["headers"])
                question = Question("POST", self._path, message["body"], token)
                body = await self._placing.answer(self._answer, request, question, mark)
        except InvalidRequestError as error:
            # A client that sends requests that are expensive to refuse must wait, instead of slowing down others.
            await asyncio.sleep(min(MOST_PENANCE_S, PENANCE * spent_s))
            await response_to(error)(scope, receive, send)
            return
        except ServingError as error:
            await response_to(error)(scope, receive, send)
            return
        except Exception:  # the connection stays usable
            self._num_faults += 1
            if is_told(self._num_faults):
                logger.exception("POST %s failed (number %d so far)", self._path, self._num_faults)
            await refusal(500, FAULT)(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _unreadable(headers: Sequence[tuple[bytes, bytes]]) -> Problem | None:
    """Why the headers' body cannot be JSON; None if it may be."""
    kind, coding = b"", b""
    for name, value in headers:
        if name == b"content-type":
            kind = kind or value
        elif name == b"content-encoding":
            coding = value
    if coding and coding.strip().lower() != b"identity":
        return Problem(field="content-encoding", expected="identity", got=_shown(coding), do="send it uncompressed")
    plain = kind.split(b";", 1)[0].strip().lower()
    if plain == b"application/json" or (plain.startswith(b"application/") and plain.endswith(b"+json")):
        return None
    return Problem(field="content-type", expected="application/json", got=_shown(kind) or None,
                   do="send the header content-type")  # fmt: skip


def _mark_and_token(headers: Sequence[tuple[bytes, bytes]]) -> tuple[str | None, str | None]:
    """The headers `MARK` and authorization."""
    mark = token = None
    for name, value in headers:
        if name == MARK_NAME:
            mark = value.decode("latin-1")
        elif name == b"authorization":
            token = token or value.decode("latin-1")
    return mark, token


def _shown(value: bytes) -> str:
    return value[:200].decode("latin-1")


async def _healthz(service: Service, _request: Request) -> Response:
    failure = service.failure
    return Body(Health() if failure is None else Health(status="failed"), status_code=200 if failure is None else 503)


async def _version(service: Service, _request: Request) -> Response:
    return Body(service.version_answer())


async def _readyz(service: Service, _request: Request) -> Response:
    return Body(service.readiness(), status_code=200 if service.is_ready else 503)


async def _about(service: Service, _request: Request) -> Response:
    return Body(service.about())


async def _users(service: Service, _request: Request) -> Response:
    return Body(service.users())


def _user_of(query: bytes) -> str:
    """The last ``user`` of a query string; "" if it has none. Raises `RequestError` if the query is not UTF-8, which
    would be read as somebody else."""
    try:
        return dict(parse_qsl(query.decode(), keep_blank_values=True, errors="strict")).get("user", "")
    except UnicodeDecodeError:
        raise RequestError("user", "UTF-8", _shown(query), "send ?user=ID in UTF-8, percent-encoded") from None


async def _history(service: Service, request: Request) -> Response:
    user = _user_of(request.scope["query_string"])
    question = Question("GET", f"/history?user={quote(user, safe='')}", b"", request.headers.get("authorization"))
    return Body(await service.placing.answer(service.history, user, question, request.headers.get(MARK)))


async def _partitions(service: Service, _request: Request) -> Response:
    return Body(service.placing.partitions_answer())


async def _metrics(service: Service, _request: Request) -> Response:
    assert service.metrics is not None
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")
