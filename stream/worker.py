"""The worker process: starts Faust, owns the partitions that it is assigned, reports, and stops in an orderly way.

Exit status: 0 after a requested stop; 1 after an error that a person must fix (one line on stderr describes it). If the
broker goes away, Faust is restarted within the process; the stores stay open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError

from state.database import start_threads
from stream.app import build_app
from stream.claim import TopicIds, remedies
from stream.config import Settings
from stream.disk import alone_on
from stream.drift import warn_of_drift, warn_of_times
from stream.heartbeat import Heartbeat
from stream.kafka_producer import Producer
from stream.logs import log
from stream.metrics import WorkerMetrics
from stream.migration import refuse_unfinished
from stream.namesake import refuse_namesake, refuse_twin
from stream.partition import Partition, Shared
from stream.transport import WorkerApp
from wire.errors import HeadraceError, TopicMissing, brief
from wire.kafka.admin import ensure_topics
from wire.kafka.identity import LOOK_S, TopicWatch, identities
from wire.kafka.refusal import refusal
from wire.kafka.retry import RETRY_S, Absence, StoppedError, connect_patiently, patiently
from wire.topics import Topics

CREATE_TIME = 0
"""The timestamp type of a record that has its producer's time."""
JOIN_S = 15.0
"""How much longer than a rebalance joining the group may take before Faust is restarted."""


class Worker:
    """One worker process."""

    def __init__(self, settings: Settings, *, despite_added: bool = False) -> None:
        self.settings, self._despite_added = settings, despite_added
        self.topics = Topics.under(settings.kafka.prefix)
        self.component = settings.stream.component or f"worker-{socket.gethostname()}-{os.getpid()}"
        self.metrics = WorkerMetrics(settings.store.path)
        self.producer = Producer(settings.kafka)
        self._ids, self._disk, self._process = TopicIds("", ""), "", uuid.uuid4().hex
        self._told_of_times = False
        self.partitions: dict[int, Partition] = {}
        self.failure: BaseException | None = None
        self._stop = asyncio.Event()
        self._stopping = threading.Event()
        """As `_stop`, for threads that wait for the broker."""
        self._assigning = asyncio.Lock()
        self._has_joined = False
        """Whether the running Faust app has been assigned its partitions, which may be none."""

    async def run(self) -> None:
        """Work until `stop`; raises errors that a person must fix."""
        with suppress(StoppedError):
            await self._run()
        if self.failure is not None:
            raise self.failure
        log.info("worker stopped", component=self.component)

    async def _run(self) -> None:
        settings, stream = self.settings, self.settings.stream
        self.metrics.serve(stream.metrics_host, stream.metrics_port)
        await asyncio.to_thread(self._wait_for_broker)
        await asyncio.to_thread(ensure_topics, settings.kafka, despite_added=self._despite_added)
        await asyncio.to_thread(warn_of_drift, settings.kafka)
        await asyncio.to_thread(self._refuse_unfinished)
        with alone_on(Path(settings.store.path), settings.kafka.prefix) as self._disk:
            start_threads(Path(settings.store.path))
            watch = await asyncio.to_thread(self._find_topics)
            if settings.stream.component:
                await asyncio.to_thread(self._refuse_namesake)
            await self._work(watch)

    def _wait_for_broker(self) -> None:
        connect_patiently(self.settings.kafka, self._stopping).close()

    def _refuse_unfinished(self) -> None:
        kafka = self.settings.kafka
        patiently(lambda: refuse_unfinished(kafka), "looking for a migration", kafka, self._stopping)

    def _refuse_namesake(self) -> None:
        kafka, name = self.settings.kafka, self.component
        look = partial(refuse_namesake, kafka, name, self._disk)
        patiently(look, "looking for another worker of this name", kafka, self._stopping)

    async def _refuse_twin(self) -> None:
        if not self.settings.stream.component:
            return
        kafka = self.settings.kafka
        look = partial(refuse_twin, kafka, self.component, self._process, self._stopping)
        with suppress(StoppedError):
            await asyncio.to_thread(
                patiently, look, "looking for a worker on a copy of this disk", kafka, self._stopping
            )

    def _find_topics(self) -> TopicWatch:
        """The identities of the topics as this worker starts. Raises `TopicMissing`."""
        kafka, topics = self.settings.kafka, self.topics
        positioned, others = (topics.actions, topics.sequences), (topics.dead_letters, topics.status)
        names = (*positioned, *others)
        found = patiently(lambda: identities(kafka, names), "finding the topics", kafka, self._stopping)
        for name in names:
            if name not in found:
                raise TopicMissing(f"topic {name}: expected on the broker, it is missing; is someone deleting topics?")
        self._ids = TopicIds(*(found[name].id for name in positioned))
        # No positions refer to these topics, so another one of the same name will do.
        found |= {name: found[name]._replace(id="") for name in others}
        again = dict.fromkeys(others, "Create it again: headrace topics --create; then start the workers")
        return TopicWatch(kafka, found, remedies(self.settings) | again)

    async def _work(self, watch: TopicWatch) -> None:
        log.info("worker starts", component=self.component, broker=self.settings.kafka.bootstrap, pid=os.getpid())
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._start_producer()
            heartbeat = Heartbeat(
                self.settings, self.component, self._disk, self._process, self.partitions, self.producer, self.metrics,
                self.fail,
            )  # fmt: skip
            beside = (heartbeat.run(), self._watch(watch, heartbeat.reached), self._refuse_twin())
            tasks = [asyncio.create_task(self._guard(work)) for work in beside]
            while not self._stop.is_set():
                await self._run_faust()
                if not self._stop.is_set():
                    self.metrics.restarts.inc()
                    await asyncio.to_thread(self._wait_for_broker)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            watch.close()
            await self.assign(set())
            await self.producer.stop()

    async def _start_producer(self) -> None:
        absence = Absence("starting the producer", self.settings.kafka)
        while True:
            try:
                await self.producer.start()
            except (KafkaConnectionError, KafkaTimeoutError, OSError) as error:
                if refused := refusal(error, self.settings.kafka.bootstrap, "producing"):
                    raise refused from error
                absence.note(error)
            else:
                absence.end()
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), RETRY_S)
                raise StoppedError("starting the producer")

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """End the worker if a task ends by itself: its reports or checks would silently stop."""
        try:
            await work
        except Exception as error:  # noqa: BLE001
            log.error("a task of the worker failed", error=brief(error))
            self.fail(error)

    def stop(self) -> None:
        """Request an orderly stop."""
        self._stop.set()
        self._stopping.set()

    def fail(self, error: BaseException) -> None:
        """Stop because of an error that cannot be handled here."""
        if self.failure is None:
            self.failure = error
        self.stop()

    async def _run_faust(self) -> None:
        """Run one Faust app until a stop is requested, or until it crashes or is stuck."""
        app = build_app(self.settings.kafka, self.settings.stream, self, Path(self.settings.store.path) / "faust")
        starting = asyncio.ensure_future(app.start())
        error: BaseException | None = None
        try:
            error = await self._watch_faust(app, starting)
        finally:
            starting.cancel()
            await self._stop_faust(app, asyncio.gather(starting, return_exceptions=True))
        if error is not None:
            if refused := refusal(error, self.settings.kafka.bootstrap, "reading" if self._has_joined else "joining"):
                self.fail(refused)
            else:
                log.warning("faust stopped by itself and will be restarted", error=brief(error))

    async def _watch_faust(self, app: Any, starting: asyncio.Future[None]) -> BaseException | None:
        """Wait until a stop is requested, or Faust needs a restart; returns why."""
        stream = self.settings.stream
        patience_s = JOIN_S + stream.rebalance_timeout_s + stream.session_timeout_s
        self._has_joined, began_s = False, time.monotonic()
        error: BaseException | None = None
        while error is None and not (self._stop.is_set() or app.should_stop):
            if not self._has_joined and time.monotonic() - began_s > patience_s:
                return TimeoutError(f"it has not joined its group within {patience_s:g} s")
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 0.2)
            error = (starting.exception() if starting.done() else None) or app.complaint
        return error or app.crash_reason

    async def _stop_faust(self, app: Any, starting: asyncio.Future[Any]) -> None:
        # A crashed app has stopped only some of its services; one whose broker is away would wait for it; one that
        # hangs may ignore its cancellation. Further errors while a crashed app stops carry no information.
        transport = logging.getLogger(WorkerApp.__module__)
        if app.crash_reason:
            transport.setLevel(logging.CRITICAL)
        stopping = asyncio.ensure_future(app.stop())
        await asyncio.wait({starting, stopping}, timeout=self.settings.stream.stop_timeout_s)
        transport.setLevel(logging.NOTSET)
        if not stopping.done():
            stopping.cancel()
            log.warning("faust did not stop in time and is abandoned")
        elif error := stopping.exception():
            log.info("faust did not stop in an orderly way", error=brief(error))

    async def take(self, event: Any) -> None:
        """Give a partition its event."""
        if event.message.timestamp_type == CREATE_TIME and not self._told_of_times:
            self._told_of_times = True
            warn_of_times(self.topics.actions)
        partition = self.partitions.get(event.message.partition)
        if partition is not None:
            await partition.offer(event)

    async def assign(self, partitions: set[int]) -> None:
        """Own exactly these partitions, without those that were added to the topic: close the revoked ones, open the
        new ones, leave the others alone."""
        self._has_joined = True
        partitions = {number for number in partitions if number < self.settings.kafka.partitions}
        async with self._assigning:
            gone = [self.partitions.pop(number) for number in set(self.partitions) - partitions]
            await asyncio.gather(*(partition.close() for partition in gone))
            for partition in gone:
                self.metrics.forget(partition.number)
            for number in sorted(partitions - set(self.partitions)):
                shared = Shared(self.settings, self.topics, self.metrics, self.producer, self._ids, self.fail)
                self.partitions[number] = Partition(number, shared).start()
            if partitions or gone:
                log.info("partitions assigned", partitions=sorted(partitions))

    async def _watch(self, watch: TopicWatch, reached: Mapping[int, int]) -> None:
        """Every few seconds, check that the topics are still those that this worker started with."""
        while True:
            await asyncio.sleep(LOOK_S)
            places = ", ".join(f"{number} to {offset}" for number, offset in sorted(reached.items())) or "none"
            try:
                await asyncio.to_thread(watch.look, f"this worker's position (partitions applied: {places})")
            except HeadraceError as error:
                self.fail(error)
                return


async def _run(settings: Settings, despite_added: bool) -> None:
    worker = Worker(settings, despite_added=despite_added)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, worker.stop)
    await worker.run()


def run_worker(settings: Settings, *, despite_added: bool = False) -> int:
    """Run a worker until SIGTERM or Ctrl-C; returns the exit status. ``despite_added``: also on topics that were given
    more partitions, of which it takes those that were there before."""
    try:
        asyncio.run(_run(settings, despite_added))
    except HeadraceError as error:
        print(f"headrace worker: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
