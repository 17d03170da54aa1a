"""A producer of actions that batches them into list records.

An action in a record of its own costs the worker three times as much as one in a list, and a producer nine times as
much, so busy producers put many actions of one partition into one record. The key of such a record is its first
action's user; all of its users hash to its partition.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError

from stream.errors import ProducerError
from wire.checks import Limit, Number, check_fields
from wire.config import ActionConfig, KafkaConfig
from wire.hashing import canonical
from wire.kafka.producer import make_producer
from wire.partitioner import partition_of

BULK = {
    "linger_ms": 5, "batch_size": 500_000, "enable_idempotence": True,
    "request_timeout_ms": 30_000, "delivery_timeout_ms": 120_000, "max_block_ms": 60_000,
}  # fmt: skip
"""Options for throughput, exactly-once delivery and long retries: these actions will not be sent again."""


BATCH_LIMITS: dict[str, Limit] = {
    "max_actions": Number(1, whole=True, advice="1 sends every action alone"),
    "max_bytes": Number(1, whole=True, advice="1 sends every action alone"),
    "linger_s": Number(0, advice="0 sends at once"),
}


@dataclass(frozen=True)
class BatchConfig:
    """When a partition's pending actions become a record."""

    max_actions: int = 500
    max_bytes: int = 250_000
    linger_s: float = 0.05
    """Longest time that an action waits for others."""

    def __post_init__(self) -> None:
        check_fields(self, "batch", BATCH_LIMITS)

    @classmethod
    def within(cls, action: ActionConfig) -> BatchConfig:
        """Batches that a worker with this configuration accepts."""
        return cls(min(cls.max_actions, action.max_actions_per_record), min(cls.max_bytes, action.max_record_bytes))


def user_of(action: Mapping[str, Any]) -> str:
    """The canonical key of its user. Raises `ProducerError` if it has none that is usable."""
    user = action.get("user")
    try:
        key = canonical(int(user) if isinstance(user, float) and user.is_integer() else user)  # type: ignore[arg-type]
        key.encode()
    except TypeError as error:
        raise ProducerError(f"user: {error}") from None
    except UnicodeEncodeError:
        raise ProducerError(f"user: expected text in UTF-8, got {user!r:.60}; send it as it was decoded") from None
    return key


def placed(action: Mapping[str, Any], num_partitions: int) -> int:
    """The partition that an action belongs to. Raises `ProducerError` if it has no usable user."""
    return partition_of(user_of(action).encode(), num_partitions)


class _Pending:
    """The pending actions of one partition."""

    __slots__ = ("bodies", "key", "num_bytes", "since_s")

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.key = b""
        self.num_bytes = 0
        self.since_s = 0.0


class ActionProducer:
    """Sends actions to the actions topic, once it is `open`. Thread-safe; `close` flushes. ``with`` does both.

    ``num_actions`` and ``num_records`` count what was sent; `send` and `flush` raise `ProducerError` if any failed.
    """

    def __init__(
        self, kafka: KafkaConfig, topic: str, batch: BatchConfig | None = None, num_partitions: int | None = None
    ) -> None:
        self._kafka, self._topic = kafka, topic
        self._batch = batch or BatchConfig()
        self._client: KafkaProducer | None = None
        self.num_partitions = num_partitions or 0
        """The topic's partitions, once open."""
        self._pending = list[_Pending]()
        self._partition_of_user: dict[str, tuple[bytes, int]] = {}
        self._encode = msgspec.json.Encoder().encode
        self._lock = threading.RLock()
        self._failures: list[BaseException] = []
        self._stopped = threading.Event()
        self.num_actions = 0
        self.num_records = 0

    def open(self) -> Self:
        """Connect to the broker. Raises what `make_producer` raises if it does not answer."""
        self._client = make_producer(self._kafka, **BULK)
        self.num_partitions = self.num_partitions or len(self._client.partitions_for(self._topic))
        self._pending = [_Pending() for _ in range(self.num_partitions)]
        if self._batch.linger_s > 0 and self._batch.max_actions > 1:
            threading.Thread(target=self._flush_old, name="linger", daemon=True).start()
        return self

    def _connected(self) -> KafkaProducer:
        assert self._client is not None, "open() comes first"
        return self._client

    def send(self, action: Mapping[str, Any]) -> None:
        """Send one action (a mapping that can be JSON, with ``user``). Raises `ProducerError` if there is no usable
        user, because then it belongs to no partition; and if an earlier record has failed, until `flush` tells of it.
        """
        if self._failures:
            raise self._error()
        key, partition = self._placed(user_of(action))
        body = self._encode(action)
        with self._lock:
            pending = self._pending[partition]
            if pending.num_bytes + len(body) + 2 > self._batch.max_bytes:
                self._send(partition)
            if not pending.bodies:
                pending.key, pending.since_s = key, time.monotonic()
            pending.bodies.append(body)
            pending.num_bytes += len(body) + 1
            self.num_actions += 1
            if len(pending.bodies) >= self._batch.max_actions or self._batch.linger_s == 0:
                self._send(partition)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until the broker has acknowledged everything. Raises `ProducerError` otherwise, without waiting if that
        is known."""
        if not self._failures:
            self._flush(timeout_s)
        if self._failures:
            error = self._error()
            self._failures.clear()
            raise error

    def _flush(self, timeout_s: float) -> None:
        with self._lock:
            for partition in range(self.num_partitions):
                self._send(partition)
        try:
            self._connected().flush(timeout_s)
        except KafkaError as error:
            raise ProducerError(f"the broker did not acknowledge in {timeout_s:g} s ({error}); is it up?") from error

    def _error(self) -> ProducerError:
        first, num = self._failures[0], len(self._failures)
        return ProducerError(
            f"at least {num} records were not written to {self._topic}; first: {first!r}; send them again"
        )

    def close(self) -> None:
        """Flush and disconnect."""
        self._stopped.set()
        try:
            self.flush()
        finally:
            self._connected().close(timeout=5)

    def _placed(self, user: str) -> tuple[bytes, int]:
        known = self._partition_of_user.get(user)
        if known is None:
            if len(self._partition_of_user) > 1_000_000:
                self._partition_of_user.clear()
            key = user.encode()
            known = self._partition_of_user[user] = key, partition_of(key, self.num_partitions)
        return known

    def _send(self, partition: int) -> None:
        pending = self._pending[partition]
        if not pending.bodies:
            return
        alone = len(pending.bodies) == 1
        body = pending.bodies[0] if alone else b"[" + b",".join(pending.bodies) + b"]"
        key = pending.key
        pending.bodies, pending.num_bytes = [], 0
        self._hand_over(partition, key, body)

    def _hand_over(self, partition: int, key: bytes | None, body: bytes) -> None:
        self.num_records += 1
        try:
            sent = self._connected().send(self._topic, value=body, key=key, partition=partition)
        except KafkaError as error:
            self._failures.append(error)
        else:
            sent.add_errback(self._failures.append)

    def _flush_old(self) -> None:
        while not self._stopped.wait(self._batch.linger_s / 2):
            with self._lock:
                oldest_s = time.monotonic() - self._batch.linger_s
                for partition, pending in enumerate(self._pending):
                    if pending.bodies and pending.since_s <= oldest_s:
                        self._send(partition)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
