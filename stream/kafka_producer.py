"""The worker's own Kafka producer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, UnknownError, UnsupportedVersionError

from wire.config import KafkaConfig
from wire.kafka.options import async_options
from wire.topics import max_letter_bytes


class Producer:
    """An aiokafka producer that is replaced after an error: a failed batch leaves the old one unusable."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._producer: AIOKafkaProducer | None = None
        self._lock = asyncio.Lock()
        self.generation = 0

    async def start(self) -> None:
        """Connect; as an idempotent producer if the broker supports it."""
        options: dict[str, Any] = {
            "acks": "all", "max_batch_size": 512_000, "enable_idempotence": True,
            "max_request_size": max(8 << 20, max_letter_bytes(self._config)),
            "compression_type": None if self._config.compression == "none" else self._config.compression,
            **async_options(self._config),
        }  # fmt: skip
        try:
            self._producer = await _started(options)
        except (UnknownError, UnsupportedVersionError):  # the embedded broker answers the first
            self._producer = await _started({**options, "enable_idempotence": False})

    async def renew(self, failed_generation: int) -> None:
        """Replace the producer, unless another partition's relay has done so since ``failed_generation``."""
        async with self._lock:
            if failed_generation == self.generation:
                await self.stop()
                await self.start()
                self.generation += 1

    async def send(self, topic: str, partition: int | None, key: bytes | None, value: bytes | None, **more: Any) -> Any:
        """Begin to send a record. Returns a future of its metadata."""
        if self._producer is None:
            raise KafkaError("the producer is stopped")
        return await self._producer.send(topic, value, key=key, partition=partition, **more)

    async def send_all(
        self, topic: str, partition: int, records: Iterable[tuple[bytes, bytes | None]]
    ) -> AsyncIterator[tuple[Any, int]]:
        """Begin to send (key, value) records, in order, in as few batches as possible. Yields, for each batch, a future
        of its metadata, whose offset is that of its first record, and its number of records."""
        producer = self._producer
        if producer is None:
            raise KafkaError("the producer is stopped")
        batch = producer.create_batch()
        for key, value in records:
            if batch.append(timestamp=None, key=key, value=value) is None:
                yield await producer.send_batch(batch, topic, partition=partition), batch.record_count()
                batch = producer.create_batch()
                batch.append(timestamp=None, key=key, value=value)
        batch.close()
        if batch.record_count():
            yield await producer.send_batch(batch, topic, partition=partition), batch.record_count()

    async def stop(self) -> None:
        """Disconnect without waiting for unacknowledged records: they are in an outbox."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(KafkaError, asyncio.TimeoutError):
                await asyncio.wait_for(producer.stop(), 5.0)


async def _started(options: dict[str, Any]) -> AIOKafkaProducer:
    producer = AIOKafkaProducer(**options)
    try:
        await producer.start()
    except BaseException:
        await producer.stop()
        raise
    return producer
