"""Reading a range of one partition with a plain consumer: no group, no commits, the caller gives the offsets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaTimeoutError

from wire.config import KafkaConfig
from wire.kafka.consumer import STALL_S
from wire.kafka.options import ISOLATION, async_options

MAX_RECORDS = 2_000


@asynccontextmanager
async def plain_consumer(config: KafkaConfig, isolation: str = ISOLATION) -> AsyncIterator[AIOKafkaConsumer]:
    """An aiokafka consumer for manual assignment."""
    own = {
        "enable_auto_commit": False, "auto_offset_reset": "earliest", "request_timeout_ms": 10_000,
        "isolation_level": isolation,
    }  # fmt: skip
    consumer = AIOKafkaConsumer(**{**own, **async_options(config)})
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def end_offsets(consumer: AIOKafkaConsumer, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """Partition → the offset of the next record to be written or, while a transaction is open, of its first record (for
    a consumer that is "read_uncommitted": of the next record in any case)."""
    found = await consumer.end_offsets([TopicPartition(topic, partition) for partition in partitions])
    return {key.partition: offset for key, offset in found.items()}


async def read_range(
    config: KafkaConfig,
    topic: str,
    partition: int,
    start: int,
    stop: int | None = None,
    on_gone: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[list[ConsumerRecord]]:
    """Batches of the records with ``start`` ≤ offset < ``stop`` (None: the end as it is now), in order.

    An explicit ``stop`` must have been delivered or acknowledged. It is not compared with the end, which the embedded
    broker understates (it returns the last batch's first offset). Records that compaction or retention has removed are
    simply missing, so the first one may come after ``start``. If the partition itself begins after ``start``,
    ``on_gone`` is called with its first offset. Raises ``KafkaTimeoutError`` when the broker sends nothing for
    `STALL_S`.
    """
    key = TopicPartition(topic, partition)
    async with plain_consumer(config) as consumer:
        consumer.assign([key])
        if stop is None:
            stop = (await consumer.end_offsets([key]))[key]
        first = (await consumer.beginning_offsets([key]))[key]
        if first > start:
            on_gone(first)
        start = max(start, first)
        consumer.seek(key, start)
        heard_s = time.monotonic()
        while await consumer.position(key) < stop:
            found = await consumer.getmany(key, timeout_ms=500, max_records=MAX_RECORDS)
            records = [record for record in found.get(key, ()) if record.offset < stop]
            if records:
                yield records
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > STALL_S:
                raise KafkaTimeoutError(f"{topic}: the broker sent nothing for {STALL_S:.0f} s")
            # A fetch answered from memory never yields, and the worker's other tasks must run too.
            await asyncio.sleep(0)
