"""The options allowed under ``kafka.client``: those that every Kafka client supports, by kafka-python's names.

An option that only some clients have is refused, since it would apply to half of the processes. If the clients were
left to check options, mistakes would be costly: kafka-python treats an unknown ``security_protocol`` as plain text, and
a process that waits for its broker cannot tell a wrong option from a broker that is down.
"""

from __future__ import annotations

import difflib
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wire.checks import Limit, Number, Switch, Word, expect

_MILLISECONDS = Number(1, 2**31 - 1, whole=True, advice="give a whole number of milliseconds")
_TEXT = Word(advice="write it as text, in quotes")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI")
FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")
OPTIONS: dict[str, Limit] = {
    "client_id": _TEXT,
    "request_timeout_ms": _MILLISECONDS,
    "retry_backoff_ms": _MILLISECONDS,
    "metadata_max_age_ms": _MILLISECONDS,
    "connections_max_idle_ms": _MILLISECONDS,
    "security_protocol": Word(("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"), "correct it"),
    "sasl_mechanism": Word(MECHANISMS, "correct it"),
    "sasl_plain_username": _TEXT,
    "sasl_plain_password": _TEXT,
    "sasl_kerberos_service_name": _TEXT,
    "sasl_kerberos_domain_name": _TEXT,
    "ssl_check_hostname": Switch(),
    **dict.fromkeys(FILES, Word(advice="give the path of a file")),
    "ssl_password": _TEXT,
}

SECTION = "kafka.client"


def check_client(client: Mapping[str, Any]) -> None:
    """Raise `wire.errors.ConfigError` for an option that some client lacks, an impossible value, or options that would
    have no effect."""
    for name, value in client.items():
        expected = f"an option that every Kafka client has{_meant(name)}"
        expect(name in OPTIONS, f"{SECTION}.{name}", expected, value, f"remove it; there are: {', '.join(OPTIONS)}")
        OPTIONS[name].check(f"{SECTION}.{name}", value)
        expect(name not in FILES or Path(value).is_file(), f"{SECTION}.{name}", "a file", value, "correct the path")
    protocol = client.get("security_protocol", "PLAINTEXT")
    if "SASL" in protocol:
        _check_sasl(client)
    _check_files(client)
    for start, word in (("sasl_", "SASL"), ("ssl_", "SSL")):
        unread = [name for name in client if name.startswith(start) and word not in protocol]
        key, advice = f"{SECTION}.security_protocol", f"nothing would use {', '.join(unread)}: add it, or remove them"
        expect(not unread, key, f"SASL_SSL or {'SSL' if word == 'SSL' else 'SASL_PLAINTEXT'}", protocol, advice)


def _meant(name: str) -> str:
    """A suggestion for a misspelt option, or one of another client's; empty if there is none. One letter makes ``ssl``
    of ``sasl``, and nobody means the other."""
    spelt = name.lower().replace(".", "_").replace("-", "_")
    kin = [option for option in OPTIONS if option.partition("_")[0] == spelt.partition("_")[0]]
    others = [option for option in OPTIONS if option != "ssl_password"]  # of a key's file, which few have
    close = difflib.get_close_matches(spelt, kin or others, n=1, cutoff=0.55)
    return f" (did you mean {close[0]}?)" if close else ""


def tls_context(client: Mapping[str, Any]) -> ssl.SSLContext | None:
    """The TLS context of these options; None without TLS. Raises OSError, which includes ``ssl.SSLError``."""
    if "SSL" not in client.get("security_protocol", "PLAINTEXT"):
        return None
    context = ssl.create_default_context(cafile=client.get("ssl_cafile"))
    context.check_hostname = client.get("ssl_check_hostname", True)
    if "ssl_certfile" in client:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(client["ssl_certfile"], client.get("ssl_keyfile"), client.get("ssl_password", ""))
    if "ssl_crlfile" in client:
        context.load_verify_locations(client["ssl_crlfile"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def _check_files(client: Mapping[str, Any]) -> None:
    """Check the files together: the key must match its certificate and open with its password; all must be PEM."""
    if "ssl_certfile" not in client:
        expect("ssl_keyfile" not in client, f"{SECTION}.ssl_certfile", "the certificate of ssl_keyfile", None, "add it")
        expect("ssl_password" not in client, f"{SECTION}.ssl_certfile", "the certificate whose key ssl_password opens",
               None, "add it and ssl_keyfile; the password of a user is sasl_plain_password")  # fmt: skip
    try:
        tls_context(client)
    except OSError as error:
        names = [name for name in FILES if name in client]
        advice = "check that they are PEM, that the key is the certificate's, and ssl_password"
        expect(False, f"{SECTION}.{names[0] if names else 'ssl_cafile'}", f"{', '.join(names)} that OpenSSL accepts",
               f"{type(error).__name__}: {error}", advice)  # fmt: skip


def _check_sasl(client: Mapping[str, Any]) -> None:
    mechanism = client.get("sasl_mechanism")
    expect(mechanism is not None, f"{SECTION}.sasl_mechanism", f"one of {MECHANISMS}", mechanism, "add it")
    if mechanism != "GSSAPI":
        for name in ("sasl_plain_username", "sasl_plain_password"):
            expect(name in client, f"{SECTION}.{name}", f"text, for {mechanism}", None, "add it")
