"""Faust's Kafka transport, with a consumer that takes all of our options.

Faust itself passes on credentials and nothing else: no timeouts, no isolation level, nothing about missing topics. Its
producer is never started: the worker has its own (`stream.kafka_producer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from faust.app.base import BootStrategy
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport


class _Daemon(AIOKafkaConsumerThread.Worker):
    """A thread that does not keep the process alive if it hangs."""

    def __init__(self, service: Any, **options: Any) -> None:
        super().__init__(service, **options)
        self.daemon = True


class _Thread(AIOKafkaConsumerThread):
    Worker = _Daemon
    app: WorkerApp

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:  # noqa: ARG002
        self._assignor = RoundRobinPartitionAssignor
        consumer = AIOKafkaConsumer(partition_assignment_strategy=[self._assignor], **self.app.consumer_options)
        self.app.kafka_consumer = consumer
        return consumer


class _Consumer(Consumer):
    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)


class _Transport(Transport):
    Consumer = _Consumer


class _WithoutProducer(BootStrategy):
    enable_kafka_producer = False


class WorkerApp(faust.App):
    """A Faust app whose consumer is made with ``consumer_options`` (by aiokafka's names)."""

    BootStrategy = _WithoutProducer

    def __init__(self, name: str, consumer_options: Mapping[str, Any], **settings: Any) -> None:
        self.consumer_options = dict(consumer_options)
        self.kafka_consumer: AIOKafkaConsumer | None = None
        super().__init__(name, **settings)

    @property
    def complaint(self) -> BaseException | None:
        """The error that keeps the consumer from joining its group. The consumer retries after a poll has raised it,
        but Faust does not poll before it has partitions."""
        coordinator = self.kafka_consumer._coordinator if self.kafka_consumer is not None else None  # noqa: SLF001
        return getattr(coordinator, "_pending_exception", None)

    def _new_transport(self) -> Transport:
        return _Transport(self.conf.broker_consumer, self)
