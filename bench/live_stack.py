"""A complete deployment on this machine: Apache Kafka, a worker, a trainer, a server and live traffic, as processes."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kafka import KafkaConsumer, TopicPartition

from headrace.config import Settings, read_settings
from headrace.environment import unset_settings
from headrace.processes import Child, ProcessGroup
from stream.simulate import KINDS
from tests.brokers import Broker, broker_in_use, free_port, start_broker
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import make_consumer, read, spans
from wire.status import WorkerStatus, status_of
from wire.topics import Topics

START_TIMEOUT_S = 90.0
OBSERVER = "observer"
"""This process: the benchmark itself."""
FOLLOWING = ("actions", "sequences", "weights", "status", "lag")


@dataclass(frozen=True, slots=True)
class Backlog:
    """The backlogs at one moment: ``actions`` that no worker has applied, examples in the ``outbox``, and examples
    still to be trained (``train``)."""

    time_s: float
    actions: int
    outbox: int
    train: int
    num_interactions: int
    """Interactions learned so far."""


class Stack:
    """A running deployment, made by `start`. It has the defaults except for what a shared machine requires (ports,
    paths) and the kinds of the simulated world."""

    def __init__(self, folder: Path, broker: Broker, group: ProcessGroup) -> None:
        self.folder, self.broker, self.group = folder, broker, group
        self.path = folder / "headrace.toml"
        self.traffic: Child | None = None
        self._last_lag: dict[str, Any] = {}

    def start(self, sections: dict[str, dict[str, Any]]) -> Self:
        """Start everything but the traffic; ``sections``: settings other than the defaults."""
        unset_settings()
        folder, broker, group, port = self.folder, self.broker, self.group, free_port()
        ours: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap": broker.bootstrap, "prefix": f"live{uuid.uuid4().hex[:6]}"},
            "action": {"kinds": list(KINDS), "features": ["genre"]},
            "store": {"path": str(folder / "store")},
            "stream": {"metrics_port": 0},
            "trainer": {"checkpoint_dir": str(folder / "checkpoints")},
            "serving": {"port": port},
        }
        self.path.write_text(toml({name: {**ours.get(name, {}), **sections.get(name, {})} for name in ours | sections}))
        self.settings: Settings = read_settings(self.path)
        self.topics = Topics.under(self.settings.kafka.prefix)
        self.url = f"http://127.0.0.1:{port}"
        ensure_topics(self.settings.kafka)
        config = ("--config", str(self.path))
        self.worker = group.start("worker", "-m", "stream", "worker", *config)
        self.trainer = group.start("trainer", "-m", "trainer", *config)
        self.server = group.start("server", "-m", "serving", *config)
        self._lag: KafkaConsumer = make_consumer(self.settings.kafka)
        return self

    def close(self) -> None:
        """Close the connection."""
        self._lag.close()

    def send(self, rate: float) -> None:
        """Replace the live traffic by this many actions per second."""
        if self.traffic is not None:
            self.group.children.remove(self.traffic)
            self.traffic.stop()
        arguments = ("--config", str(self.path), "--rate", str(rate), "--seed", str(round(rate)))
        self.traffic = self.group.start("traffic", "-m", "stream", "simulate", *arguments)

    def backlog(self, now_s: float) -> Backlog | None:
        """The backlogs according to the newest message of the lag topic; None before the first one."""
        where = TopicPartition(self.topics.lag, 0)
        if not self._lag.assignment():
            self._lag.assign([where])
        for records in self._lag.poll(0).values():
            self._last_lag = json.loads(records[-1].value)
        if not self._last_lag:
            return None
        stages = self._last_lag["stages"]
        actions, outbox, train = (int(stages[name]["lag_records"]) for name in ("ingest", "sequence", "train"))
        return Backlog(now_s, actions, outbox, train, int(self._last_lag["num_interactions"]))

    def cpu_s(self) -> dict[str, float]:
        """The processor seconds that each process has used so far, this one (`OBSERVER`) included."""
        children = [self.worker, self.trainer, self.server, *([self.traffic] if self.traffic else [])]
        pids = {child.name: child.pid for child in children}
        process = getattr(self.broker, "_process", None)
        if process is not None:
            pids["broker"] = process.pid
        pids[OBSERVER] = os.getpid()
        return {name: _cpu_s(pid) for name, pid in pids.items()}

    def topic_bytes(self) -> dict[str, int]:
        """Bytes on the broker's disk, by topic."""
        data = self.folder / "kafka" / "data"
        return {
            name: sum(
                file.stat().st_size
                for part in data.glob(f"{getattr(self.topics, name)}-*")
                for file in part.glob("*.log")
            )
            for name in FOLLOWING
        }

    def num_actions(self) -> int:
        """Actions that workers have accepted, or had accepted before."""
        consumer, found = make_consumer(self.settings.kafka), dict[int, int]()
        try:
            for record in read(consumer, self.topics.status, spans(consumer, self.topics.status)):
                if isinstance(status := status_of(record.value), WorkerStatus):
                    found |= {name: each.num_accepted + each.num_duplicate for name, each in status.partitions.items()}
            return sum(found.values())
        finally:
            consumer.close()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def toml(sections: dict[str, dict[str, Any]]) -> str:
    """A configuration file."""
    lines: list[str] = []
    for name, keys in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines)


@contextmanager
def running(folder: Path, sections: dict[str, dict[str, Any]] | None = None) -> Iterator[Stack]:
    """A stack that runs until the block ends."""
    with ExitStack() as stack:
        broker = start_broker(folder / "kafka")
        stack.callback(broker.stop)
        if broker.kind != "apache":
            raise RuntimeError(f"expected real Kafka, got {broker_in_use()}; install java 17 and mvn")
        group = stack.enter_context(ProcessGroup(folder, {}))
        made = Stack(folder, broker, group).start(sections or {})
        stack.callback(made.close)
        yield made
