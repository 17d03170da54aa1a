"""The addresses of ``kafka.bootstrap``: whether anything is there, and what to do if there is not."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from wire.client_options import tls_context
from wire.config import KafkaConfig
from wire.errors import BrokerUnavailable

logger = logging.getLogger(__name__)
ANNOUNCE_S = 1.0
"""How soon a person is told what a command waits for."""
HANDSHAKE_S = 2.0
"""How long a broker may take to answer a TLS handshake."""


def refuse_silence(kafka: KafkaConfig) -> None:
    """Raise `BrokerUnavailable` where connections are accepted and no TLS handshake is answered, by a broker that is
    paused or a port that is forwarded to nothing: kafka-python would wait for ever."""
    context, is_silent = tls_context(kafka.client), False
    if context is None:
        return
    for host, port in _servers(kafka):
        try:
            plain = socket.create_connection((host, int(port)), timeout=HANDSHAKE_S)
        except (OSError, ValueError):
            continue
        try:
            with plain, context.wrap_socket(plain, server_hostname=host):
                return
        except TimeoutError:
            is_silent = True
        except OSError:  # an answer, if not the wanted one
            return
    if is_silent:
        raise BrokerUnavailable(
            f"no Kafka broker answers at {kafka.bootstrap}: it accepts connections, and answers no TLS handshake "
            f"within {HANDSHAKE_S:g} s; see its log, and what forwards this port"
        )


@contextmanager
def announced(kafka: KafkaConfig, timeout_s: float) -> Iterator[None]:
    """Say once, after `ANNOUNCE_S`, that a broker is waited for, unless the block has ended or something accepts
    connections there. Commands, which configure no log, have the line on stderr as it is."""
    waiting = threading.Timer(ANNOUNCE_S, _announce, (kafka, timeout_s))
    waiting.daemon = True
    waiting.start()
    try:
        yield
    finally:
        waiting.cancel()


def _announce(kafka: KafkaConfig, timeout_s: float) -> None:
    if not accepts_connections(kafka):
        logger.warning("nothing accepts connections at %s: waiting up to %g s for a Kafka broker", kafka.bootstrap,
                       timeout_s)  # fmt: skip


def remedy_for(kafka: KafkaConfig) -> str:
    """What to do about a broker that does not answer."""
    if accepts_connections(kafka):
        return (
            "it accepts connections: check that kafka.client.security_protocol is that of its listener, and that it is "
            "a Kafka broker, and see its log"
        )
    begin = f"this machine knows no host {unknown}: correct" if (unknown := unknown_host(kafka)) else "start"
    return f"{begin} it, or name another: kafka.bootstrap, or --bootstrap HOST:PORT"


def accepts_connections(kafka: KafkaConfig) -> bool:
    """Whether anything listens at any address: a broker that expects another protocol accepts, and stays silent."""
    for host, port in _servers(kafka):
        with suppress(OSError, ValueError):
            socket.create_connection((host, int(port)), timeout=2.0).close()
            return True
    return False


def unknown_host(kafka: KafkaConfig) -> str:
    """The first name in the addresses that does not resolve; empty if all do."""
    for host, _ in _servers(kafka):
        try:
            socket.getaddrinfo(host, None)
        except (OSError, UnicodeError):
            return host
    return ""


def _servers(kafka: KafkaConfig) -> Iterator[tuple[str, str]]:
    """The host, without brackets, and the port of each address."""
    for server in kafka.bootstrap.split(","):
        host, _, port = server.strip().rpartition(":")
        yield host.strip("[]"), port
