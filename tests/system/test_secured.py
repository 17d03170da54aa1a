"""A broker with authentication and authorisation: every process gets in, or ends with one line that says why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)

from headrace.config import read_settings
from stream.producer import ActionProducer
from tests.brokers import ApacheKafka, forget_refused_sockets, free_port, missing_for_kafka
from tests.certificates import Authority
from tests.system.loop import Loop, is_learned
from tests.system.process_factory import headrace
from wire.config import KafkaConfig
from wire.errors import ClientRefused, ConfigError, HeadraceError
from wire.kafka.admin import ensure_topics, untold
from wire.kafka.consumer import connect
from wire.topics import Topics

SASL_PORT, TLS_PORT, MUTUAL_PORT, ELSEWHERE_PORT = (free_port() for _ in range(4))
"""Listeners: a password in plain text, a password over TLS, mutual TLS, and a certificate with the wrong name."""
USERS = (
    "us",
    "stranger",
    "nobody_in_the_group",
    "reads_no_actions",
    "writes_no_lag",
    "reads_no_weights",
    "sees_no_lag",
    "sees_no_settings",
)
JAAS = (
    'org.apache.kafka.common.security.plain.PlainLoginModule required username="us" password="secret" '
    + " ".join(f'user_{user}="secret"' for user in USERS)
    + ";"
)
LISTENERS = {
    "PLAINTEXT": ("{port}", "PLAINTEXT"),
    "SASL": (SASL_PORT, "SASL_PLAINTEXT"),
    "TLS": (TLS_PORT, "SASL_SSL"),
    "MUTUAL": (MUTUAL_PORT, "SSL"),
    "ELSEWHERE": (ELSEWHERE_PORT, "SSL"),
}
pytestmark = [pytest.mark.slow, pytest.mark.kafka]


@dataclass(frozen=True)
class Secured:
    """A broker whose listeners authenticate clients, and the clients' certificates."""

    broker: ApacheKafka
    authority: Authority
    other_authority: Authority

    @property
    def passwords(self) -> str:
        """The address of the listener that requires only a password."""
        return f"127.0.0.1:{SASL_PORT}"

    def tls(self, name: str = "client", **changed: Any) -> dict[str, Any]:
        """Options of a client that trusts the broker's CA and has a certificate from it."""
        pem, key = self.authority.certify(name)
        given = {"security_protocol": "SSL", "ssl_cafile": str(self.authority.pem), "ssl_certfile": str(pem),
                 "ssl_keyfile": str(key), **changed}  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}


@pytest.fixture(autouse=True)
def _forget_refused_sockets() -> Iterator[None]:
    yield
    forget_refused_sockets()


def settings_of(authority: Authority) -> dict[str, str]:
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, (port, _) in LISTENERS.items())
    kinds = ",".join(f"{name}:{kind}" for name, (_, kind) in LISTENERS.items())
    return {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{{controller_port}}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{kinds}",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": JAAS,
        "listener.name.tls.plain.sasl.jaas.config": JAAS,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(authority.keystore("broker", "IP:127.0.0.1")),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.pem),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.elsewhere.ssl.keystore.type": "PEM",
        "listener.name.elsewhere.ssl.keystore.location": str(authority.keystore("elsewhere", "DNS:elsewhere.test")),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:us;User:ANONYMOUS;User:CN=client",
    }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if missing_for_kafka() is not None:
        pytest.skip("needs real Apache Kafka (java 17+ and mvn)")
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder / "certificates", "authority")
    broker = ApacheKafka(folder / "broker", **settings_of(authority))
    yield Secured(broker, authority, Authority(folder / "others", "other"))
    broker.stop()


def client(user: str, password: str = "secret") -> dict[str, str]:
    return {
        "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_plain_username": user,
        "sasl_plain_password": password,
    }  # fmt: skip


def test_every_process_gets_in_with_the_options_of_the_configuration(
    secured: Secured, topic_prefix: str, tmp_path: Path
) -> None:
    options = {**client("us"), "security_protocol": "SASL_SSL", "ssl_cafile": str(secured.authority.pem)}
    with Loop(f"127.0.0.1:{TLS_PORT}", topic_prefix, tmp_path, kafka={"client": options}) as loop:
        loop.start("worker", "trainer", "server")
        topic = Topics.under(topic_prefix).actions
        with ActionProducer(loop.settings.kafka, topic, num_partitions=2) as producer:
            for number in range(40):
                time_ms = 1_700_000_000_000 + number
                producer.send({"user": f"u{number % 5}", "item": number, "action": "click", "timestamp": time_ms})
        loop.wait_until(lambda: loop.server.version().get("num_interactions") == 40, 120, "all of it to be served")
        assert is_learned(loop.audit_when(is_learned, 30))


WRONG = ("us", "wrong", "check user, password and mechanism under kafka.client")
NO_RIGHTS = ("stranger", "secret", "give this client's user the right to the topic")


@pytest.mark.parametrize(
    ("command", "who"),
    [
        *(((command, WRONG)) for command in ("worker", "train", "serve", "topics", "lag", "audit", "dead-letters")),
        ("worker", NO_RIGHTS),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_process_that_is_not_let_in_ends_with_one_line(
    command: str, who: tuple[str, str, str], secured: Secured, topic_prefix: str, tmp_path: Path
) -> None:
    user, password, words = who
    ends_with_one_line(command, words, configured(secured.passwords, topic_prefix, tmp_path, client(user, password)))


def configured(bootstrap: str, prefix: str, folder: Path, options: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    config = folder / "headrace.toml"
    told = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    config.write_text(
        f"[kafka]\nbootstrap = '{bootstrap}'\nprefix = '{prefix}'\n[kafka.client]\n{told}"
        f"[store]\npath = '{folder}/store'\n[trainer]\ncheckpoint_dir = '{folder}/checkpoints'\nmetrics_port = 0\n"
        "[stream]\nmetrics_port = 0\n[serving]\nport = 0\n"
    )
    return config


def ends_with_one_line(command: str, words: str, config: Path) -> None:
    assert read_settings(config)
    done = headrace(command, "--config", str(config))
    last = (done.stderr or done.stdout).splitlines()[-1]
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr + done.stdout, done.stderr[-2000:]
    assert words in last, last


def test_a_missing_right_ends_the_process_that_needs_it(secured: Secured, topic_prefix: str, tmp_path: Path) -> None:
    """Permissions for the group, whose errors Faust does not report; for records that are not awaited; for topics that
    are only read."""
    topics, anything = Topics.under(topic_prefix), ACLResourcePatternType.LITERAL
    denied = {
        "nobody_in_the_group": ("worker", ACLOperation.READ, ResourceType.GROUP, f"{topic_prefix}-stream",
                                "give this client's user the right to the group (stream.group)"),
        "reads_no_actions": ("worker", ACLOperation.READ, ResourceType.TOPIC, topics.actions,
                             f"when reading: {topics.actions}; give this client's user the right to the topic"),
        "writes_no_lag": ("train", ACLOperation.WRITE, ResourceType.TOPIC, topics.lag,
                          f"TopicAuthorizationFailedError when writing: {topics.lag}; give this client's user"),
        "reads_no_weights": ("serve", ACLOperation.READ, ResourceType.TOPIC, topics.weights,
                             f"TopicAuthorizationFailedError when reading: {topics.weights}; give this client's user"),
    }  # fmt: skip
    ensure_topics(KafkaConfig(bootstrap=secured.broker.bootstrap, prefix=topic_prefix))
    rules = []
    for user, (_, operation, kind, name, _) in denied.items():
        for every in (ResourceType.TOPIC, ResourceType.GROUP):
            pattern = ResourcePattern(every, "*", anything)
            rules.append(ACL(f"User:{user}", "*", ACLOperation.ALL, ACLPermissionType.ALLOW, pattern))
        pattern = ResourcePattern(kind, name, anything)
        rules.append(ACL(f"User:{user}", "*", operation, ACLPermissionType.DENY, pattern))
    admin = KafkaAdminClient(bootstrap_servers=secured.broker.bootstrap)
    admin.create_acls(rules)
    admin.close()

    def refused(user: str) -> None:
        command, *_, words = denied[user]
        folder = tmp_path / user
        ends_with_one_line(command, words, configured(secured.passwords, topic_prefix, folder, client(user)))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(refused, denied))


def test_a_topic_that_is_not_shown_or_whose_settings_are_not_is_a_missing_right_too(
    secured: Secured, topic_prefix: str
) -> None:
    config = KafkaConfig(bootstrap=secured.broker.bootstrap, prefix=topic_prefix)
    ensure_topics(config)
    topic, literal = Topics.under(topic_prefix).lag, ACLResourcePatternType.LITERAL
    everything = ResourcePattern(ResourceType.TOPIC, "*", literal)
    admin = KafkaAdminClient(bootstrap_servers=secured.broker.bootstrap)
    admin.create_acls([
        ACL("User:sees_no_lag", "*", ACLOperation.ALL, ACLPermissionType.ALLOW, everything),
        ACL("User:sees_no_lag", "*", ACLOperation.DESCRIBE, ACLPermissionType.DENY,
            ResourcePattern(ResourceType.TOPIC, topic, literal)),
        ACL("User:sees_no_settings", "*", ACLOperation.ALL, ACLPermissionType.ALLOW, everything),
        ACL("User:sees_no_settings", "*", ACLOperation.DESCRIBE_CONFIGS, ACLPermissionType.DENY,
            ResourcePattern(ResourceType.TOPIC, topic, literal)),
    ])  # fmt: skip
    admin.close()
    hidden = replace(config, bootstrap=secured.passwords, client=client("sees_no_lag"))
    with pytest.raises(HeadraceError, match=f"expected to see {topic}, which the broker .* the right to describe"):
        ensure_topics(hidden, timeout_s=1.0)
    assert untold(replace(hidden, client=client("sees_no_settings"))) == [topic]
    assert untold(config) == []


NO_TLS_HERE = "check that kafka.client.security_protocol is that of its listener"
NOT_TRUSTED = "of a certificate that the broker trusts"
UNKNOWN_BROKER = "check kafka.client.ssl_cafile and the name of the broker in its certificate"


@pytest.mark.parametrize(
    ("port", "changed", "words"),
    [
        (MUTUAL_PORT, {}, ""),
        (MUTUAL_PORT, {"ssl_certfile": None, "ssl_keyfile": None}, NOT_TRUSTED),
        (MUTUAL_PORT, {"ssl_cafile": "other"}, UNKNOWN_BROKER),
        (MUTUAL_PORT, {"security_protocol": "PLAINTEXT", "ssl_cafile": None, "ssl_certfile": None,
                       "ssl_keyfile": None}, NO_TLS_HERE),
        (ELSEWHERE_PORT, {}, UNKNOWN_BROKER),
        (ELSEWHERE_PORT, {"ssl_check_hostname": False}, ""),
        (SASL_PORT, {}, NO_TLS_HERE),
    ],
    ids=["both sides known", "no certificate", "another authority", "no TLS", "another name", "a name unchecked",
         "TLS where there is none"],
)  # fmt: skip
def test_a_listener_that_speaks_otherwise_is_told_from_a_broker_that_is_away(
    port: int, changed: dict[str, Any], words: str, secured: Secured
) -> None:
    if changed.get("ssl_cafile") == "other":
        changed = {**changed, "ssl_cafile": str(secured.other_authority.pem)}
    kafka = KafkaConfig(bootstrap=f"127.0.0.1:{port}", client=secured.tls(**changed))
    if not words:
        connect(kafka).close()
        return
    with pytest.raises(HeadraceError, match=re.escape(words)):
        connect(kafka)


def test_a_certificate_of_somebody_else_is_not_trusted(secured: Secured) -> None:
    pem, key = secured.other_authority.certify("stranger")
    client = secured.tls(ssl_certfile=str(pem), ssl_keyfile=str(key))
    with pytest.raises(ClientRefused, match=NOT_TRUSTED):
        connect(KafkaConfig(bootstrap=f"127.0.0.1:{MUTUAL_PORT}", client=client))


def test_files_that_cannot_be_used_are_refused_before_anybody_connects(secured: Secured, tmp_path: Path) -> None:
    _, other_key = secured.authority.certify("another")
    junk, usable = tmp_path / "junk.pem", secured.tls()
    junk.write_text("no certificate\n")
    locked = str(secured.authority.locked(Path(usable["ssl_keyfile"]), "word"))
    for changed in (
        {"ssl_cafile": str(junk)}, {"ssl_keyfile": str(other_key)}, {"ssl_keyfile": locked},
        {"ssl_keyfile": locked, "ssl_password": "wrong"}, {"ssl_certfile": None},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"kafka\.client\.ssl_\w+: expected"):
            KafkaConfig(client=secured.tls(**changed))
    opened = KafkaConfig(
        bootstrap=f"127.0.0.1:{MUTUAL_PORT}", client=secured.tls(ssl_keyfile=locked, ssl_password="word")
    )
    connect(opened).close()
