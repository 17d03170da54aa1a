"""Options of the Kafka clients (kafka-python, aiokafka, and Faust's, which is aiokafka's) from one `KafkaConfig`.

``kafka.client`` holds what `wire.client_options` lists, in kafka-python's words; each of them reaches every client.
aiokafka takes TLS as a context, which is made here.

No client makes topics: they would have the broker's settings instead of those of `wire.topics`. Every consumer reads
committed records alone.
"""

from __future__ import annotations

import ssl
from functools import partial
from typing import Any

import aiokafka.client
from aiokafka.errors import KafkaError as AsyncKafkaError
from aiokafka.helpers import create_ssl_context
from kafka.errors import KafkaError as SyncKafkaError
from kafka.net.compat import KafkaNetClient

from wire.config import KafkaConfig

BROKER_ERRORS: tuple[type[BaseException], ...] = (SyncKafkaError, AsyncKafkaError, ConnectionError, TimeoutError)
"""What the clients raise while a broker is away: whoever meets one tries again, unless `wire.kafka.refusal` says no."""
ISOLATION = "read_committed"


class _Client(KafkaNetClient):
    """kafka-python's connections, which forget these two options on the way to what asks for metadata."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        cluster = self._manager.cluster.config
        cluster["allow_auto_create_topics"] = False
        cluster["retry_backoff_ms"] = options.get("retry_backoff_ms", cluster["retry_backoff_ms"])


def sync_options(config: KafkaConfig) -> dict[str, Any]:
    """For kafka-python's clients."""
    return {"bootstrap_servers": config.bootstrap, "kafka_client": _Client, **config.client}


def async_options(config: KafkaConfig) -> dict[str, Any]:
    """For aiokafka's clients, Faust's consumer among them."""
    options = {name: value for name, value in config.client.items() if not name.startswith("ssl_")}
    context = _tls_context(config)
    return {"bootstrap_servers": config.bootstrap, **options} | ({"ssl_context": context} if context else {})


def _tls_context(config: KafkaConfig) -> ssl.SSLContext | None:
    client = config.client
    if "SSL" not in client.get("security_protocol", "PLAINTEXT"):
        return None
    names = {"ssl_cafile": "cafile", "ssl_certfile": "certfile", "ssl_keyfile": "keyfile", "ssl_password": "password"}
    context: ssl.SSLContext = create_ssl_context(**{to: client[name] for name, to in names.items() if name in client})
    context.check_hostname = client.get("ssl_check_hostname", True)
    if "ssl_crlfile" in client:
        context.load_verify_locations(client["ssl_crlfile"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


# aiokafka has no option for it: whatever it asks a broker about would be made there, as kafka-python's
# allow_auto_create_topics. It asks in this module alone.
aiokafka.client.MetadataRequest = partial(aiokafka.client.MetadataRequest, allow_auto_topic_creation=False)
