"""How much may be copied between two steps: as much as takes a quarter of a step's time.

A step may take twice its median while a checkpoint or a version is made. The rest of that goes to the threads that
write and publish the copies, which share processor, memory and interpreter with training. After a step that was much
longer than the median (it compared a choice with a large catalogue), nothing is copied until the next one.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

SHARE = 0.25
"""Share of a median step's time for all that is copied between two steps."""
LEAST_BYTES = 1 << 20
LONG = 1.5
"""A step is long if it takes this many times the median."""
NUM_STEPS = 64


class Pace:
    """Measures steps and copies. For the training thread only."""

    def __init__(self) -> None:
        self._steps_s = deque[float](maxlen=NUM_STEPS)
        self._bytes_a_s = 2e8
        self._is_late = False

    def stepped(self, seconds: float) -> None:
        """Note how long a step took."""
        self._is_late = bool(self._steps_s) and seconds > LONG * self._step_s
        self._steps_s.append(seconds)

    def turned(self) -> None:
        """Note that everything else that a turn had to do is done."""
        self._is_late = False

    @property
    def _step_s(self) -> float:
        return statistics.median(self._steps_s) if self._steps_s else 0.0

    def copy(self, advance: Callable[[int], bool], parts: int) -> bool:
        """Call ``advance`` with a budget of bytes, one of ``parts``; returns its answer: whether the rest is small. Not
        after a long step: then the answer is False."""
        if self._is_late:
            return False
        budget = max(LEAST_BYTES, int(SHARE * self._step_s * self._bytes_a_s)) // parts
        started = time.perf_counter()
        is_ready = advance(budget)
        seconds = time.perf_counter() - started
        if not is_ready and seconds > 0:
            self._bytes_a_s += 0.2 * (budget / seconds - self._bytes_a_s)
        return is_ready
