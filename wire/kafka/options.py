"""Options of the Kafka clients (kafka-python, aiokafka, and Faust's, which is aiokafka's) from one `KafkaConfig`.

``kafka.client`` holds options that `wire.client_options` lists, by kafka-python's names; each of them reaches every
client. aiokafka takes TLS as a context (`wire.client_options.tls_context`).

No client creates topics implicitly: they would get the broker's settings instead of those of `wire.topics`. Every
consumer reads only committed records.
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import aiokafka.client
from aiokafka.errors import KafkaError as AsyncKafkaError
from kafka.errors import KafkaConnectionError, SaslAuthenticationFailedError, UnsupportedSaslMechanismError
from kafka.errors import KafkaError as SyncKafkaError
from kafka.net.compat import KafkaNetClient

from wire.client_options import tls_context
from wire.config import KafkaConfig
from wire.kafka.decompression import bound_decompression
from wire.kafka.header_names import read_any_header
from wire.kafka.refusal import TlsRefused

BROKER_ERRORS: tuple[type[BaseException], ...] = (SyncKafkaError, AsyncKafkaError, ConnectionError, TimeoutError)
"""What the clients raise while a broker is away. Callers try again, unless `wire.kafka.refusal` says it is useless."""
_REFUSALS = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, TlsRefused)
MAX_CUT = 3
"""This many connections that end during authentication mean a refusal, not a broker that is going away."""
ISOLATION = "read_committed"
Made = TypeVar("Made")


class _Client(KafkaNetClient):
    """kafka-python's connections, which do not apply two options to metadata requests, and do not report why a broker
    refuses them: the caller would only see a timeout."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._num_cut = Counter[Any]()
        self.num_connections = 0
        """How many were begun."""
        self._refusals: dict[Any, BaseException] = {}
        self._connect = self._manager.get_connection
        self._manager.get_connection = self._get_connection
        cluster = self._manager.cluster.config
        cluster["allow_auto_create_topics"] = False
        cluster["retry_backoff_ms"] = options.get("retry_backoff_ms", cluster["retry_backoff_ms"])

    def _get_connection(self, node_id: Any, *arguments: Any, **options: Any) -> Any:
        if node_id in self._refusals:
            raise self._refusals[node_id]
        connection = self._connect(node_id, *arguments, **options)
        if not hasattr(connection, "is_authenticating"):
            self.num_connections += 1
            connection.is_authenticating = False
            connection._sasl_authenticate = partial(_authenticate, connection, connection._sasl_authenticate)  # noqa: SLF001
            connection.init_future.add_callback(lambda _: self._num_cut.pop(node_id, None))
            connection.init_future.add_errback(partial(self._note_refusal, connection))
        return connection

    def _note_refusal(self, connection: Any, error: BaseException) -> None:
        """Make the next attempt at this broker raise an error that no retry can fix. A broker that refuses a password
        closes the connection so soon after its answer that the client often sees only the end."""
        if connection.is_authenticating and isinstance(error, KafkaConnectionError):
            self._num_cut[connection.node_id] += 1
            if self._num_cut[connection.node_id] >= MAX_CUT:
                error = SaslAuthenticationFailedError("the broker ends the connection while it authenticates")
        if isinstance(error, KafkaConnectionError) and "alert" in str(error):
            self._num_cut[connection.node_id] += 1
            if self._num_cut[connection.node_id] >= MAX_CUT:
                error = TlsRefused(f"the broker ends the TLS handshake ({error})")
        if isinstance(error.__context__, ssl.SSLCertVerificationError):
            error.__cause__ = error.__context__
        if isinstance(error, _REFUSALS) or error.__cause__:
            self._refusals[connection.node_id] = error


async def _authenticate(connection: Any, authenticate: Any, *arguments: Any, **options: Any) -> None:
    connection.is_authenticating = True
    await authenticate(*arguments, **options)
    connection.is_authenticating = False


def sync_options(config: KafkaConfig) -> dict[str, Any]:
    """For kafka-python's clients."""
    return {"bootstrap_servers": config.bootstrap, "kafka_client": _Client, **config.client}


def made(kind: Callable[..., Made], options: Mapping[str, Any]) -> Made:
    """A client of kafka-python's, with options that include `sync_options`. Where no broker answers, what it has begun
    is ended: kafka-python (3.0.12) would leave a thread and three descriptors behind each time, and whoever tries again
    would run out of them."""
    begun = list[KafkaNetClient]()

    def begin(**told: Any) -> KafkaNetClient:
        begun.append(options["kafka_client"](**told))
        return begun[-1]

    try:
        return kind(**{**options, "kafka_client": begin})
    except BaseException:
        for each in begun:
            each.close()
        raise


def async_options(config: KafkaConfig) -> dict[str, Any]:
    """For aiokafka's clients, including Faust's consumer."""
    options = {name: value for name, value in config.client.items() if not name.startswith("ssl_")}
    context = tls_context(config.client)
    return {"bootstrap_servers": config.bootstrap, **options} | ({"ssl_context": context} if context else {})


def connections_made(consumer: Any) -> int:
    """How many connections to brokers the consumer has begun: more than before if one was lost, or another leads."""
    return int(consumer._client.num_connections)  # noqa: SLF001


# aiokafka has no option for it, unlike kafka-python's allow_auto_create_topics: any topic that it asks a broker about
# would be created. It asks only in this module.
aiokafka.client.MetadataRequest = partial(aiokafka.client.MetadataRequest, allow_auto_topic_creation=False)
read_any_header()
bound_decompression()
