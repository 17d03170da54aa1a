"""Requests that would bring down a careless server, and clients that send them one after another."""

from __future__ import annotations

import asyncio
import contextlib
import json


def post(path: str, body: bytes, declared: int | None = None) -> bytes:
    """A complete request. ``declared``: its Content-Length, if it should not be the true one."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    return head.encode() + b"%d\r\n\r\n" % (len(body) if declared is None else declared) + body


def bad_requests() -> dict[str, bytes]:
    """Requests by name. The last ones are valid for a model of the default kinds, and as long as the limits allow."""
    candidates = list(range(10_000))
    history = [{"item": n, "action": "rate", "timestamp": n} for n in range(1000)]
    unknown = [{**each, "action": "no such kind"} for each in history]
    many = [{"user": f"u{n}", "k": 1000} for n in range(64)]
    return {
        "40,000 × {} for a list of ids": post("/rank", b'{"user": 1, "items": [' + b",".join([b"{}"] * 40_000) + b"]}"),
        "bodies of 3.6 MB": post("/rank", b"x" * 3_600_000),
        "100,000 brackets": post("/rank", b'{"user": 1, "items": ' + b"[" * 100_000),
        "slow bodies": post("/rank", b"{", declared=1000),
        "histories of an unknown kind": post("/recommend", json.dumps({"history": unknown}).encode()),
        "rank 10,000": post("/rank", json.dumps({"user": "u1", "items": candidates}).encode()),
        "recommend by a history of 1,000": post("/recommend", json.dumps({"history": history}).encode()),
        "64 × recommend 1,000": post("/recommend/batch", json.dumps({"requests": many}).encode()),
    }


async def keep_sending(port: int, request: bytes, until: asyncio.Event, num_clients: int = 2) -> None:
    """Clients that send a request over and over, each time on a new connection, until stopped."""

    async def client() -> None:
        while not until.is_set():
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                async with asyncio.timeout(0.5):
                    await reader.readuntil(b"\r\n\r\n")
                writer.close()

    await asyncio.gather(*(client() for _ in range(num_clients)))
