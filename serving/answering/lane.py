"""A lane: a queue of requests and the threads that answer them in batches.

Requests that arrive while others are computed form the next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.answering.cost import CostModel
from serving.answering.engine import Engine
from serving.answering.request import Request, Result
from serving.errors import NotReadyError, OverloadedError, ServingError
from serving.versions.manager import HeldVersion, WeightsManager

logger = logging.getLogger(__name__)
MOST_REST_S, RESTS = 0.05, 3.0
"""After a batch, a lane pauses for another one: `RESTS` times as long as the batch took, at most `MOST_REST_S`."""
Outcome = bytes | Exception


class Job(Protocol):
    """A request being answered. Both halves run on a lane's thread, with one version, held from start to end."""

    @property
    def weight(self) -> float:
        """How much work it is; 1 is a recommendation for one user."""
        ...

    def prepare(self, version: HeldVersion, /) -> list[Request]:
        """The requests to the engine."""
        ...

    def body(self, version: HeldVersion, found: Sequence[Result], /) -> bytes:
        """The answer as JSON."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A job in a lane, how much it weighed when it was admitted (`Job.weight` may change), and who waits for it."""

    job: Job
    weight: float
    future: asyncio.Future[bytes]
    loop: asyncio.AbstractEventLoop


class Lane:
    """A queue and its threads. A request's weight counts from when it is admitted until it is answered.

    ``after``: a lane that takes precedence. As long as that one has requests, this one pauses after each batch: both
    compete for the interpreter and the processor, and the other's answers are due sooner.
    """

    def __init__(self, name: str, engine: Engine, manager: WeightsManager, num_workers: int, max_batch_weight: float,
                 max_waiting: int, max_wait_s: float, *, after: Lane | None = None,
                 cost: CostModel | None = None) -> None:  # fmt: skip
        self._after = after
        self.name, self.engine, self._manager = name, engine, manager
        self._max_batch_weight, self._max_waiting, self._max_wait_s = max_batch_weight, max_waiting, max_wait_s
        self._cost, self._num_workers = cost or CostModel(), num_workers
        self._changed = threading.Condition()
        self._queue: deque[Waiting] = deque()
        self._is_closing = False
        self._weight = 0.0
        self._num_admitted = 0
        self.num_shed = 0
        self._workers = [
            threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(num_workers)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def num_waiting(self) -> int:
        """Requests that no worker has taken yet."""
        return len(self._queue)

    @property
    def is_busy(self) -> bool:
        """Whether there are requests to answer."""
        return self._num_admitted > 0

    def expected_wait_s(self) -> float:
        """How long the requests admitted so far will take."""
        with self._changed:
            return self._wait_s()

    def _wait_s(self) -> float:
        # A request that weighs more than a batch may is a batch of its own, not several.
        num_batches = min(self._num_admitted, self._weight / self._max_batch_weight)
        return self._cost.seconds(self._weight, num_batches) / self._num_workers

    def admit(self, weight: float) -> None:
        """Count a request, or raise `OverloadedError`. If no other request is ahead of it, it is never refused."""
        with self._changed:
            wait_s = self._wait_s()
            if self._num_admitted and (wait_s > self._max_wait_s or self._num_admitted > self._max_waiting):
                self.num_shed += 1
                raise OverloadedError(
                    f"the requests before this one take about {wait_s:.1f} s ({self._num_admitted} of them); ask again "
                    "later, send fewer, or add servers", wait_s,
                )  # fmt: skip
            self._num_admitted += 1
            self._weight += weight

    def put(self, waiting: Sequence[Waiting]) -> None:
        """Queue requests that were admitted."""
        with self._changed:
            self._queue.extend(waiting)
            self._changed.notify(1)

    def close(self) -> None:
        """Answer the requests that are waiting, then stop the workers."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while batch := self._take():
            began, weight = time.perf_counter(), sum(each.weight for each in batch)
            live = [each for each in batch if not each.future.cancelled()]
            self._deliver(live, self._safely(live))
            took_s = time.perf_counter() - began
            rest_s = min(MOST_REST_S, RESTS * took_s) if self._after is not None and self._after.is_busy else 0.0
            with self._changed:
                self._cost.note(weight, took_s + rest_s)
                self._weight -= weight
                self._num_admitted -= len(batch)
            del batch, live  # keep nothing of these requests alive while waiting for the next
            time.sleep(rest_s)

    def _take(self) -> list[Waiting]:
        """The requests that are waiting, up to a batch; waits for the first; empty once the lane is closed."""
        with self._changed:
            while not self._queue and not self._is_closing:
                self._changed.wait()
            batch: list[Waiting] = []
            weight = 0.0
            while self._queue and (not batch or weight + self._queue[0].weight <= self._max_batch_weight):
                batch.append(self._queue.popleft())
                weight += batch[-1].weight
            if self._queue:
                self._changed.notify(1)
            return batch

    def _safely(self, batch: Sequence[Waiting]) -> list[Outcome]:
        """The batch's outcomes; whatever happens, every request gets one, and the thread survives."""
        try:
            return self.outcomes([each.job for each in batch])
        except Exception as error:
            logger.exception("a batch failed")
            return [error for _ in batch]

    def outcomes(self, jobs: Sequence[Job]) -> list[Outcome]:
        """An answer or an error for each job, all from one version."""
        with self._manager.hold() as version:
            if version is None:
                unready = NotReadyError("no version of the weights has arrived yet; wait until /readyz says so")
                return [unready for _ in jobs]
            prepared = [_prepared(job, version) for job in jobs]
            fine = [one for each in prepared if isinstance(each, list) for one in each]
            try:
                found = iter(self.engine.answer(version, fine) if fine else [])
            except Exception as error:
                if len(jobs) == 1:
                    logger.exception("a request failed")
                    return [error]
                # One bad request must not fail the others: answer each alone.
                return [outcome for job in jobs for outcome in self.outcomes([job])]
            return [
                each if isinstance(each, Exception) else _body(job, version, [next(found) for _ in each])
                for job, each in zip(jobs, prepared, strict=True)
            ]

    @staticmethod
    def _deliver(batch: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
        """Deliver the outcomes, with one call into each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[bytes], Outcome]]] = {}
        for waiting, outcome in zip(batch, outcomes, strict=True):
            by_loop.setdefault(waiting.loop, []).append((waiting.future, outcome))
        for loop, pairs in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the clients with it
                loop.call_soon_threadsafe(_settle, pairs)


def _prepared(job: Job, version: HeldVersion) -> list[Request] | Exception:
    try:
        return job.prepare(version)
    except ServingError as error:
        return error
    except Exception as error:
        logger.exception("a request could not be prepared")
        return error


def _body(job: Job, version: HeldVersion, found: Sequence[Result]) -> Outcome:
    try:
        return job.body(version, found)
    except ServingError as error:
        return error
    except Exception as error:
        logger.exception("an answer could not be written")
        return error


def _settle(pairs: Sequence[tuple[asyncio.Future[bytes], Outcome]]) -> None:
    for future, outcome in pairs:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
