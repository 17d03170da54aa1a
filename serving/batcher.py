"""A few threads that answer requests in batches: requests that arrive while others are computed form the next batch.

No request waits for others to fill a batch: a lone one is taken at once. Requests that the event loop reads in one
iteration are handed over together, so batches form without waiting. There are two lanes with their own threads, so that
a long list of candidates does not delay short requests; and a lane refuses a request that it could not answer soon
(`OverloadedError`), by what it has measured of itself.
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

from serving.engine import Engine, Request, Result
from serving.errors import NotReadyError, OverloadedError, ServingError
from serving.holder import HeldVersion, WeightsManager

logger = logging.getLogger(__name__)
MOST_REST_S = 0.05
LONG_WEIGHT = 4.0
"""Jobs that weigh more go to the long lane."""
Outcome = bytes | Exception


class Job(Protocol):
    """A request being answered. Both halves run on a lane's thread, with one version, held from start to end."""

    @property
    def weight(self) -> float:
        """How much work it is; 1 is a recommendation for one user."""
        ...

    def prepare(self, version: HeldVersion, /) -> list[Request]:
        """What to ask the engine."""
        ...

    def body(self, version: HeldVersion, found: Sequence[Result], /) -> bytes:
        """The answer as JSON."""
        ...


class CostModel:
    """Seconds per batch as ``fixed + per_weight x weight``: least squares over batches, with older ones counting less.

    Predicts nothing before `ENOUGH` batches, and counts no batch as more than ten times what it predicted: a batch
    during which the machine paused must not cause requests to be refused.
    """

    DECAY, ENOUGH = 0.98, 10

    def __init__(self) -> None:
        self._sums = [0.0] * 5
        self._num = 0

    def note(self, weight: float, seconds: float) -> None:
        """Note how long a batch of this weight took."""
        self._num += 1
        if expected_s := self.seconds(weight, weight):
            seconds = min(seconds, 10 * expected_s)
        new = (1.0, weight, weight * weight, seconds, weight * seconds)
        self._sums = [self.DECAY * old + each for old, each in zip(self._sums, new, strict=True)]

    def seconds(self, weight: float, max_batch_weight: float) -> float:
        """How long work of this weight takes in full batches; 0 before enough was measured."""
        n, w, ww, s, ws = self._sums
        if self._num < self.ENOUGH:
            return 0.0
        spread = n * ww - w * w
        per_weight = (n * ws - w * s) / spread if spread > 1e-9 * n * ww else s / max(w, 1e-9)
        per_weight = min(max(per_weight, 0.0), s / max(w, 1e-9))
        fixed = max(0.0, (s - per_weight * w) / n)
        return fixed * weight / max_batch_weight + per_weight * weight


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    job: Job
    future: asyncio.Future[bytes]
    loop: asyncio.AbstractEventLoop


class Batcher:
    """Takes jobs, returns the bytes of their answers. `close` answers those that are waiting.

    ``cost``: what is already known about the cost of short requests.
    """

    def __init__(
        self, engine: Engine, holder: WeightsManager, *, num_workers: int, max_batch: int, max_waiting: int,
        max_wait_s: float = 1.0, cost: CostModel | None = None,
    ) -> None:  # fmt: skip
        self._short = Lane("short", engine, holder, num_workers, float(max_batch), max_waiting, max_wait_s, cost=cost)
        self._long = Lane("long", engine, holder, 1, LONG_WEIGHT, max_waiting, max_wait_s, after=self._short)
        self._arriving = threading.local()

    async def answer(self, job: Job) -> bytes:
        """The answer's body. Raises `OverloadedError` at once if it would take too long, and what the job raises."""
        lane = self._long if job.weight > LONG_WEIGHT else self._short
        loop = asyncio.get_running_loop()
        lane.admit(job.weight)
        waiting = _Waiting(job, loop.create_future(), loop)
        if lane is self._long:
            lane.put([waiting])
        else:
            self._gather(waiting, loop)
        return await waiting.future

    def _gather(self, waiting: _Waiting, loop: asyncio.AbstractEventLoop) -> None:
        """Collect what arrives in this iteration of the event loop, and hand it over at its end."""
        together: list[_Waiting] | None = getattr(self._arriving, "together", None)
        if together is None:
            together = self._arriving.together = []
            loop.call_soon(self._hand_over)
        together.append(waiting)

    def _hand_over(self) -> None:
        together, self._arriving.together = self._arriving.together, None
        self._short.put(together)

    @property
    def num_waiting(self) -> int:
        """Requests that no worker has taken yet."""
        return self._short.num_waiting + self._long.num_waiting

    @property
    def num_shed(self) -> int:
        """Requests refused because too many were waiting."""
        return self._short.num_shed + self._long.num_shed

    def expected_wait_s(self) -> dict[str, float]:
        """How long a request would wait at present, by lane."""
        return {lane.name: lane.expected_wait_s() for lane in (self._short, self._long)}

    def close(self) -> None:
        """Answer the requests that are waiting, then stop the workers."""
        self._short.close()
        self._long.close()


class Lane:
    """A queue and its threads. A request's weight counts from when it is admitted until it is answered.

    ``after``: a lane that takes precedence. As long as that one has requests, this one rests after each batch for as
    long as the batch took: both compete for the interpreter and the processor, and the other's answers are due sooner.
    """

    def __init__(self, name: str, engine: Engine, holder: WeightsManager, num_workers: int, max_batch_weight: float,
                 max_waiting: int, max_wait_s: float, *, after: Lane | None = None,
                 cost: CostModel | None = None) -> None:  # fmt: skip
        self._after = after
        self.name, self.engine, self._holder = name, engine, holder
        self._max_batch_weight, self._max_waiting, self._max_wait_s = max_batch_weight, max_waiting, max_wait_s
        self._cost, self._num_workers = cost or CostModel(), num_workers
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
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
            return self._cost.seconds(self._weight, self._max_batch_weight) / self._num_workers

    def admit(self, weight: float) -> None:
        """Count a request, or raise `OverloadedError`. If no other request is ahead of it, it is never refused."""
        with self._changed:
            wait_s = self._cost.seconds(self._weight, self._max_batch_weight) / self._num_workers
            if self._num_admitted and (wait_s > self._max_wait_s or self._num_admitted > self._max_waiting):
                self.num_shed += 1
                raise OverloadedError(
                    f"{self._num_admitted} requests are waiting, for about {wait_s:.1f} s; ask again later, send "
                    "fewer, or add servers", wait_s,
                )  # fmt: skip
            self._num_admitted += 1
            self._weight += weight

    def put(self, waiting: Sequence[_Waiting]) -> None:
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
            began, weight = time.perf_counter(), sum(each.job.weight for each in batch)
            live = [each for each in batch if not each.future.cancelled()]
            self._deliver(live, self._safely(live))
            took_s = time.perf_counter() - began
            rest_s = min(MOST_REST_S, took_s) if self._after is not None and self._after.is_busy else 0.0
            with self._changed:
                self._cost.note(weight, took_s + rest_s)
                self._weight -= weight
                self._num_admitted -= len(batch)
            del batch, live  # keep nothing of these requests alive while waiting for the next
            time.sleep(rest_s)

    def _take(self) -> list[_Waiting]:
        """The requests that are waiting, up to a batch; waits for the first; empty once the lane is closed."""
        with self._changed:
            while not self._queue and not self._is_closing:
                self._changed.wait()
            batch: list[_Waiting] = []
            weight = 0.0
            while self._queue and (not batch or weight + self._queue[0].job.weight <= self._max_batch_weight):
                batch.append(self._queue.popleft())
                weight += batch[-1].job.weight
            if self._queue:
                self._changed.notify(1)
            return batch

    def _safely(self, batch: Sequence[_Waiting]) -> list[Outcome]:
        """The batch's outcomes; whatever happens, every request gets one, and the thread survives."""
        try:
            return self.outcomes([each.job for each in batch])
        except Exception as error:
            logger.exception("a batch failed")
            return [error for _ in batch]

    def outcomes(self, jobs: Sequence[Job]) -> list[Outcome]:
        """An answer or an error for each job, all from one version."""
        with self._holder.hold() as version:
            if version is None:
                unready = NotReadyError("no version of the weights has arrived yet; wait until /readyz says so")
                return [unready for _ in jobs]
            asks = [_prepared(job, version) for job in jobs]
            fine = [ask for each in asks if isinstance(each, list) for ask in each]
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
                for job, each in zip(jobs, asks, strict=True)
            ]

    @staticmethod
    def _deliver(batch: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> None:
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
