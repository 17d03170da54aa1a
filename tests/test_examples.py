"""Every example runs as `examples/README.md` says, where its runtime is present, and the worker takes what it sends."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import TopicPartition

from tests.brokers import REPOSITORY, Broker
from wire.action import Action, decode_record
from wire.config import ActionConfig, KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect, read, spans
from wire.partitioner import partition_of
from wire.topics import Topics

EXAMPLES = REPOSITORY / "examples"
KEPT = REPOSITORY / ".cache" / "examples"
"""Where packages of other languages are kept between runs."""
CONFIG = ActionConfig(kinds=("impression", "click", "like"))
SENT = [("5", "42", {"click", "like"}), ("u17", "i42", {"click"}), ("zoë", "i42", {"impression"}),
        ("zoë", "i43", {"impression"})]  # fmt: skip


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def needs(*programs: str) -> None:
    """Skip without them, and say so."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} on PATH")


def fetched(folder: str, command: Callable[[Path], list[str]]) -> Path:
    """The folder with what ``command`` fetched into it, now or in an earlier run; skip where it cannot be fetched."""
    kept = KEPT / folder
    if not (kept / ".complete").exists():
        kept.mkdir(parents=True, exist_ok=True)
        done = run(command(kept))
        if done.returncode:
            pytest.skip(f"{command(kept)[0]} could not fetch what the example needs: {done.stderr.strip()[-300:]}")
        (kept / ".complete").touch()
    return kept


def kafka_python(broker: str, topic: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, str(EXAMPLES / "python/kafka_python.py"), broker, topic])


def confluent(broker: str, topic: str) -> subprocess.CompletedProcess[str]:
    path = ""
    if importlib.util.find_spec("confluent_kafka") is None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        path = str(fetched("python", lambda kept: [*pip, "--target", str(kept), "confluent-kafka>=2.6"]))
    return run([sys.executable, str(EXAMPLES / "python/confluent.py"), broker, topic], PYTHONPATH=path)


def node(broker: str, topic: str) -> subprocess.CompletedProcess[str]:
    needs("node", "npm")

    def install(kept: Path) -> list[str]:
        shutil.copy(EXAMPLES / "node/package.json", kept)
        return ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(kept)]

    modules = fetched("node", install) / "node_modules"
    return run(["node", str(EXAMPLES / "node/producer.js"), broker, topic], NODE_PATH=str(modules))


def java(broker: str, topic: str) -> subprocess.CompletedProcess[str]:
    needs("java", "mvn")
    pom = EXAMPLES / "java"
    goal = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
    jars = fetched("java", lambda kept: [*goal, f"-DoutputDirectory={kept}"])
    return run(["java", "-cp", f"{jars}/*", str(pom / "ActionProducer.java"), broker, topic])


def kcat(broker: str, topic: str) -> subprocess.CompletedProcess[str]:
    needs("kcat")
    return run([str(EXAMPLES / "kcat/produce.sh"), broker, topic])


@pytest.mark.parametrize("producer", [kafka_python, confluent, node, java, kcat], ids=lambda each: each.__name__)
def test_the_worker_takes_what_the_example_sends(
    producer: Callable[[str, str], subprocess.CompletedProcess[str]], kafka: Broker, topic_prefix: str
) -> None:
    if producer is not kcat and kafka.kind == "embedded":
        pytest.skip("the embedded broker has no idempotent producers, which these clients are by default")
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix, partitions=4)
    topic = Topics.under(topic_prefix).actions
    ensure_topics(config)
    done = producer(kafka.bootstrap, topic)
    assert done.returncode == 0, done.stdout + done.stderr
    consumer = connect(config)
    taken: list[tuple[str, str, set[str]]] = []
    for record in read(consumer, topic, spans(consumer, topic)):
        where = TopicPartition(topic, record.partition)
        for action in decode_record(record.value, record.timestamp, CONFIG):
            assert isinstance(action, Action), action
            assert partition_of(record.key, 4) == record.partition, f"{record.key!r} is in {where}"
            assert record.key.decode() == action.user
            kinds = {kind for kind, bit in CONFIG.bit_of.items() if action.bits & bit}
            taken.append((action.user, str(action.item), kinds))
    consumer.close()
    assert sorted(taken, key=lambda each: each[:2]) == SENT


@pytest.mark.parametrize("client", ["client.sh", "client.py"])
def test_a_server_answers_the_example(client: str) -> None:
    from tests.serving.live import live_server

    if client == "client.sh":
        needs("sh", "curl")
    command = [sys.executable] if client == "client.py" else []
    with live_server() as (_, port):
        done = run([*command, str(EXAMPLES / "http" / client), f"http://127.0.0.1:{port}", "u0"])
    assert done.returncode == 0, done.stdout + done.stderr
    if client == "client.sh":
        recommended, ranked = done.stdout.splitlines()
        assert '"score"' in recommended
        assert '"probabilities"' in ranked
    else:
        assert done.stdout.startswith("weights ")
        assert "\n5. " in done.stdout


def test_the_page_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    for file in EXAMPLES.rglob("*"):
        if (
            file.suffix in (".py", ".js", ".java", ".sh")
            and "node_modules" not in file.parts
            and "target" not in file.parts
        ):
            assert f"({file.relative_to(EXAMPLES)})" in page
