"""The first checks of every request: its token, the size of its body, timeouts. Plain ASGI, because every request
passes through it.

A body that declares itself too large is refused before any of it is read; one that arrives in chunks, at the chunk that
exceeds the limit. The connection ends with the answer (`BoundedConnection` reads on for a while).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.answer_bodies import Problem
from serving.errors import UnauthorizedError
from serving.http.access import Access
from serving.http.error_handlers import refusal, response_to
from serving.metrics import ServerMetrics
from serving.operations import BY_PATH
from serving.users.question import ANSWERED, MARK

MARK_NAME = MARK.encode()
ENDS = Problem(field="", expected="an answer within serving.drain_timeout_s", do="try again: this server is stopping")
Headers = Sequence[tuple[bytes, bytes]]


class Gate:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, access: Access, *, max_body_bytes: int,
                 read_timeout_s: float, name: str = "") -> None:  # fmt: skip
        self._app, self._metrics, self._access = app, metrics, access
        self._answered = (ANSWERED.encode(), name.encode("latin-1", "replace"))
        self._max_body_bytes, self._read_timeout_s = max_body_bytes, read_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, handle and count one request."""
        if scope["type"] != "http":
            return
        started, status, is_started = time.perf_counter(), 500, False
        is_forwarded = any(header == MARK_NAME for header, _ in scope["headers"])

        async def sending(message: Message) -> None:
            nonlocal status, is_started
            if message["type"] == "http.response.start":
                status, is_started = message["status"], True
                if is_forwarded:
                    message["headers"] = [*message["headers"], self._answered]
            await send(message)

        self._metrics.in_flight += 1
        is_whole = True
        try:
            is_whole = await self._pass(scope, receive, sending)
        except asyncio.CancelledError:  # the time to stop is over
            if not is_started:
                await refusal(503, ENDS, headers={"retry-after": "1", "connection": "close"})(scope, receive, sending)
        finally:
            self._metrics.in_flight -= 1
            if is_whole and scope["path"] != "/events":  # a stream stays open as long as the page does
                self._metrics.observe(scope["path"], status, time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer the request; False if its body never came whole, since then nobody waits for an answer."""
        operation = BY_PATH.get(scope["path"])
        if operation is not None and operation.role:
            try:
                self._access.check(scope["headers"], operation.role)
            except UnauthorizedError as error:
                await self._refuse(response_to(error), scope, receive, send)
                return True
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return True
        body = await self._body(scope["headers"], receive)
        if body is None:
            return False
        if isinstance(body, Response):
            await self._refuse(body, scope, receive, send)
            return True
        is_told = False

        async def receiving() -> Message:
            nonlocal is_told
            if is_told:
                return await receive()
            is_told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receiving, send)
        return True

    async def _body(self, headers: Headers, receive: Receive) -> bytes | Response | None:
        """The whole body, or the refusal, or None if the connection ended before the body did."""
        declared = _declared_bytes(headers)
        if declared > self._max_body_bytes:
            return self._too_large(declared)
        pieces, num_bytes, deadline = list[bytes](), 0, time.monotonic() + self._read_timeout_s
        while True:
            message = await self._next(receive, deadline - time.monotonic())
            if message is None:
                return self._too_slow()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            num_bytes += len(pieces[-1])
            if num_bytes > self._max_body_bytes:
                return self._too_large(num_bytes)
            if not message.get("more_body", False):
                return b"".join(pieces)

    async def _next(self, receive: Receive, timeout_s: float) -> Message | None:
        """The next chunk; None if it does not arrive in time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await receive()
        except TimeoutError:
            return None

    def _too_large(self, num_bytes: int) -> Response:
        do = f"send less, or raise serving.max_body_bytes = {self._max_body_bytes}"
        return refusal(
            413, Problem(field="body", expected=f"at most {self._max_body_bytes} bytes", got=num_bytes, do=do)
        )

    def _too_slow(self) -> Response:
        expected = f"the whole body within {self._read_timeout_s:g} s"
        return refusal(
            408, Problem(field="body", expected=expected, do="send it faster, or raise serving.read_timeout_s")
        )

    async def _refuse(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at once, and end the connection if a body may follow."""
        if scope["method"] not in ("GET", "HEAD"):
            response.headers["connection"] = "close"
        await response(scope, receive, send)


def _declared_bytes(headers: Headers) -> int:
    text = next((value for name, value in headers if name == b"content-length"), b"0")
    return int(text) if text.isdigit() and len(text) < 20 else 0
