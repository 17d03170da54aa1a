"""The page's files and its stream of events. The files are those of the folder ``page``, read once at startup."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from serving.errors import OverloadedError
from serving.service import Service

FOLDER = Path(__file__).parent / "page"
KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8"}  # fmt: skip
SAFE = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
"""The page loads nothing from other hosts, and sends nothing to them."""
MAX_STREAMS = 64
LOOK_EVERY_S = 0.2
encode = msgspec.json.Encoder().encode


class Files:
    """The folder's files, in memory: a requested path is looked up in a dictionary, never in the file system."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self._tags = {name: f'"{hashlib.sha256(body).hexdigest()[:16]}"' for name, body in files.items()}

    @classmethod
    def read(cls) -> Files:
        """The files as they are now."""
        return cls({path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in KINDS})

    def response(self, name: str, request: Request) -> Response:
        """The file, or 304 if the browser already has it."""
        tag = self._tags[name]
        headers = {**SAFE, "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(self._files[name], media_type=KINDS[Path(name).suffix], headers=headers)

    def routes(self, *, with_page: bool) -> list[Route]:
        """``/`` and ``/docs``, and ``/page/NAME`` for the files that they load."""

        def route(path: str, name: str) -> Route:
            async def answer(request: Request) -> Response:
                return self.response(name, request)

            return Route(path, answer, include_in_schema=False)

        front = [route("/docs", "docs.html"), *([route("/", "index.html")] if with_page else [])]
        return [*front, *(route(f"/page/{name}", name) for name in self._files)]


class EventStream:
    """``GET /events``: the points so far, then one a second, until the client disconnects or the server stops."""

    def __init__(self, service: Service) -> None:
        self._service, self._num_open = service, 0

    async def open(self, request: Request) -> Response:
        """Open a stream; for HEAD one that ends at once, since it has no body whose end the client would see. Raises
        `OverloadedError` if there are too many."""
        if self._num_open >= MAX_STREAMS:
            raise OverloadedError(f"{MAX_STREAMS} pages are already open; close one", 10.0)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        events = () if request.method == "HEAD" else self._events()
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _events(self) -> AsyncIterator[bytes]:
        pulse = self._service.pulse
        self._num_open += 1
        try:
            seen = pulse.num_points
            yield _event("points", encode(list(pulse.points)))
            while not self._service.stopping.is_set():
                await asyncio.sleep(LOOK_EVERY_S)
                if pulse.num_points != seen:
                    seen = pulse.num_points
                    yield _event("point", encode(pulse.points[-1]))
        finally:
            self._num_open -= 1


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
