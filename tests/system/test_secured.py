"""A broker with authentication and authorisation: every process gets in, or ends with one line that says why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.config import read_settings
from stream.producer import ActionProducer
from tests.brokers import REPOSITORY, ApacheKafka, free_port, missing_for_kafka
from tests.system.loop import Loop, is_learned
from wire.topics import Topics

SASL_PORT = free_port()
JAAS = (
    'org.apache.kafka.common.security.plain.PlainLoginModule required username="us" password="secret" '
    'user_us="secret" user_stranger="secret";'
)
SETTINGS = {
    "listeners": f"PLAINTEXT://127.0.0.1:{{port}},SASL_PLAINTEXT://127.0.0.1:{SASL_PORT},"
    "CONTROLLER://127.0.0.1:{controller_port}",
    "advertised.listeners": f"PLAINTEXT://127.0.0.1:{{port}},SASL_PLAINTEXT://127.0.0.1:{SASL_PORT}",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN",
    "listener.name.sasl_plaintext.plain.sasl.jaas.config": JAAS,
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:us;User:ANONYMOUS",
}
pytestmark = [pytest.mark.slow, pytest.mark.kafka]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the broker's listener for users."""
    if missing_for_kafka() is not None:
        pytest.skip("needs real Apache Kafka (java 17+ and mvn)")
    broker = ApacheKafka(tmp_path_factory.mktemp("secured"), **SETTINGS)
    yield f"127.0.0.1:{SASL_PORT}"
    broker.stop()


def client(user: str, password: str = "secret") -> dict[str, str]:
    return {
        "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_plain_username": user,
        "sasl_plain_password": password,
    }  # fmt: skip


def test_every_process_gets_in_with_the_options_of_the_configuration(
    secured: str, topic_prefix: str, tmp_path: Path
) -> None:
    with Loop(secured, topic_prefix, tmp_path, kafka={"client": client("us")}) as loop:
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
    command: str, who: tuple[str, str, str], secured: str, topic_prefix: str, tmp_path: Path
) -> None:
    user, password, words = who
    config = tmp_path / "headrace.toml"
    options = "".join(f"{name} = {json.dumps(value)}\n" for name, value in client(user, password).items())
    config.write_text(
        f"[kafka]\nbootstrap = '{secured}'\nprefix = '{topic_prefix}'\n[kafka.client]\n{options}"
        f"[store]\npath = '{tmp_path}/store'\n[trainer]\ncheckpoint_dir = '{tmp_path}/checkpoints'\nmetrics_port = 0\n"
        "[stream]\nmetrics_port = 0\n[serving]\nport = 0\n"
    )
    assert read_settings(config)
    done = subprocess.run(
        [sys.executable, "-m", "headrace", command, "--config", str(config)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    last = (done.stderr or done.stdout).splitlines()[-1]
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr + done.stdout, done.stderr[-2000:]
    assert words in last, last
