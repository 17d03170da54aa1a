"""A few threads that answer what waits, together: requests that arrive while others are computed share the next turn.

Nobody waits for company: a lone request is taken at once.
"""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from serving.engine import Ask, Engine, Found
from serving.errors import NotReadyError, OverloadedError
from serving.holder import HeldVersion, VersionHolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What was found, with the names of the items, and by which version."""

    found: Found
    names: list[int | str | None]
    which: tuple[int, int]
    freshness_s: float
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    ask: Ask
    future: Future[Answered]


class Batcher:
    """Takes asks, gives futures. `close` finishes what waits."""

    def __init__(
        self, engine: Engine, holder: VersionHolder, *, num_workers: int, max_batch: int, max_waiting: int
    ) -> None:
        self._engine, self._holder, self._max_batch = engine, holder, max_batch
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue(max_waiting)
        self._workers = [
            threading.Thread(target=self._work, name=f"engine-{n}", daemon=True) for n in range(num_workers)
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, ask: Ask) -> Future[Answered]:
        """Queue an ask. Raises `OverloadedError` when too many wait."""
        future: Future[Answered] = Future()
        try:
            self._waiting.put_nowait(_Waiting(ask, future))
        except queue.Full:
            raise OverloadedError(
                f"more than {self._waiting.maxsize} requests are waiting; send fewer, or add servers"
            ) from None
        return future

    @property
    def num_waiting(self) -> int:
        """Requests that no worker has taken yet."""
        return self._waiting.qsize()

    def close(self) -> None:
        """Answer what waits, then end the workers."""
        for _ in self._workers:
            self._waiting.put(None)
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, ending = [first], False
            while len(batch) < self._max_batch and not self._waiting.empty():
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ending = True
                    break
                batch.append(more)
            self._answer([each for each in batch if each.future.set_running_or_notify_cancel()])
            if ending:
                return

    def _answer(self, batch: list[_Waiting]) -> None:
        with self._holder.hold() as version:
            if version is None:
                self._fail(
                    batch, NotReadyError("no version of the weights has arrived yet; wait until /readyz says so")
                )
                return
            try:
                answers = [
                    self._named(version, found) for found in self._engine.answer(version, [each.ask for each in batch])
                ]
            except Exception as error:
                if len(batch) > 1:  # one bad apple must not spoil the others
                    for each in batch:
                        self._answer([each])
                    return
                logger.exception("a request failed")
                self._fail(batch, error)
                return
        for each, answer in zip(batch, answers, strict=True):
            each.future.set_result(answer)

    @staticmethod
    def _fail(batch: list[_Waiting], error: Exception) -> None:
        for each in batch:
            each.future.set_exception(error)

    @staticmethod
    def _named(version: HeldVersion, found: Found) -> Answered:
        names = [version.names.get(key) for key in found.items.tolist()]
        return Answered(found, names, version.which, version.freshness_s, version.network.config.kinds)
