"""HTTP clients of the measurements: they write bytes and read answers, and decode nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time

NUM_CLIENTS = 8
Asked = list[tuple[int, list[bytes]]]
"""Ports, each with the requests that go there."""


def post(path: str, body: bytes, declared: int | None = None) -> bytes:
    """A complete request. ``declared``: its Content-Length, if it should not be the true one."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    return head.encode() + b"%d\r\n\r\n" % (len(body) if declared is None else declared) + body


async def load(asked: Asked, seconds: float, bad: bytes | None = None) -> tuple[list[float], int, float]:
    """`NUM_CLIENTS`, divided among the ports, each sending its next request as soon as it has an answer: seconds per
    answer, failures, wall seconds. ``bad``: a request that two more clients keep sending to the first port."""
    taken: list[float] = []
    wrong, over = 0, asyncio.Event()
    disturbing = asyncio.create_task(keep_sending(asked[0][0], bad, over)) if bad is not None else None
    began = time.perf_counter()

    async def client(port: int, requests: list[bytes], at: int) -> None:
        nonlocal wrong
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            writer.write(requests[at % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            taken.append(time.perf_counter() - sent)
            wrong += b" 200 " not in head[:20]
            at += NUM_CLIENTS
        writer.close()

    await asyncio.gather(*(client(*asked[index % len(asked)], index) for index in range(NUM_CLIENTS)))
    wall_s = time.perf_counter() - began
    over.set()
    if disturbing is not None:
        await disturbing
    return taken, wrong, wall_s


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
