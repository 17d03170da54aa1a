"""An HTTP client for an application in this process, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
from starlette.types import ASGIApp


class Client:
    """Sends one request after another; for any number of threads."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def get(self, path: str, *, token: str = "") -> httpx.Response:
        return asyncio.run(self._send("GET", path, headers={"authorization": f"Bearer {token}"} if token else None))

    def post(
        self, path: str, *, json: Any = None, content: bytes | Iterable[bytes] | None = None, kind: str = "",
        token: str = "",
    ) -> httpx.Response:  # fmt: skip
        headers = {"content-type": kind} if kind else {}
        headers |= {"authorization": f"Bearer {token}"} if token else {}
        return asyncio.run(self._send("POST", path, json=json, content=content, headers=headers))

    async def _send(
        self, method: str, path: str, *, json: Any = None, content: Any = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        async def streamed() -> AsyncIterator[bytes]:
            for each in content:
                yield each

        body = content if content is None or isinstance(content, bytes) else streamed()
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, json=json, content=body, headers=headers)
