"""Kafka's own client under a test's control (`JavaProducer.java`): transactions, codecs, batches, clocks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.brokers import kafka_jars
from wire.config import KafkaConfig
from wire.partitioner import partition_of
from wire.topics import Topics

SOURCE = Path(__file__).parent / "JavaProducer.java"


class JavaProducer:
    """A producer of one deployment's actions."""

    def __init__(self, kafka: KafkaConfig, process: subprocess.Popen[str]) -> None:
        self._kafka, self._process = kafka, process
        self._wait()

    def _wait(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "done\n", f"expected it to have carried out the command, got {line!r}; see producer.log"

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def do(self, command: str) -> None:
        """``begin``, ``flush``, ``commit``, ``abort`` or ``clock MILLISECONDS``; returns once that is done."""
        self._tell(command)
        self._wait()

    def send(self, *values: Mapping[str, Any] | list[dict[str, Any]]) -> None:
        """Send records, each an action or a list of one user's, without waiting."""
        for value in values:
            user = str((value[0] if isinstance(value, list) else value)["user"])
            self.put(partition_of(user.encode(), self._kafka.partitions), user, msgspec.json.encode(value).decode())

    def put(self, partition: int, key: str | None, value: str | None) -> None:
        """Send a record as it is, without waiting."""
        self._tell(f"send {partition} {'-' if key is None else key} {'-' if value is None else value}")

    def transaction(self, actions: Iterable[Mapping[str, Any]], end: str = "commit") -> None:
        """Send actions in one transaction; it ends by ``commit`` or ``abort``."""
        self.do("begin")
        self.send(*actions)
        self.do(end)


@contextmanager
def java_producer(kafka: KafkaConfig, folder: Path, **settings: object) -> Iterator[JavaProducer]:
    """A running one; ``settings`` by Kafka's names with ``_`` for dots. Its log is in ``folder``."""
    given = [f"{name.replace('_', '.')}={value}" for name, value in settings.items()]
    java = ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{kafka_jars()}/*"]
    command = [*java, str(SOURCE), kafka.bootstrap, Topics.under(kafka.prefix).actions, *given]
    with (
        (folder / "producer.log").open("ab") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
        ) as process,
    ):
        try:
            yield JavaProducer(kafka, process)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(60) == 0
        finally:
            process.kill()
