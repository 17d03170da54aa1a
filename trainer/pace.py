"""How much may be copied between two steps: as long as it takes a quarter of a step's time.

The rest of what a step may lose, up to twice its median, is for the threads that write and publish what was copied:
they share processor, memory and interpreter with it.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

SHARE = 0.25
"""Of a median step's time, for all that is copied between two steps."""
LEAST_BYTES = 1 << 20
NUM_STEPS = 64


class Pace:
    """Measures steps and copies; the training thread's own."""

    def __init__(self) -> None:
        self._steps_s = deque[float](maxlen=NUM_STEPS)
        self._bytes_a_s = 2e8

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self._steps_s.append(seconds)

    def copy(self, advance: Callable[[int], bool], parts: int) -> bool:
        """Let ``advance`` copy its share of what fits, one of ``parts``; what it says: whether the rest is small."""
        step_s = statistics.median(self._steps_s) if self._steps_s else 0.0
        budget = max(LEAST_BYTES, int(SHARE * step_s * self._bytes_a_s)) // parts
        started = time.perf_counter()
        is_ready = advance(budget)
        seconds = time.perf_counter() - started
        if not is_ready and seconds > 0:
            self._bytes_a_s += 0.2 * (budget / seconds - self._bytes_a_s)
        return is_ready
