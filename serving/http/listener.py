"""The socket, and uvicorn on it, with limits on incomplete requests and a clean shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.answer_bodies import Problem
from serving.config import ServingConfig
from serving.errors import StartError
from serving.http.error_handlers import refusal
from serving.open_files import FileWatch
from wire.listening import refused_address
from wire.thinned_log import is_told

logger = logging.getLogger(__name__)
MAX_HEAD_BYTES = 64_000
PIECE_BYTES = 2_048
"""So much is parsed before the next request is looked for."""
KEEP_ALIVE_S = 75


def bind(config: ServingConfig) -> socket.socket:
    """The listening socket. Raises `StartError` if the address is not available."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StartError(refused_address("serving", "", config.host, config.port, error)) from error
    listener.setblocking(False)
    return listener


def listen(
    app: ASGIApp, listener: socket.socket, config: ServingConfig, *, on_start: Callable[[], None],
    on_exit: Callable[[], None], on_end: Callable[[], Awaitable[None]],
) -> None:  # fmt: skip
    """Serve until told to stop. ``on_start`` is called once a signal would be heeded, ``on_exit`` at that signal,
    ``on_end`` when all requests are answered."""
    server = Server(options_of(app, config))
    server.on_start, server.on_exit, server.on_end = on_start, on_exit, on_end
    server.run(sockets=[listener])


def options_of(app: ASGIApp, config: ServingConfig) -> uvicorn.Config:
    """Uvicorn's settings for the application."""

    class Connection(BoundedConnection):
        read_timeout_s = config.read_timeout_s

    return uvicorn.Config(
        app, loop="uvloop", http=Connection, ws="none", log_config=None, access_log=config.access_log, lifespan="off",
        timeout_graceful_shutdown=int(config.drain_timeout_s), timeout_keep_alive=KEEP_ALIVE_S, server_header=False,
    )  # fmt: skip


class _Flow(FlowControl):
    """Does not read on, whatever a request asks for, while there is something that has to wait to be parsed."""

    def __init__(self, transport: Any, is_behind: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._is_behind = is_behind

    def resume_reading(self) -> None:
        if not self._is_behind():
            super().resume_reading()


class BoundedConnection(HttpToolsProtocol):
    """A connection on which each request's headers must arrive within ``read_timeout_s`` and `MAX_HEAD_BYTES`, and on
    which what is behind a request that waits for its answer is not parsed yet.

    Uvicorn itself waits for ever and buffers everything: a client that sends a byte per second would hold a socket
    indefinitely, and one that sends thousands of requests without waiting would have all of them parsed at once, which
    takes seconds in which nobody is answered. It also loses the body of a request that offers to upgrade to HTTP/2, as
    the first request of Java's own client does, and closes a connection whose client has finished sending before it is
    answered.
    """

    read_timeout_s = 10.0
    _num_invalid = itertools.count(1)

    def connection_made(self, transport: Any) -> None:
        """Start the clock for the first request's headers."""
        super().connection_made(transport)
        self._num_head_bytes = 0
        self._rest, self._has_ended = bytearray(), False
        self._running: RequestResponseCycle | None = None
        self.flow = _Flow(transport, lambda: bool(self._rest or self.pipeline))
        self._due = self.loop.call_later(self.read_timeout_s, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and the answer: uvicorn tells only the newest request that its client has gone."""
        self._due.cancel()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it, up to the requests that have to wait for an answer."""
        self._rest += data
        self._unset_keepalive_if_required()
        self._parse()

    def on_response_complete(self) -> None:
        """Go on with what has come meanwhile, after what others have sent."""
        super().on_response_complete()
        if self._rest and not self.transport.is_closing():
            self.flow.pause_reading()
            if not self.pipeline:
                self._unset_keepalive_if_required()
                self.loop.call_soon(self._parse)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _parse(self) -> None:
        while self._rest and not self.pipeline and not self.transport.is_closing():
            piece = bytes(self._rest[:PIECE_BYTES])
            del self._rest[:PIECE_BYTES]
            self._parse_piece(piece)
        if self.transport.is_closing():
            self._rest.clear()
        elif self._rest:
            self.flow.pause_reading()
        elif self._has_ended and not self._ends_in_order():
            self.transport.close()
        elif not self.pipeline and not self._is_answering():
            self._read_on()

    def _is_answering(self) -> bool:
        newest: RequestResponseCycle | None = self.cycle
        return newest is not None and not newest.response_complete

    def _read_on(self) -> None:
        """Wait for more of a request, as long as its clock says, or for one, as long as a connection is kept alive:
        what came last may have begun none."""
        self.flow.resume_reading()
        if self._due.cancelled() and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _parse_piece(self, piece: bytes) -> None:
        """Parse it, and count bytes of headers that are not complete yet."""
        self._num_head_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as offer:
            self._decline(piece[offer.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(error)
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._close(b"431 Request Header Fields Too Large")

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that sends nothing more still gets the answers to what it has sent, except a stream, which ends.
        Returns whether answers are still to come."""
        self._has_ended = True
        return bool(self._rest) or self._ends_in_order()

    def _ends_in_order(self) -> bool:
        newest: RequestResponseCycle | None = self.cycle
        if newest is None or newest.more_body or newest.response_started:
            return False
        newest.keep_alive = False
        return True

    def _decline(self, rest: bytes) -> None:
        """Take a request that offers another protocol as one that does not. The parser has skipped its body."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(ValueError("this is no proxy"))
            return
        head = [b"%s %s HTTP/1.1" % (method, self.url)]
        head += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser, self._num_head_bytes = httptools.HttpRequestParser(self), 0
        self._rest[:0] = b"\r\n".join([*head, b"", b""]) + rest

    def _refuse(self, error: Exception) -> None:
        """Answer 400. Whoever connects may cause this, so few of them are logged."""
        if is_told(num := next(self._num_invalid)):
            logger.warning("a client sent something that is not HTTP (%s; number %d so far)", error, num)
        problem = Problem(field="", expected="a request in HTTP/1.1", do=f"correct it: {error}")
        self._close(b"400 Bad Request", bytes(refusal(400, problem).body))

    def on_message_begin(self) -> None:
        """Start the clock for a further request's headers on a connection that is kept alive."""
        super().on_message_begin()
        if self._due.cancelled():
            self._due = self.loop.call_later(self.read_timeout_s, self._expire)

    def on_headers_complete(self) -> None:
        """Stop the clock: the headers are complete."""
        if self.parser.should_upgrade():  # parsed again without the offer: see `_decline`
            return
        self._due.cancel()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Do not count bodies, which the gate limits."""
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Start counting the next request's headers."""
        if self.parser.should_upgrade():
            return
        self._num_head_bytes = 0
        super().on_message_complete()

    def _expire(self) -> None:
        if not self.transport.is_closing():
            self._close(b"408 Request Timeout")

    def _close(self, status: bytes, body: bytes = b"") -> None:
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)
        self.transport.close()


class Server(uvicorn.Server):
    """Uvicorn that exits with status 0 when asked to stop, instead of raising SIGTERM or SIGINT again."""

    on_start: Callable[[], None]
    on_exit: Callable[[], None]
    on_end: Callable[[], Awaitable[None]]
    _files = FileWatch()

    async def on_tick(self, counter: int) -> bool:
        """Once a second, look at how many files are open."""
        if counter % 10 == 0:
            self._files.look(len(self.server_state.connections))
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, then end what was kept open for requests."""
        await super().shutdown(sockets)
        await self.on_end()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Tell endless streams to stop, then shut down as uvicorn does."""
        self.on_exit()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """At the first signal stop accepting, and finish requests in flight; at the second do not wait for them."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        self.on_start()
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
