"""Worker processes under a test's control, and the settings that they share with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from state.config import StoreConfig
from stream.config import StreamConfig
from tests.brokers import REPOSITORY, Broker, wait_until
from tests.process_factory import Child, Forked, ProcessFactory
from wire.config import ActionConfig, KafkaConfig, SequenceConfig
from wire.kafka.admin import ensure_topics
from wire.topics import Topics

RECONNECT = {"reconnect_backoff_max_ms": 500}
KINDS = ("impression", "click", "like", "share", "hide")


@dataclass
class Deployment:
    """One test's topics and configuration; a `stream.config.Settings`."""

    broker: Broker
    prefix: str
    folder: Path
    partitions: int = 2
    action: ActionConfig = field(default_factory=lambda: ActionConfig(kinds=KINDS, features=("genre",)))
    sequence: SequenceConfig = field(
        default_factory=lambda: SequenceConfig(join_window_s=20.0, max_context=20, segment_len=4)
    )
    environment: dict[str, str] = field(default_factory=dict)
    factory: ProcessFactory | None = None

    def __post_init__(self) -> None:
        self.kafka = KafkaConfig(bootstrap=self.broker.bootstrap, prefix=self.prefix, partitions=self.partitions)
        self.store = StoreConfig(path=self.folder / "state")
        self.stream = StreamConfig(
            session_timeout_s=2.0, heartbeat_s=0.4, rebalance_timeout_s=4.0, commit_interval_s=0.3,
            metrics_port=0, max_batch=50,
        )  # fmt: skip
        self.topics = Topics.under(self.prefix)
        self.folder.mkdir(parents=True, exist_ok=True)

    def create_topics(self) -> None:
        """Create the topics, as workers would."""
        ensure_topics(self.kafka)

    def toml(self, store_path: Path) -> str:
        """The configuration file of a worker whose databases are at ``store_path``."""
        sections: dict[str, Any] = {
            "action": self.action, "sequence": self.sequence, "kafka": self.kafka, "stream": self.stream,
            "store": replace(self.store, path=store_path),
        }  # fmt: skip
        lines: list[str] = []
        for name, section in sections.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {_toml(getattr(section, key))}" for key in section.__dataclass_fields__]
        return "\n".join(lines)

    def produce(self, records: list[tuple[int, bytes | None, bytes | None]], compression: str | None = None) -> None:
        """Write (partition, key, value) records to the actions topic as they are."""
        options = {
            **RECONNECT, "bootstrap_servers": self.broker.bootstrap, "max_request_size": 16 << 20,
            "compression_type": compression,
        }  # fmt: skip
        with KafkaProducer(**options) as producer:
            sent = [producer.send(self.topics.actions, value, key, partition=number) for number, key, value in records]
            producer.flush(30)
            for future in sent:
                future.get(0)

    @cached_property
    def consumer(self) -> KafkaConsumer:
        """One client for all reading; closed with the test."""
        options = {
            "enable_auto_commit": False, "fetch_max_wait_ms": 50, "isolation_level": "read_committed", **RECONNECT,
        }  # fmt: skip
        return KafkaConsumer(bootstrap_servers=self.broker.bootstrap, **options)

    def ends(self, topic: str) -> dict[int, int]:
        """Partition → how many records were ever written to it."""
        numbers = range(1 if topic in (self.topics.dead_letters, self.topics.status) else self.partitions)
        keys = [TopicPartition(topic, number) for number in numbers]
        if self.broker.kind == "apache":
            return {key.partition: end for key, end in self.consumer.end_offsets(keys).items()}
        # For the end, the embedded broker returns the start of the last batch.
        self.consumer.assign(keys)
        self.consumer.seek_to_beginning(*keys)
        while self.consumer.poll(300):
            pass
        return {key.partition: self.consumer.position(key) for key in keys}

    def read(self, topic: str) -> dict[int, list[Any]]:
        """Every record that a topic holds now, by partition."""
        ends = {TopicPartition(topic, number): end for number, end in self.ends(topic).items()}
        self.consumer.assign(list(ends))
        self.consumer.seek_to_beginning(*ends)
        found: dict[int, list[Any]] = {key.partition: [] for key in ends}
        while any(self.consumer.position(key) < end for key, end in ends.items()):
            for key, records in self.consumer.poll(200).items():
                found[key.partition] += [record for record in records if record.offset < ends[key]]
        return found

    def close(self) -> None:
        """Disconnect."""
        if "consumer" in self.__dict__:
            self.consumer.close()

    def worker(self, name: str = "w") -> WorkerProcess:
        """A worker with its own disk, not started."""
        assert self.factory is not None
        return WorkerProcess(self, name, self.factory)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value)


class WorkerProcess:
    """``python -m stream worker`` (or a broken build of it) with its own disk.

    It is forked from a process that has loaded everything, unless it has a ``prefix``: a command to run it under.
    """

    def __init__(self, deployment: Deployment, name: str, factory: ProcessFactory, folder: str = "") -> None:
        self.folder = deployment.folder / (folder or name)
        self.store_path = self.folder / "state"
        self.log_path = self.folder / "worker.log"
        self.module = "stream"
        self.prefix: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        self._factory = factory
        self._arguments = ["worker", "--config", str(self.folder / "headrace.toml")]
        (self.folder / "headrace.toml").write_text(deployment.toml(self.store_path))
        self._environment = {**deployment.environment, "HEADRACE_STREAM__COMPONENT": name}
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self.num_kills = 0

    def start(self, *options: str) -> WorkerProcess:
        """Start (again)."""
        self._process = self._spawned() if self.prefix else Forked(self._forked(*options))
        return self

    def _spawned(self) -> subprocess.Popen[bytes]:
        command = [*self.prefix, sys.executable, "-m", self.module, *self._arguments]
        environment = {**os.environ, **self._environment}
        with self.log_path.open("ab") as log:
            return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)

    def _forked(self, *options: str) -> Child:
        is_broken = self.module == "tests.stream.broken"
        broken = self._environment["BROKEN"].split(",") if is_broken else []
        return self._factory.start(
            [*self._arguments, *options], broken, environment=self._environment, log=self.log_path
        )

    @property
    def process(self) -> subprocess.Popen[bytes] | Forked:
        """The running process."""
        assert self._process is not None, "not started"
        return self._process

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(60)
        self.num_kills += 1

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.terminate()
        return self.process.wait(60)

    def pause(self) -> None:
        """SIGSTOP: the group gives the worker up, and it does not know."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Lose the disk."""
        shutil.rmtree(self.store_path, ignore_errors=True)

    def log(self) -> str:
        """Its log."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def wait_for(self, text: str, timeout_s: float = 60.0, times: int = 1) -> None:
        """Wait until its log says ``text``."""

        def said() -> bool:
            if self.log().count(text) >= times:
                return True
            assert self.process.poll() is None, (
                f"the worker ended with {self.process.returncode}:\n{self.log()[-3000:]}"
            )
            return False

        try:
            wait_until(said, timeout_s, f"{text!r} in the worker's log")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-3000:]}") from None

    def end(self) -> None:
        """Kill it if it is still running."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(60)
