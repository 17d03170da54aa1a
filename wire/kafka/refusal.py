"""Which errors of a Kafka client no retry can fix: the process ends with one line instead of trying for ever."""

from __future__ import annotations

import re
import ssl

import aiokafka.errors
import kafka.errors
from kafka.errors import KafkaConnectionError

from wire.errors import ClientRefused


class TlsRefused(KafkaConnectionError):
    """The broker ends every TLS handshake with an alert."""


_REMEDIES = {
    "UnsupportedCodecError": "install the packages cramjam, lz4, python-snappy and zstandard",
    "AuthenticationFailedError": "check user, password and mechanism under kafka.client",
    "SaslAuthenticationFailedError": "check user, password and mechanism under kafka.client",
    "SaslAuthenticationFailed": "check user, password and mechanism under kafka.client",
    "UnsupportedSaslMechanismError": "set kafka.client.sasl_mechanism to one that the broker has",
    "IllegalSaslStateError": "set kafka.client.security_protocol as the broker's listener has it",
    "TopicAuthorizationFailedError": "give this client's user the right to the topic (docs/operations.md, Permissions)",
    "GroupAuthorizationFailedError": "give this client's user the right to the group (stream.group)",
    "ClusterAuthorizationFailedError": "give this client's user the right at the broker",
    "TransactionalIdAuthorizationFailedError": "give this client's user the right at the broker",
    "UnsupportedVersionError": "use a broker of Kafka 2.1 or newer",
    "IncompatibleBrokerVersion": "use a broker of Kafka 2.1 or newer",
    "KafkaConfigurationError": "correct it under kafka.client",
    "InvalidTimestampError": "set this machine's clock by NTP: it is further from the broker's than a topic's "
    "message.timestamp.after.max.ms allows",
    "MessageSizeTooLargeError": "raise max.message.bytes of the topic to Kafka's default, 1048588, or more",
    "RecordListTooLargeError": "raise the topic's segment.bytes",
    "PolicyViolationError": "have the broker's policy allow it",
    "InvalidTopicError": "choose a kafka.prefix that Kafka allows in a topic's name",
}
"""Names of errors in kafka-python or aiokafka (most are in both) → what a person can do."""
_NOISE = re.compile(r"^(\[Error \d+\] )?\w+(Error|Exception|Failed): ")
"""What clients put before the message: the error's number and name."""
_FATAL = {
    kind: remedy
    for name, remedy in _REMEDIES.items()
    for module in (kafka.errors, aiokafka.errors)
    if isinstance(kind := getattr(module, name, None), type)
} | {
    TlsRefused: "give kafka.client.ssl_certfile and ssl_keyfile of a certificate that the broker trusts",
    ssl.SSLCertVerificationError: "check kafka.client.ssl_cafile and the name of the broker in its certificate",
}


def refusal(error: BaseException, bootstrap: str, doing: str = "") -> ClientRefused | None:
    """The error to end with if a person must fix it, or None if trying again may help. Looks at causes too.

    ``doing``: what was refused, such as "writing"; brokers do not say.
    """
    seen: BaseException | None = error
    while seen is not None:
        for kind, remedy in _FATAL.items():
            if isinstance(seen, kind):
                name = type(seen).__name__
                said = _NOISE.sub("", " ".join(str(seen).split())).strip("{'}") or "no more is known"
                return ClientRefused(f"Kafka at {bootstrap}: {name}{doing and f' when {doing}'}: {said:.200}; {remedy}")
        seen = seen.__cause__
    return None
