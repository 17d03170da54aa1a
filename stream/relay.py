"""The relay: sends the entries of a store's outbox to the broker in order, and deletes them once they are stored there.

An acknowledgement alone is not enough to delete them. While we are the only writer of our partition of the sequences
topic, acknowledged offsets are consecutive; where they are not, another writer came in between, and the relay reads
what it wrote. If that is a fence of a higher epoch, readers drop what we wrote after it, so the entries stay in the
outbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka.errors import MessageSizeTooLargeError

from state.store import OutboxEntry, PartitionStore
from stream.kafka_producer import Producer
from stream.logs import log
from stream.metrics import WorkerMetrics
from stream.refusals import Refusals
from wire.config import KafkaConfig
from wire.errors import TopicReplaced
from wire.example_log import ExampleLog
from wire.example_reader import ExampleReader
from wire.kafka.async_consumer import read_range
from wire.topics import Topics, address_of_key

MAX_ENTRIES = 1_000
"""Maximum entries in flight."""
CUT_BYTES = 500_000
"""How many bytes are kept of a dead letter that is too large for the broker."""


class Fenced(Exception):
    """Another worker has taken the partition."""

    def __init__(self, partition: int, ours: int, theirs: int) -> None:
        super().__init__(f"partition {partition}: writer epoch {ours} was fenced off by {theirs}")


def _result(outcome: Any) -> Any:
    """The metadata of a sent record or batch; raises the error of a failed one."""
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


class OutboxRelay:
    """Relays one store's outbox under one writer epoch. ``remedy``: what to do if the topic has lost records."""

    def __init__(
        self,
        store: PartitionStore,
        producer: Producer,
        config: KafkaConfig,
        metrics: WorkerMetrics,
        position: int,
        examples: ExampleLog,
        remedy: str,
    ) -> None:
        self._store = store
        self._producer = producer
        self._config, self._remedy = config, remedy
        self._topics = Topics.under(config.prefix)
        self._metrics = metrics
        self._refusals = Refusals(metrics)
        self._position = position
        """Offset in the sequences partition below which everything is known."""
        self._log = examples
        self._decoder = ExampleReader(self._topics.sequences)
        self._wake = asyncio.Event()
        self.drained = asyncio.Event()
        """Set whenever entries have left the outbox."""

    def wake(self) -> None:
        """Notify the relay that the outbox has entries."""
        self._wake.set()

    async def run(self) -> None:
        """Relay until cancelled. Raises `Fenced`, `KafkaError` when the broker is away for too long, or `TopicReplaced`
        if the topic is shorter than it was."""
        while True:
            entries = self._store.outbox(limit=MAX_ENTRIES)
            if entries:
                await self._pass_on(entries)
                continue
            await self._wake.wait()
            self._wake.clear()

    async def _pass_on(self, entries: Sequence[OutboxEntry]) -> None:
        """Examples, then dead letters (`state.outbox.Outbox.read`)."""
        examples = [entry for entry in entries if entry.is_example]
        offsets = await self._send_examples(examples)
        await self._send_letters(entries[len(examples) :])
        await self._check(offsets)
        self._store.ack(entries[-1].index, self._position)
        self._metrics.relayed.labels("sequences").inc(len(examples))
        self._metrics.relayed.labels("dead_letters").inc(len(entries) - len(examples))
        self._refusals.note(entries[len(examples) :])
        self.drained.set()

    async def _send_examples(self, examples: Sequence[OutboxEntry]) -> list[tuple[int, int]]:
        """(first offset, number of records) of each acknowledged batch."""
        sent: list[Any] = []
        nums: list[int] = []
        records = ((entry.key, entry.value) for entry in examples)
        try:
            async for future, num in self._producer.send_all(self._topics.sequences, self._store.partition, records):
                sent.append(future)
                nums.append(num)
        finally:  # in any case, wait for what was sent
            done = await asyncio.gather(*sent, return_exceptions=True)
        return [(_result(outcome).offset, num) for outcome, num in zip(done, nums, strict=True)]

    async def _send_letters(self, letters: Sequence[OutboxEntry]) -> None:
        sent: list[Any] = []
        try:
            for letter in letters:
                try:
                    sent.append(await self._send_letter(letter, letter.value, letter.headers))
                except MessageSizeTooLargeError:  # refused by the client itself
                    sent.append(await self._send_cut(letter))
        finally:
            done = await asyncio.gather(*sent, return_exceptions=True)
        for letter, outcome in zip(letters, done, strict=True):
            if isinstance(outcome, MessageSizeTooLargeError):
                await (await self._send_cut(letter))
            else:
                _result(outcome)

    async def _send_letter(self, entry: OutboxEntry, value: bytes | None, headers: list[tuple[str, bytes]]) -> Any:
        return await self._producer.send(self._topics.dead_letters, 0, entry.key, value, headers=headers)

    async def _send_cut(self, entry: OutboxEntry) -> Any:
        """Send the beginning of a dead letter that is too large for the topic."""
        value = entry.value or b""
        return await self._send_letter(entry, value[:CUT_BYTES], [*entry.headers, ("cut", str(len(value)).encode())])

    async def _check(self, batches: Sequence[tuple[int, int]]) -> None:
        """Make sure that readers accept these (first offset, number of records); raises `Fenced` if they do not."""
        if not batches:
            return
        first, stop = min(batches)[0], sum(max(batches))
        if first < 0:
            # For a retry of a batch that had already arrived, the broker may not know the offset and answers -1.
            await self._look(None)
        elif first < self._position:
            raise TopicReplaced(
                f"topic {self._topics.sequences}, partition {self._store.partition}: expected new records from offset "
                f"{self._position} on, but the broker put them at {first}: records were lost. {self._remedy}"
            )
        elif stop - self._position != sum(num for _, num in batches):
            await self._look(stop)
        else:
            self._position = stop

    async def _look(self, stop: int | None) -> None:
        """Read what was written between our records: by a fenced writer, by our own retry, or by a new owner."""
        partition, ours, start = self._store.partition, self._log.writer_epoch, self._position
        async for records in read_range(self._config, self._topics.sequences, partition, start, stop):
            for record in records:
                example = self._decoder.read(partition, record.offset, record.value)
                if example is not None:
                    self._log.feed(example)
                elif record.value is None:
                    self._log.bury(address_of_key(record.key or b""))
                if self._log.writer_epoch > ours:
                    raise Fenced(partition, ours, self._log.writer_epoch)
                self._position = record.offset + 1
        self._position = max(self._position, stop or 0)
        self._store.refresh(sorted(self._log.overwritten), sorted(self._log.buried))
        self._log.overwritten.clear()
        self._log.buried.clear()
        log.info("read another writer's records", partition=partition, offsets=[start, self._position])
