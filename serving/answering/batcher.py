"""A few threads that answer requests in batches: requests that arrive while others are computed form the next batch.

No request waits for others to fill a batch: a lone one is taken at once. Requests that the event loop reads in one
iteration are handed over together, so batches form without waiting. There are two lanes with their own threads, so that
a long list of candidates does not delay short requests. From its own measurements, a lane knows which requests it could
not answer soon, and refuses them (`OverloadedError`).
"""

from __future__ import annotations

import asyncio
import threading

from serving.answering.cost import CostModel
from serving.answering.engine import Engine
from serving.answering.lane import Job, Lane, Waiting
from serving.versions.manager import WeightsManager

LONG_WEIGHT = 4.0
"""Jobs that weigh more go to the long lane."""


class Batcher:
    """Takes jobs, returns the bytes of their answers. `close` answers those that are waiting.

    ``cost``: the known cost of short requests, if any.
    """

    def __init__(
        self, engine: Engine, manager: WeightsManager, *, num_workers: int, max_batch: int, max_waiting: int,
        max_wait_s: float = 1.0, cost: CostModel | None = None,
    ) -> None:  # fmt: skip
        self._short = Lane("short", engine, manager, num_workers, float(max_batch), max_waiting, max_wait_s, cost=cost)
        self._long = Lane("long", engine, manager, 1, LONG_WEIGHT, max_waiting, max_wait_s, after=self._short)
        self._arriving = threading.local()

    async def answer(self, job: Job) -> bytes:
        """The answer's body. Raises `OverloadedError` at once if it would take too long, and what the job raises."""
        weight = job.weight
        lane = self._long if weight > LONG_WEIGHT else self._short
        loop = asyncio.get_running_loop()
        lane.admit(weight)
        waiting = Waiting(job, weight, loop.create_future(), loop)
        if lane is self._long:
            lane.put([waiting])
        else:
            self._gather(waiting, loop)
        return await waiting.future

    def _gather(self, waiting: Waiting, loop: asyncio.AbstractEventLoop) -> None:
        """Collect what arrives in this iteration of the event loop, and hand it over at its end."""
        together: list[Waiting] | None = getattr(self._arriving, "together", None)
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
