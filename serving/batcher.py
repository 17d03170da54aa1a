"""A few threads that answer what waits, together: requests that arrive while others are computed share the next turn.

Nobody waits for company: a lone request is taken at once. Requests that the event loop reads in one go are handed over
in one go, so a batch fills without waiting. There are two lanes, each with threads of its own, so that a long list of
candidates delays nobody's short question; and a lane refuses what it could not answer soon (`OverloadedError`), going
by what it has measured of itself.
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
"""Jobs that weigh more go to the lane of the long ones."""
Outcome = bytes | Exception


class Job(Protocol):
    """A request on its way. Both halves run on a lane's thread, under one version, which is held from start to end."""

    @property
    def weight(self) -> float:
        """How much work it is; 1: a recommendation for one user."""
        ...

    def prepare(self, version: HeldVersion, /) -> list[Request]:
        """What the engine shall find out."""
        ...

    def body(self, version: HeldVersion, found: Sequence[Result], /) -> bytes:
        """The answer as JSON."""
        ...


class CostModel:
    """Seconds of a batch as ``fixed + per_weight x weight``: least squares over batches, older ones counting less.

    Says nothing before `ENOUGH` batches, and takes no batch for more than ten times what it expected: one that fell
    into a pause of the machine must not turn requests away.
    """

    DECAY, ENOUGH = 0.98, 10

    def __init__(self) -> None:
        self._sums = [0.0] * 5
        self._num = 0

    def note(self, weight: float, seconds: float) -> None:
        """A batch that weighed so much took so long."""
        self._num += 1
        if expected_s := self.seconds(weight, weight):
            seconds = min(seconds, 10 * expected_s)
        new = (1.0, weight, weight * weight, seconds, weight * seconds)
        self._sums = [self.DECAY * old + each for old, each in zip(self._sums, new, strict=True)]

    def seconds(self, weight: float, max_batch_weight: float) -> float:
        """How long so much work takes in full batches; 0 before enough was measured."""
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
    """Takes jobs, gives the bytes of their answers. `close` finishes what waits."""

    def __init__(
        self, engine: Engine, holder: WeightsManager, *, num_workers: int, max_batch: int, max_waiting: int,
        max_wait_s: float = 1.0,
    ) -> None:  # fmt: skip
        self._short = Lane("short", engine, holder, num_workers, float(max_batch), max_waiting, max_wait_s)
        self._long = Lane("long", engine, holder, 1, LONG_WEIGHT, max_waiting, max_wait_s, after=self._short)
        self._arriving = threading.local()

    async def answer(self, job: Job) -> bytes:
        """The answer's body. Raises `OverloadedError` at once when it would take too long, and what the job raises."""
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
        """Hand over at the end of this turn of the loop everything that came in it."""
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
        """Requests refused because too much was waiting."""
        return self._short.num_shed + self._long.num_shed

    def expected_wait_s(self) -> dict[str, float]:
        """By lane: how long a request would wait now."""
        return {lane.name: lane.expected_wait_s() for lane in (self._short, self._long)}

    def close(self) -> None:
        """Answer what waits, then end the workers."""
        self._short.close()
        self._long.close()


class Lane:
    """A queue and its threads. Weights are admitted when a request comes and let go when it is answered.

    ``after``: a lane whose requests go first. As long as there are any, this one rests after each batch for as long as
    the batch took: both want the interpreter and the processor, and the other's answers are due sooner.
    """

    def __init__(self, name: str, engine: Engine, holder: WeightsManager, num_workers: int, max_batch_weight: float,
                 max_waiting: int, max_wait_s: float, after: Lane | None = None) -> None:  # fmt: skip
        self._after = after
        self.name, self.engine, self._holder = name, engine, holder
        self._max_batch_weight, self._max_waiting, self._max_wait_s = max_batch_weight, max_waiting, max_wait_s
        self._cost, self._num_workers = CostModel(), num_workers
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
        """Whether there is anything to answer."""
        return self._num_admitted > 0

    def expected_wait_s(self) -> float:
        """How long what is here will take."""
        with self._changed:
            return self._cost.seconds(self._weight, self._max_batch_weight) / self._num_workers

    def admit(self, weight: float) -> None:
        """Count a request in, or raise `OverloadedError`. One that finds nothing before it is never refused."""
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
        """Queue what was admitted."""
        with self._changed:
            self._queue.extend(waiting)
            self._changed.notify(1)

    def close(self) -> None:
        """Answer what waits, then end the workers."""
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
            del batch, live  # nothing of a request outlives it while the next is waited for
            time.sleep(rest_s)

    def _take(self) -> list[_Waiting]:
        """What waits, up to a batch; waits for the first; empty at the end."""
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
        """Whatever happens, everybody is answered, and the thread lives on."""
        try:
            return self.outcomes([each.job for each in batch])
        except Exception as error:
            logger.exception("a batch failed")
            return [error for _ in batch]

    def outcomes(self, jobs: Sequence[Job]) -> list[Outcome]:
        """An answer or an error for each job, all under one version."""
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
                # One bad apple must not spoil the others.
                return [outcome for job in jobs for outcome in self.outcomes([job])]
            return [
                each if isinstance(each, Exception) else _body(job, version, [next(found) for _ in each])
                for job, each in zip(jobs, asks, strict=True)
            ]

    @staticmethod
    def _deliver(batch: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> None:
        """One call into each event loop for all of its requests."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[bytes], Outcome]]] = {}
        for waiting, outcome in zip(batch, outcomes, strict=True):
            by_loop.setdefault(waiting.loop, []).append((waiting.future, outcome))
        for loop, pairs in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever asked
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
