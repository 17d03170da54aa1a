"""Options of the Kafka clients (kafka-python, aiokafka, and Faust's, which is aiokafka's) from one `KafkaConfig`.

``kafka.client`` holds options that `wire.client_options` lists, by kafka-python's names; each of them reaches every
client. aiokafka takes TLS as a context, which is created here.

No client creates topics implicitly: they would get the broker's settings instead of those of `wire.topics`. Every
consumer reads only committed records.
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
"""What the clients raise while a broker is away. Callers try again, unless `wire.kafka.refusal` says it is useless."""
ISOLATION = "read_committed"


class _Client(KafkaNetClient):
    """kafka-python's connections, which do not pass these two options on to metadata requests."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        cluster = self._manager.cluster.config
        cluster["allow_auto_create_topics"] = False
        cluster["retry_backoff_ms"] = options.get("retry_backoff_ms", cluster["retry_backoff_ms"])


def sync_options(config: KafkaConfig) -> dict[str, Any]:
    """For kafka-python's clients."""
    return {"bootstrap_servers": config.bootstrap, "kafka_client": _Client, **config.client}


def async_options(config: KafkaConfig) -> dict[str, Any]:
    """For aiokafka's clients, including Faust's consumer."""
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


# aiokafka has no option for it, unlike kafka-python's allow_auto_create_topics: any topic that it asks a broker about
# would be created. It asks only in this module.
aiokafka.client.MetadataRequest = partial(aiokafka.client.MetadataRequest, allow_auto_topic_creation=False)
