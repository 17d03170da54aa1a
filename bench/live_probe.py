"""Timing a running deployment: from an action to the history that a server uses, and to an answer by weights that have
learned it.

A probe is an action of a new user, sent alone. Its history is served once the server answers with one interaction for
that user. The action is learned by the first version whose manifest covers its offset, and used in the first answer
that names that version or a newer one. While either is waited for, the server is asked every 20 ms, which limits the
precision of the times. At other times it is left alone: an answer to a request that comes alone costs it 3 ms.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from bench.live_stack import Stack
from wire.kafka.consumer import PATIENT, make_consumer
from wire.kafka.producer import make_producer
from wire.partitioner import partition_of
from wire.weights import record_kind

ASK_EVERY_S = 0.02
Which = tuple[int, int]


@dataclass(slots=True)
class Probe:
    """One action; times are monotonic seconds."""

    user: str
    sent_s: float
    partition: int = -1
    offset: int = -1
    in_history_s: float | None = None
    covered_by: Which | None = None
    learned_s: float | None = None


@dataclass(eq=False)
class Prober(threading.Thread):
    """Sends a probe every ``every_s`` and follows it. A context manager."""

    stack: Stack
    every_s: float
    probes: list[Probe] = field(default_factory=list)
    failure: BaseException | None = None
    num_asked: int = 0
    """How many requests the server was sent."""

    def __post_init__(self) -> None:
        super().__init__(name="prober", daemon=True)
        self._stopping = threading.Event()
        self._newest: Which = (-1, -1)

    def run(self) -> None:
        """Send and follow probes until stopped."""
        kafka = self.stack.settings.kafka
        consumer, producer = make_consumer(kafka, **PATIENT), make_producer(kafka, linger_ms=0)
        where = TopicPartition(self.stack.topics.weights, 0)
        consumer.assign([where])
        consumer.seek_to_end(where)
        connection = HTTPConnection(self.stack.url.removeprefix("http://"), timeout=10)
        try:
            self._watch(consumer, producer, connection)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            consumer.close()
            producer.close(timeout=2)
            connection.close()

    def _watch(self, consumer: KafkaConsumer, producer: KafkaProducer, connection: HTTPConnection) -> None:
        numbers, send_s, ask_s = itertools.count(), time.monotonic(), 0.0
        while not self._stopping.is_set():
            now_s = time.monotonic()
            if now_s >= send_s:
                self.probes.append(self._send(producer, next(numbers)))
                send_s += self.every_s
            due_s = min(send_s, ask_s) if to_ask(self.probes) else send_s
            for records in consumer.poll(timeout_ms=max(0, round(1000 * (due_s - time.monotonic())))).values():
                for record in records:
                    if record_kind(record.headers) == "manifest":
                        self._cover(msgspec.json.decode(record.value))
            probe = to_ask(self.probes)
            if probe is not None and time.monotonic() >= ask_s:
                ask_s = time.monotonic() + ASK_EVERY_S
                self._ask(connection, probe)

    def _send(self, producer: KafkaProducer, number: int) -> Probe:
        user = f"probe-{self.stack.settings.kafka.prefix}-{number}"
        partition = partition_of(user.encode(), self.stack.settings.kafka.partitions)
        action = {"user": user, "item": number % 50, "action": ["impression", "click"],
                  "timestamp": time.time_ns() // 1_000_000}  # fmt: skip
        probe = Probe(user, time.monotonic(), partition)
        value = msgspec.json.encode(action)
        sent = producer.send(self.stack.topics.actions, value, user.encode(), partition=partition)
        probe.offset = sent.get(10).offset
        return probe

    def _cover(self, manifest: dict[str, Any]) -> None:
        which = (manifest["epoch"], manifest["number"])
        covered = {int(partition): offset for partition, offset in manifest["covered_offsets"].items()}
        for probe in self.probes:
            if probe.covered_by is None and covered.get(probe.partition, -1) >= probe.offset:
                probe.covered_by = which

    def _ask(self, connection: HTTPConnection, probe: Probe) -> None:
        body = msgspec.json.encode({"user": probe.user, "k": 1})
        connection.request("POST", "/recommend", body, {"content-type": "application/json"})
        response = connection.getresponse()
        content, now_s = response.read(), time.monotonic()
        self.num_asked += 1
        if response.status != 200:
            return
        answer = msgspec.json.decode(content)
        if probe.in_history_s is None and answer["num_history"] >= 1:
            probe.in_history_s = now_s
        self._newest = max(self._newest, (answer["version"]["epoch"], answer["version"]["number"]))
        for each in self.probes:
            if each.learned_s is None and each.covered_by is not None and each.covered_by <= self._newest:
                each.learned_s = now_s

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self.join(30)


def to_ask(probes: list[Probe]) -> Probe | None:
    """The probe to ask the server about: the one that has waited longest for its history, or the newest one while any
    is covered by a version that has not answered yet. None: an answer would tell nothing that is waited for."""
    waiting = next((probe for probe in probes if probe.in_history_s is None), None)
    if waiting is None and any(probe.covered_by is not None and probe.learned_s is None for probe in probes):
        return probes[-1]
    return waiting


def percentiles(probes: list[Probe], name: str, now_s: float) -> dict[str, float]:
    """p50, p95 and p99 in seconds. A probe that has not arrived counts with the time it has waited so far."""
    waits = [(getattr(each, name) or now_s) - each.sent_s for each in probes]
    return {f"p{q}": float(np.percentile(waits, q)) for q in (50, 95, 99)} if waits else {}
