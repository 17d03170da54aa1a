"""The socket, and uvicorn on it, with bounded connections and a clean shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from serving.config import ServingConfig
from serving.errors import StartError
from serving.http.connection import BoundedConnection
from serving.open_files import FileWatch
from wire.listening import refused_address

KEEP_ALIVE_S = 75
REFUSE_S, REFUSE_TICK_S = 1.0, 0.01
"""Once `ServingConfig.drain_timeout_s` is over: time to tell the clients of what is not answered by then,
and how often to look whether they are told."""


class NoQueries(logging.Filter):
    """Keeps the values of queries, which are users' ids, out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the query away from the path, the third of uvicorn's arguments."""
        if isinstance(record.args, tuple) and len(record.args) > 2:
            path, divided, _ = str(record.args[2]).partition("?")
            record.args = (*record.args[:2], f"{path}?…" if divided else path, *record.args[3:])
        return True


NO_QUERIES = NoQueries()


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
    logging.getLogger("uvicorn.access").addFilter(NO_QUERIES)

    class Connection(BoundedConnection):
        read_timeout_s = config.read_timeout_s

    return uvicorn.Config(
        app, loop="uvloop", http=Connection, ws="none", log_config=None, access_log=config.access_log, lifespan="off",
        timeout_graceful_shutdown=config.drain_timeout_s,  # type: ignore[arg-type]  # asyncio takes fractions too
        timeout_keep_alive=KEEP_ALIVE_S, server_header=False,
    )  # fmt: skip


class Server(uvicorn.Server):
    """Uvicorn that exits with status 0 when asked to stop, instead of raising SIGTERM or SIGINT again."""

    on_start: Callable[[], None]
    on_exit: Callable[[], None]
    on_end: Callable[[], Awaitable[None]]
    _files = FileWatch()

    async def on_tick(self, counter: int) -> bool:
        """Once a second, look at how many files are open, and for clients that do not read."""
        if counter % 10 == 0:
            connections = self.server_state.connections
            self._files.look(len(connections))
            now_s = asyncio.get_running_loop().time()
            for each in list(connections):
                each.drop_if_stalled(now_s)  # type: ignore[union-attr]
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, then let what it has cancelled be refused, and end what was kept open for requests."""
        await super().shutdown(sockets)
        for _ in range(round(REFUSE_S / REFUSE_TICK_S)):
            if self.force_exit or not (self.server_state.tasks or self.server_state.connections):
                break
            await asyncio.sleep(REFUSE_TICK_S)
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
