"""The socket, and uvicorn on it: bounds on what comes before a request is whole, and an end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.config import ServingConfig
from serving.errors import StartError

MAX_HEAD_BYTES = 64_000
KEEP_ALIVE_S = 75


def bind(config: ServingConfig) -> socket.socket:
    """The listening socket; `StartError` when the address cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StartError(
            f"serving.port: expected to listen on {config.host}:{config.port}, got: {error.strerror}; "
            "stop what uses it, or set serving.port to another (0: any free one)"
        ) from error
    listener.setblocking(False)
    return listener


def listen(
    app: ASGIApp, listener: socket.socket, config: ServingConfig, on_exit: Callable[[], None] = lambda: None
) -> None:
    """Serve until told to end; ``on_exit`` is called when that is."""
    server = Server(options_of(app, config))
    server.on_exit = on_exit
    server.run(sockets=[listener])


def options_of(app: ASGIApp, config: ServingConfig) -> uvicorn.Config:
    """How uvicorn runs it."""

    class Connection(BoundedConnection):
        read_timeout_s = config.read_timeout_s

    return uvicorn.Config(
        app, loop="uvloop", http=Connection, ws="none", log_config=None, access_log=config.access_log, lifespan="off",
        timeout_graceful_shutdown=int(config.drain_timeout_s), timeout_keep_alive=KEEP_ALIVE_S, server_header=False,
    )  # fmt: skip


class BoundedConnection(HttpToolsProtocol):
    """A connection that must bring the head of each request within ``read_timeout_s`` and `MAX_HEAD_BYTES`.

    Uvicorn waits for ever, and keeps whatever comes: a client that sends a byte a second would hold a socket for good.
    """

    read_timeout_s = 10.0

    def connection_made(self, transport: Any) -> None:
        """The first head is due."""
        super().connection_made(transport)
        self._num_head_bytes = 0
        self._due = self.loop.call_later(self.read_timeout_s, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._due.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to no whole head yet."""
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._close(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """A head has begun; on a connection that was kept, this is what starts its clock."""
        super().on_message_begin()
        if self._due.cancelled():
            self._due = self.loop.call_later(self.read_timeout_s, self._expire)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._due.cancel()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The gate bounds bodies."""
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next head is counted from here."""
        self._num_head_bytes = 0
        super().on_message_complete()

    def _expire(self) -> None:
        if not self.transport.is_closing():
            self._close(b"408 Request Timeout")

    def _close(self, status: bytes) -> None:
        self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()


class Server(uvicorn.Server):
    """Uvicorn that ends with status 0 when it was asked to end: SIGTERM and SIGINT are not raised again after."""

    on_exit: Callable[[], None] = staticmethod(lambda: None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Tell whoever would go on for ever, then end as uvicorn does."""
        self.on_exit()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop accepting and finish what is in flight at the first signal; do not wait at the second."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
