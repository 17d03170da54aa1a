"""A server on a real socket in this process, with a world's version and histories and no broker."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp

import serving.http.listener
from serving.config import ServingConfig
from serving.http.app import build_app
from serving.http.listener import options_of
from serving.service import Service
from serving.users.histories import Histories
from serving.versions.manager import WeightsManager
from tests.brokers import wait_until
from tests.serving.world import World, manager_of, versions
from wire.example_codec import encode_example

WORLD = World(num_users=4)
MANAGER = manager_of(next(versions(WORLD, 1)))


def service_of(manager: WeightsManager, config: ServingConfig, features: tuple[str, ...] = ()) -> Service:
    """A service that has read the world's histories."""
    histories = Histories(10**8)
    for each in WORLD.examples():
        histories.feed(0, encode_example(each))
    service = Service(config, manager, histories, features=features)
    service.histories_ready.set()
    return service


class Server(serving.http.listener.Server):
    """The server in a thread other than the main one, which must not handle signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_end(self) -> None:
        """Nothing was kept open for requests."""


@contextlib.contextmanager
def listening(app: ASGIApp, config: ServingConfig) -> Iterator[tuple[Server, int]]:
    """A server of this application, and its port, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    server = Server(options_of(app, config))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started, 60, "the server to listen")
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive()


@contextlib.contextmanager
def live_server(service: Service | None = None, **config: Any) -> Iterator[tuple[Service, int]]:
    """A service and its port; everything is stopped when the block ends."""
    service = service or service_of(MANAGER, ServingConfig(**config))
    try:
        with listening(build_app(service), service.config) as (_, port):
            yield service, port
    finally:
        service.close()
