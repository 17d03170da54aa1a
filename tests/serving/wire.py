"""Topics for the server's tests: records sent in order, and threads or processes that follow them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from kafka import KafkaAdminClient, KafkaProducer

from serving.versions.guard import Guard
from serving.versions.intake import VersionIntake
from serving.versions.manager import WeightsManager
from serving.versions.rollout import Rollout
from serving.versions.subscriber import WeightsSubscriber
from tests.brokers import Broker, free_port, wait_until
from tests.process_factory import ProcessFactory
from tests.serving.world import Record, World
from wire.config import KafkaConfig
from wire.example import Example
from wire.example_codec import encode_example
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect
from wire.status import ServerStatus, encode_status, key_of
from wire.topics import Topics, example_key


class Wire:
    """One test's topics."""

    def __init__(self, broker: Broker, prefix: str, line: str = "", partitions: int = 2) -> None:
        self.kafka = KafkaConfig(bootstrap=broker.bootstrap, prefix=prefix, line=line, partitions=partitions)
        self.topics = Topics.under(prefix, line)
        ensure_topics(self.kafka)
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=0, acks="all")
        self.next_offset = 0

    def send(self, records: Iterable[Record]) -> None:
        """Send to the weights topic, in order; returns when the broker has them."""
        sent = [self._producer.send(self.topics.weights, key=key, value=value, headers=headers, partition=0)
                for key, headers, value in records]  # fmt: skip
        for each in sent:
            self.next_offset = each.get(60).offset + 1

    def publish(self, world: World, kind: str = "base") -> tuple[int, int]:
        """Publish the world's next version; returns its (epoch, number)."""
        self.send(world.records(kind, self.next_offset))
        return world.epoch, world.number

    def remove_weights(self) -> None:
        """Delete the weights topic."""
        admin = KafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
        admin.delete_topics([self.topics.weights])
        wait_until(lambda: self.topics.weights not in admin.list_topics(), 60, "the topic to be gone")
        admin.close()

    def replace_weights(self) -> None:
        """Delete the weights topic and create it again."""
        self.remove_weights()
        ensure_topics(self.kafka)
        self.next_offset = 0

    def tell(self, examples: Iterable[Example], headers: Iterable[tuple[str, bytes]] = ()) -> None:
        """Send to the sequences topic."""
        for each in examples:
            key = example_key(each.address, num_slots=14)
            self._producer.send(
                self.topics.sequences, encode_example(each), key, list(headers), partition=each.partition
            )
        self._producer.flush(20)

    def report(self, *reports: ServerStatus) -> None:
        """Send to the status topic, as servers do."""
        for each in reports:
            self._producer.send(self.topics.status, encode_status(each), key_of(each), partition=0)
        self._producer.flush(20)

    def close(self) -> None:
        self._producer.close(timeout=2)

    @contextmanager
    def subscriber(self, rollout: Rollout | None = None, guard: Guard | None = None) -> Iterator[WeightsSubscriber]:
        """A subscriber in this process that follows the weights topic."""
        thread = WeightsSubscriber(
            lambda _: connect(self.kafka, 20, metadata_max_age_ms=1000), self.topics.weights,
            VersionIntake(WeightsManager(), rollout or Rollout(), guard or Guard(None)),
            topic_of=lambda line: Topics.under(self.kafka.prefix, line).weights,
        )  # fmt: skip
        thread.start()
        try:
            yield thread
        finally:
            thread.stop()
            thread.join(60)
            assert thread.failure is None
            assert not thread.is_alive()


def served(subscriber: WeightsSubscriber, which: tuple[int, int], timeout_s: float = 60) -> None:
    """Wait until this version is in service."""

    def holds() -> bool:
        current = subscriber.manager.current
        return current is not None and current.which == which

    wait_until(holds, timeout_s, f"version {which} to be served ({subscriber.intake.counters})")


def server_environment() -> dict[str, str]:
    """The environment of a server process."""
    return {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")} | {
        "OMP_NUM_THREADS": "1"
    }


def server_config(kafka: KafkaConfig, folder: Path, **serving: Any) -> Path:
    """Write a server's configuration file."""
    lines = [f"{key} = {value if not isinstance(value, str) else repr(value)}" for key, value in serving.items()]
    config = folder / f"server-{serving['port']}.toml"
    config.write_text("\n".join(["[kafka]", f"bootstrap = {kafka.bootstrap!r}", f"prefix = {kafka.prefix!r}",
                                 f"partitions = {kafka.partitions}", f"line = {kafka.line!r}",
                                 "[serving]", *lines]))  # fmt: skip
    return config


class ServerProcess:
    """``python -m serving`` as a process started by the factory."""

    def __init__(
        self, factory: ProcessFactory, kafka: KafkaConfig, folder: Path, broken: tuple[str, ...] = (), **serving: Any
    ) -> None:
        values = {"port": free_port(), "status_every_s": 0.2, **serving}
        self.port = values["port"]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = factory.start(["--config", str(server_config(kafka, folder, **values))], broken)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def ready(self) -> bool:
        """Whether it reports that it is ready. AssertionError if it has ended."""
        assert self.process.status is None, self.process.log()
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def wait_ready(self) -> None:
        """Wait until it is ready. AssertionError with what it waits for, its log, and where its threads are."""
        try:
            wait_until(self.ready, 60, "the server to be ready")
        except AssertionError as error:
            self.process.send(signal.SIGUSR1)
            time.sleep(1.0)
            raise AssertionError(f"{error}\n{self._told()}\n{self.process.log()[-20_000:]}") from None

    def _told(self) -> str:
        try:
            return self.client.get("/readyz").text
        except httpx.HTTPError as error:
            return repr(error)

    def wait_version(self, which: tuple[int, int]) -> None:
        """Wait until this version answers."""
        name = {"epoch": which[0], "number": which[1]}
        wait_until(
            lambda: self.client.get("/version").json().get("version") == name, 60, f"version {which} to be served"
        )

    def close(self) -> None:
        """Kill it, if it is still running."""
        self.client.close()
        self.process.kill()
