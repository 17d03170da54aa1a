"""Reports the lag once a second to ``headrace.trainer.lag.v1``, and as Prometheus metrics whenever they are scraped.

A thread with its own clients. It combines the trainer's `Progress` with the other processes' reports in the status
topic, and sends the trainer's own heartbeat there; training never waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from prometheus_client import start_http_server

from trainer.config import TrainerConfig
from trainer.lag.message import build_message
from trainer.lag.metrics import LagMetrics
from trainer.lag.progress import Progress
from trainer.lag.throughput import Throughput
from wire.cluster import ClusterState
from wire.config import KafkaConfig
from wire.errors import HeadraceError, TopicMissing
from wire.kafka.consumer import PROMPT, ends, make_consumer, partitions_of
from wire.kafka.producer import make_producer
from wire.kafka.refusal import refusal
from wire.kafka.retry import Absence
from wire.listening import refused_address
from wire.status import TrainerStatus, encode_status, key_of, keys_of
from wire.topics import LAG_KEY, Topics

log = structlog.get_logger("trainer")
UNSENT_MS = {"max_block_ms": 2_000, "request_timeout_ms": 2_000, "delivery_timeout_ms": 2_500}
"""How long a record that cannot be sent, such as one to a topic that has been deleted, may hold up the heartbeats."""


class LagReporter(threading.Thread):
    """Writes a message every ``lag_every_s`` until `stop`; a standby only sends heartbeats."""

    def __init__(
        self,
        kafka: KafkaConfig,
        config: TrainerConfig,
        progress: Callable[[], Progress],
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="lag", daemon=True)
        self._on_failure = on_failure
        self.failure: BaseException | None = None
        """The error that ended the thread. Without heartbeats, a standby would take over."""
        self._kafka, self._config, self._progress = kafka, config, progress
        self._topics = Topics.under(kafka.prefix, kafka.line)
        self._own = f"/{kafka.line}" if kafka.line else ""
        self._stopped = threading.Event()
        self._refused: HeadraceError | None = None
        self._unremoved = list[bytes]()
        self._absence = Absence("reporting the lag", kafka)
        self._around, self._lock = ClusterState(line=kafka.line), threading.Lock()
        """Metrics are scraped on other threads: the reports are neither read nor changed without the lock."""
        self._sampler = Throughput()
        self._throughput = self._sampler.sample(Progress(), self._around)
        self.metrics = LagMetrics(self.message, Path(config.checkpoint_dir))

    def message(self) -> dict[str, Any]:
        """The lag message as of now."""
        progress, now_ms = self._progress(), int(time.time() * 1000)
        with self._lock:
            self._around.see_trained({each: at.next_number for each, at in progress.positions.items()}, now_ms)
            return build_message(progress, self._around, self._throughput, now_ms)

    def start(self) -> None:
        """Start; serve the metrics too, if a port is configured. Raises `HeadraceError` if that
        fails: not `ConfigError`, since the port may be free at the next start."""
        if self._config.metrics_port:
            self._serve(self._config.metrics_port)
        super().start()

    def _serve(self, port: int) -> None:
        try:
            start_http_server(port, self._config.metrics_host, self.metrics.registry)
        except OSError as error:
            told = refused_address("trainer", "metrics_", self._config.metrics_host, port, error)
            raise HeadraceError(f"{told} (0: no metrics)") from error

    def run(self) -> None:
        """Report until `stop`."""
        try:
            while not self._stopped.is_set():
                self._report_while_it_answers()
        except BaseException as error:
            self.failure = error
            self._on_failure()
            if not isinstance(error, HeadraceError):
                log.exception("the reporter ended")

    def _report_while_it_answers(self) -> None:
        """Report; return when the broker is away. Raises `ClientRefused` if a new connection would not help."""
        connections: list[KafkaConsumer | KafkaProducer] = []
        try:
            self._report(connections)
        except (KafkaError, OSError, TopicMissing) as error:
            if refused := refusal(error, self._kafka.bootstrap, "reading"):
                raise refused from error
            self._absence.note(error)
            self._stopped.wait(self._config.lag_every_s)
        finally:
            for connection in connections:
                connection.close()

    def _report(self, connections: list[KafkaConsumer | KafkaProducer]) -> None:
        connections.append(reader := make_consumer(self._kafka))
        connections.append(asker := make_consumer(self._kafka, **PROMPT))
        connections.append(writer := make_producer(self._kafka, acks=1, **UNSENT_MS))
        status = partitions_of(reader, self._topics.status)
        self._beat(writer)  # also while another topic is missing: else a standby would take over
        actions, _ = (partitions_of(reader, topic) for topic in (self._topics.actions, self._topics.lag))
        reader.assign(status)
        reader.seek_to_beginning(*status)
        is_last, note = False, self._note  # first what the topic already has, then what is new
        while not is_last:
            is_last = self._stopped.is_set()
            deadline_s = time.monotonic() + self._config.lag_every_s
            self._beat(writer)
            self._look(reader, ends(asker, actions), note)
            self._absence.end()
            note = self._hear
            progress = self._progress()
            with self._lock:
                self._throughput = self._sampler.sample(progress, self._around)
            if self._progress().epoch >= 0:  # a standby only sends heartbeats
                value = msgspec.json.encode(self.message())
                self._send(writer, self._topics.lag, LAG_KEY, value)
                self._remove_silent(writer)
            self._stopped.wait(max(0.0, deadline_s - time.monotonic()))

    def _remove_silent(self, writer: KafkaProducer) -> None:
        """Remove processes from the status topic, since each start may have a new name; those again of which the broker
        did not take the record."""
        with self._lock:
            keys = [key for who in self._around.forget_silent(int(time.time() * 1000)) for key in keys_of(*who)]
        while self._unremoved:
            keys.append(self._unremoved.pop())
        for key in keys:
            sent = self._send(writer, self._topics.status, key, None)
            sent.add_errback(lambda _, key: self._unremoved.append(key), key=key)

    def _beat(self, writer: KafkaProducer) -> None:
        """Send the heartbeat: standbys listen for the leader's; their own show that there are standbys."""
        progress = self._progress()
        if not progress.claimant:
            return
        status = TrainerStatus(
            component=f"trainer@{progress.claimant.rsplit('/', 3)[0].replace('//', ':/', 1)}{self._own}",
            time_ms=int(time.time() * 1000),
            claimant=progress.claimant,
            epoch=progress.epoch,
            is_standby=progress.is_standby,
            num_steps=progress.num_steps,
        )
        self._send(writer, self._topics.status, key_of(status), encode_status(status))

    def _send(self, writer: KafkaProducer, topic: str, key: bytes, value: bytes | None) -> Any:
        """Send without waiting: the next message has it all. Raises if one was refused, as later ones would be too."""
        if self._refused is not None:
            raise self._refused
        return writer.send(topic, key=key, value=value, partition=0).add_errback(self._note_refusal)

    def _note_refusal(self, error: BaseException) -> None:
        self._refused = refusal(error, self._kafka.bootstrap, "writing") or self._refused

    def _note(self, value: bytes | None) -> None:
        with self._lock:
            self._around.note(value)

    def _hear(self, value: bytes | None) -> None:
        with self._lock:
            self._around.hear(value, int(time.time() * 1000))

    def _look(
        self, reader: KafkaConsumer, action_ends: dict[TopicPartition, int], note: Callable[[bytes | None], None]
    ) -> None:
        ends_now = {where.partition: end for where, end in action_ends.items()}
        with self._lock:
            self._around.heard_s = time.monotonic()
            self._around.see_ends(ends_now, int(time.time() * 1000))
        while batches := reader.poll(timeout_ms=50):
            for record in (record for records in batches.values() for record in records):
                if record.value is not None:
                    note(record.value)

    def stop(self) -> None:
        """Report the last state once more, and stop."""
        self._stopped.set()
        if self.ident is not None:
            self.join(10)
