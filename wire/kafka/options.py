"""Arguments for the three Kafka clients (kafka-python, aiokafka, Faust) from one `KafkaConfig`.

``kafka.client`` passes through verbatim, in kafka-python's words (``security_protocol``, ``sasl_mechanism``,
``ssl_cafile``, …). aiokafka has the same words but takes TLS as a context, and Faust takes credentials as an object.
"""

from __future__ import annotations

import inspect
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError as AsyncKafkaError
from aiokafka.helpers import create_ssl_context
from kafka.errors import KafkaError as SyncKafkaError

from wire.config import KafkaConfig

BROKER_ERRORS: tuple[type[BaseException], ...] = (SyncKafkaError, AsyncKafkaError, ConnectionError, TimeoutError)
"""What the clients raise while a broker is away; whoever meets one of them tries again."""


def sync_options(config: KafkaConfig) -> dict[str, Any]:
    """For kafka-python's clients."""
    return {"bootstrap_servers": config.bootstrap, **config.client}


def async_options(config: KafkaConfig, client: type[AIOKafkaConsumer | AIOKafkaProducer]) -> dict[str, Any]:
    """For an aiokafka client: the options that it has, TLS files as a context."""
    known = inspect.signature(client).parameters
    options = {"bootstrap_servers": config.bootstrap} | {k: v for k, v in config.client.items() if k in known}
    context = _tls_context(config)
    return options | ({"ssl_context": context} if context else {})


def faust_options(config: KafkaConfig) -> dict[str, Any]:
    """For ``faust.App``: its broker URLs and its credentials."""
    from faust.auth import SASLCredentials, SSLCredentials

    servers = config.bootstrap.split(",")
    options: dict[str, Any] = {"broker": [f"kafka://{server.strip()}" for server in servers]}
    protocol = config.client.get("security_protocol", "PLAINTEXT")
    if protocol.startswith("SASL"):
        options["broker_credentials"] = SASLCredentials(
            username=config.client.get("sasl_plain_username"),
            password=config.client.get("sasl_plain_password"),
            mechanism=config.client.get("sasl_mechanism", "PLAIN"),
            ssl_context=_tls_context(config),
        )
    elif protocol == "SSL":
        options["broker_credentials"] = SSLCredentials(_tls_context(config))
    return options


def _tls_context(config: KafkaConfig) -> Any:
    if "SSL" not in config.client.get("security_protocol", "PLAINTEXT"):
        return None
    if "ssl_context" in config.client:
        return config.client["ssl_context"]
    names = {"ssl_cafile": "cafile", "ssl_certfile": "certfile", "ssl_keyfile": "keyfile", "ssl_password": "password"}
    context = create_ssl_context(**{to: config.client[name] for name, to in names.items() if name in config.client})
    context.check_hostname = config.client.get("ssl_check_hostname", True)
    return context
