"""What may stand under [kafka.client]: connection options that every Kafka client of the rooms has.

Left to the clients, a wrong one costs more than a message: kafka-python takes an unknown ``security_protocol`` for
plain text, and a process that waits for its broker cannot tell a wrong option from a broker that is away.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHOICES = {
    "security_protocol": ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    "sasl_mechanism": ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"),
}
FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")


def check_client(client: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that a client does not have, or a value that it cannot take."""
    if not client:
        return
    known = _defaults()
    for name, value in client.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(
                f"kafka.client.{name}: expected an option that all of kafka-python's clients have{meant}, got none of "
                "that name; correct or remove it"
            )
        if isinstance(known[name], int) and not isinstance(value, int):
            raise ValueError(f"kafka.client.{name}: expected {_kind(known[name])}, got {value!r}; correct it")
        if name in CHOICES and value not in CHOICES[name]:
            raise ValueError(f"kafka.client.{name}: expected one of {CHOICES[name]}, got {value!r}; correct it")
        if name in FILES and not Path(str(value)).is_file():
            raise ValueError(f"kafka.client.{name}: expected a file, got {value!r}; correct the path")
    if str(client.get("security_protocol", "")).startswith("SASL") and "sasl_mechanism" not in client:
        raise ValueError(f"kafka.client.sasl_mechanism: expected one of {CHOICES['sasl_mechanism']}, got none; add it")


def _defaults() -> dict[str, Any]:
    """The options that consumers, producers and administrators share, with their defaults."""
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

    consumer: dict[str, Any] = KafkaConsumer.DEFAULT_CONFIG
    shared = set(consumer) & set(KafkaProducer.DEFAULT_CONFIG) & set(KafkaAdminClient.DEFAULT_CONFIG)
    return {name: consumer[name] for name in shared - {"bootstrap_servers", "kafka_client", "selector"}}


def _kind(default: int) -> str:
    return "true or false" if isinstance(default, bool) else "a whole number"
