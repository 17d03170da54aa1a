"""Sends actions from the page as any producer would: to the actions topic, partitioned by user. What the worker would
refuse is refused here.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, TypeVarTuple

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError

from serving.answer_bodies import SentAction, SentRequest
from serving.errors import NotReadyError, OverloadedError, RequestError
from serving.request_bodies import ActionRequest, ForgetRequest
from wire.action import Rejection, decode_record
from wire.action_json import Refused, forget_request_of
from wire.config import ActionConfig, KafkaConfig
from wire.errors import TopicsMismatch
from wire.hashing import canonical
from wire.kafka.producer import home_of, make_producer
from wire.kafka.reports import check_partitions
from wire.topics import Topics

TIMEOUT_S = 10.0
MAX_SENDINGS, MAX_THREADS = 64, 32
"""With fewer threads a broker that takes seconds makes those who wait wait too long for each other."""
LOOK_AGAIN_S = 1.0
"""How long a topic that has another number of partitions is taken to have it."""
CHECKED_S = 5.0
"""How long it is known with how many partitions the workers work: asking takes a third of a second."""
Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Sendings:
    """Requests that wait for the broker, in threads: at most `MAX_SENDINGS`, and none that has waited for others longer
    than `TIMEOUT_S`. For one event loop, whose own threads are left to what looks up the names of other servers."""

    def __init__(self) -> None:
        self._num = 0
        self._threads = ThreadPoolExecutor(MAX_THREADS, "sendings")

    async def run(self, send: Callable[[*Arguments], Result], *args: *Arguments) -> Result:
        """What ``send`` returns. Raises `OverloadedError` if too many wait, or too long; then nothing was sent."""
        if self._num >= MAX_SENDINGS:
            raise OverloadedError(f"nothing was sent: {self._num} requests wait for the broker; try again")
        until_s = time.monotonic() + TIMEOUT_S

        def send_in_time() -> Result:
            if time.monotonic() > until_s:
                raise OverloadedError("nothing was sent: those before it still waited for the broker; try again")
            return send(*args)

        self._num += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, send_in_time)
        finally:
            self._num -= 1


class _Check:
    """With how many partitions the workers work, asked by one thread for all. Safe for any number of threads."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._kafka, self._lock = kafka, threading.Lock()
        self._known_until_s = 0.0
        self._error: Exception | None = None

    def __call__(self) -> None:
        """As `check_partitions`, as of `CHECKED_S` ago at most, or of `LOOK_AGAIN_S` if there was no answer. Raises
        `OverloadedError` if others wait for that."""
        if not self._lock.acquire(timeout=TIMEOUT_S):
            raise OverloadedError("nothing was sent: another request still waits for the broker; try again")
        try:
            if time.monotonic() > self._known_until_s:
                self._error = self._asked()
                is_answer = self._error is None or isinstance(self._error, TopicsMismatch)
                self._known_until_s = time.monotonic() + (CHECKED_S if is_answer else LOOK_AGAIN_S)
            error = self._error
        finally:
            self._lock.release()
        if error is not None:
            raise error

    def _asked(self) -> Exception | None:
        try:
            check_partitions(self._kafka)
        except Exception as error:  # noqa: BLE001  # for all who wait
            return error
        return None


class ActionSender:
    """Creates its producer at the first action, and again after a failure. Safe for any number of threads."""

    def __init__(self, kafka: KafkaConfig, action: ActionConfig) -> None:
        self._kafka, self._action, self._topic = kafka, action, Topics.under(kafka.prefix).actions
        self._lock = threading.Lock()
        self._client: KafkaProducer | None = None
        self._connected_s = 0.0
        self._check, self._is_checked = _Check(kafka), False

    def send(self, request: ActionRequest, timestamp_ms: int) -> SentAction:
        """Send an action and wait for the broker. Raises `RequestError` for one that the worker would refuse, and
        `NotReadyError` if the broker does not answer, or if its topic has another number of partitions."""
        name = uuid.uuid4().hex
        action: dict[str, Any] = {
            "id": name, "user": request.user, "item": request.item, "action": request.action, "timestamp": timestamp_ms,
        }  # fmt: skip
        action |= {key: value for key in ("value", "domain") if (value := getattr(request, key)) is not None}
        value = msgspec.json.encode(action)
        [outcome] = decode_record(value, timestamp_ms, self._action)
        if isinstance(outcome, Rejection):
            raise _refusal(outcome.message)
        placed = self._put(canonical(request.user).encode(), value)
        return SentAction(id=name, partition=placed.partition, offset=placed.offset, timestamp=timestamp_ms,
                          record_ms=placed.timestamp)  # fmt: skip

    def forget(self, request: ForgetRequest) -> SentRequest:
        """Send a request to forget and wait for the broker. Raises as `send` does."""
        what, name = ("user", request.user) if request.item is None else ("item", request.item)
        assert name is not None
        content = {"forget": not request.undo, what: name}
        try:
            forget_request_of(content)
        except Refused as error:
            raise _refusal(str(error)) from None
        placed = self._put(canonical(name).encode(), msgspec.json.encode(content), checks_again=True)
        return SentRequest(partition=placed.partition, offset=placed.offset)

    def _put(self, key: bytes, value: bytes, *, checks_again: bool = False) -> Any:
        """The broker's metadata of the record. ``checks_again``: compare the number of partitions with that of the
        workers of the last `CHECKED_S`, and not only for a new producer."""
        client = None
        if not self._lock.acquire(timeout=TIMEOUT_S):
            raise OverloadedError("nothing was sent: another request still waits for the broker; try again")
        try:
            try:
                if self._client is None:
                    self._client, self._connected_s = self._connect(), time.monotonic()
                    self._is_checked = False
                client = self._client
            finally:
                self._lock.release()
            home = home_of(self._kafka, self._topic, key, len(client.partitions_for(self._topic)))
            if checks_again or not self._is_checked:
                self._check()
                self._is_checked = True
            return client.send(self._topic, key=key, value=value, partition=home).get(TIMEOUT_S)
        except TopicsMismatch as error:
            if time.monotonic() - self._connected_s > LOOK_AGAIN_S:
                self._drop(client)  # a new client looks again at how many there are
            raise NotReadyError(f"nothing was sent: {error}", "a topic as kafka.partitions says") from error
        except (KafkaError, OSError) as error:
            self._drop(client)
            kind = type(error).__name__
            message = f"the broker did not accept it ({kind}); try again"
            raise NotReadyError(message, "an answer of the broker") from error

    def close(self) -> None:
        """Close the producer, if there is one."""
        self._drop(self._client)

    def _drop(self, client: KafkaProducer | None) -> None:
        """Close a producer, unless another thread has done so."""
        with self._lock:
            is_ours = client is self._client
            self._client = None if is_ours else self._client
        if client is not None and is_ours:
            client.close(timeout=1)

    def _connect(self) -> KafkaProducer:
        return make_producer(
            self._kafka, enable_idempotence=True, max_block_ms=5000, delivery_timeout_ms=8000, request_timeout_ms=4000
        )


def _refusal(message: str) -> RequestError:
    """What the worker would say, which is "FIELD: expected …, got …; what to do"."""
    field, _, rest = message.partition(": expected ")
    expected, _, rest = rest.partition(", got ")
    got, _, remedy = rest.partition("; ")
    return RequestError(field, expected, got, remedy)
