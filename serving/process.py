"""A server as a process: bind, connect, listen; and end in good order when told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import signal
import socket
from collections.abc import Iterator
from typing import Any

import torch
import uvicorn

from model.device import choose_device
from serving.announcer import Announcer
from serving.config import ServingConfig
from serving.errors import StartError
from serving.follower import HistoryFollower
from serving.histories import Histories
from serving.holder import VersionHolder
from serving.http import build_app
from serving.service import Service
from serving.subscriber import WeightsSubscriber
from wire.config import KafkaConfig
from wire.errors import BrokerUnavailable
from wire.kafka.following import connect
from wire.topics import Topics

logger = logging.getLogger(__name__)
WEIGHTS_FETCH_BYTES = 8 << 20


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


class Server(uvicorn.Server):
    """Uvicorn that ends with status 0 when it was asked to end: SIGTERM and SIGINT are not raised again after."""

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


def run_server(settings: Any) -> int:
    """Serve until told to end; 0. Raises `StartError`. ``settings``: has ``serving``, ``sequence`` and ``kafka``."""
    config, kafka = settings.serving, settings.kafka
    torch.set_num_threads(config.num_threads)
    device = choose_device(config.device, "serving.device")
    with contextlib.closing(bind(config)) as listener:
        host, port = listener.getsockname()[:2]
        name, max_context = config.name or f"server@{platform.node()}:{port}", settings.sequence.max_context
        with connected(config, kafka, device, name, max_context) as service:
            app = build_app(service)
            options = uvicorn.Config(
                app, loop="uvloop", http="httptools", log_config=None, access_log=config.access_log, lifespan="off",
                timeout_graceful_shutdown=int(config.drain_timeout_s), timeout_keep_alive=75,
            )  # fmt: skip
            print(f"headrace serving: http://{host}:{port}", flush=True)
            Server(options).run(sockets=[listener])
    return 0


@contextlib.contextmanager
def connected(
    config: ServingConfig, kafka: KafkaConfig, device: torch.device, name: str, max_context: int
) -> Iterator[Service]:
    """A service that follows its topics until the block ends. Raises `BrokerUnavailable` when no broker answers."""
    topics = Topics.under(kafka.prefix)
    holder = VersionHolder(device, backend=config.backend, swap_wait_s=config.swap_wait_s)
    weights = connect(kafka, config.connect_timeout_s, max_partition_fetch_bytes=WEIGHTS_FETCH_BYTES)
    try:
        sequences = connect(kafka, config.connect_timeout_s, max_poll_records=5000)
    except BrokerUnavailable:
        weights.close()
        raise
    service = Service(config, holder, Histories(config.history_bytes, max_context))
    subscriber = WeightsSubscriber(weights, topics.weights, holder, contact=service.contact, counters=service.counters)
    follower = HistoryFollower(sequences, topics.sequences, service.histories, service.histories_ready)
    announcer = Announcer(kafka, topics.status, name, holder, service.count_requests, config.status_every_s)
    threads = (subscriber, follower, announcer)
    for thread in threads:
        thread.start()
    try:
        yield service
    finally:
        for thread in threads:
            thread.stop()
        service.close()
        for thread in threads:
            thread.join(10)
