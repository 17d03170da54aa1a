"""Timing a running deployment: from an action to the history that a server uses, and to an answer by weights that have
learned it.

A probe is an action of a new user, sent alone. Its history is served once the server answers with one interaction for
that user. The action is learned by the first version whose manifest covers its offset, and used in the first answer
that names that version or a newer one. The server is queried every 20 ms, which limits the precision of the times.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from bench.live_stack import Stack
from wire.kafka.consumer import make_consumer
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

    def __post_init__(self) -> None:
        super().__init__(name="prober", daemon=True)
        self._stopping = threading.Event()
        self._newest: Which = (-1, -1)

    def run(self) -> None:
        """Send and follow probes until stopped."""
        kafka = self.stack.settings.kafka
        consumer, producer = make_consumer(kafka, fetch_max_wait_ms=10), make_producer(kafka, linger_ms=0)
        where = TopicPartition(self.stack.topics.weights, 0)
        consumer.assign([where])
        consumer.seek_to_end(where)
        client = httpx.Client(base_url=self.stack.url, timeout=10)
        try:
            self._watch(consumer, producer, client)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            consumer.close()
            producer.close(timeout=2)
            client.close()

    def _watch(self, consumer: KafkaConsumer, producer: KafkaProducer, client: httpx.Client) -> None:
        numbers, next_s = itertools.count(), time.monotonic()
        while not self._stopping.is_set():
            now_s = time.monotonic()
            if now_s >= next_s:
                self.probes.append(self._send(producer, next(numbers)))
                next_s += self.every_s
            for records in consumer.poll(0).values():
                for record in records:
                    if record_kind(record.headers) == "manifest":
                        self._cover(msgspec.json.decode(record.value))
            self._ask(client)
            self._stopping.wait(max(0.0, now_s + ASK_EVERY_S - time.monotonic()))

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

    def _ask(self, client: httpx.Client) -> None:
        """The probe that has waited longest for its history; if none is waiting, the newest one."""
        waiting = [probe for probe in self.probes if probe.in_history_s is None]
        probe = waiting[0] if waiting else self.probes[-1]
        response = client.post("/recommend", json={"user": probe.user, "k": 1})
        if response.status_code != 200:
            return
        answer, now_s = response.json(), time.monotonic()
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


def percentiles(probes: list[Probe], name: str, now_s: float) -> dict[str, float]:
    """p50, p95 and p99 in seconds. A probe that has not arrived counts with the time it has waited so far."""
    waits = [(getattr(each, name) or now_s) - each.sent_s for each in probes]
    return {f"p{q}": float(np.percentile(waits, q)) for q in (50, 95, 99)} if waits else {}
