"""Which of many log lines of one kind are written: anyone may write to a topic, and the log must not grow with it."""

from __future__ import annotations

NUM_LOGGED = 10


def is_told(num_so_far: int) -> bool:
    """Whether to log the ``num_so_far``-th: the first ten, and after that one in a thousand."""
    return num_so_far <= NUM_LOGGED or num_so_far % 1000 == 0
