"""How fast the trainer learns, and how fast examples arrive."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from trainer.lag.progress import Progress
from wire.cluster import ClusterState

WINDOW_S = 15.0
"""The window over which rates are averaged."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Counts at one moment."""

    at_s: float
    num_interactions: int
    num_steps: int
    learned: dict[int, int]
    """Partition → examples learned."""
    arrived: dict[int, int]
    """Partition → examples that its worker has delivered, if it has reported."""


class Throughput:
    """Rates over the last `WINDOW_S`, from a sample for each message. Examples are counted by their numbers."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()

    def sample(self, progress: Progress, around: ClusterState, now_s: float | None = None) -> dict[str, Any]:
        """The ``throughput`` of a message: rates, and the time until the backlog is learned (None: never)."""
        now_s = time.monotonic() if now_s is None else now_s
        newest = _Sample(now_s, progress.num_interactions, progress.num_steps, *num_examples(progress, around))
        samples = self._samples
        if samples and (
            _gain(samples[-1].learned, newest.learned) < 0 or _gain(samples[-1].arrived, newest.arrived) < 0
        ):
            samples.clear()  # the trainer went back
        samples.append(newest)
        while len(samples) > 2 and now_s - samples[1].at_s >= WINDOW_S:
            samples.popleft()
        first, seconds = samples[0], max(newest.at_s - samples[0].at_s, 1e-9)
        is_known = len(samples) > 1
        learning = sum(_rates([(each.at_s, each.learned) for each in samples]).values())
        rates = _rates([(each.at_s, each.arrived) for each in samples])
        arriving = sum(rates.values())
        num_waiting = sum(num - newest.learned[partition] for partition, num in newest.arrived.items())
        is_complete = newest.arrived.keys() <= rates.keys()
        return {
            "interactions_per_s": _rate(newest.num_interactions - first.num_interactions, seconds, is_known),
            "steps_per_s": _rate(newest.num_steps - first.num_steps, seconds, is_known),
            "examples_per_s": round(learning, 2),
            "arriving_examples_per_s": round(arriving, 2),
            "catch_up_s": catch_up_s(num_waiting, learning, arriving if is_complete else float("inf")),
        }


def num_examples(progress: Progress, around: ClusterState) -> tuple[dict[int, int], dict[int, int]]:
    """Partition → how many of its examples are learned; → how many its worker has delivered, if it has reported."""
    learned = {partition: position.next_number for partition, position in progress.positions.items()}
    arrived = {
        partition: max(num, around.workers[partition].relayed_number + 1)
        for partition, num in learned.items()
        if partition in around.workers
    }
    return learned, arrived


def _rates(counts: list[tuple[float, dict[int, int]]]) -> dict[int, float]:
    """Partition → how many more there are per second, since the first of these moments that has it: a worker that first
    reports late would otherwise seem to deliver nothing until the window begins after that. Partitions that only the
    last moment has are left out, since their rate is not known."""
    (last_s, newest), firsts = counts[-1], dict[int, tuple[float, int]]()
    for at_s, nums in counts[:-1]:
        for partition, num in nums.items():
            firsts.setdefault(partition, (at_s, num))
    return {
        partition: (num - firsts[partition][1]) / max(last_s - firsts[partition][0], 1e-9)
        for partition, num in newest.items()
        if partition in firsts
    }


def _gain(before: dict[int, int], after: dict[int, int]) -> int:
    """How many more there are, in the partitions that were counted before: others would seem to begin just now."""
    return sum(num - before[partition] for partition, num in after.items() if partition in before)


def catch_up_s(num_waiting: int, learning_per_s: float, arriving_per_s: float) -> float | None:
    """Seconds until nothing waits, at these rates; None if the trainer falls behind or stands still, or if the rate at
    which examples arrive is not known (infinite)."""
    if num_waiting == 0:
        return 0.0
    gain = learning_per_s - arriving_per_s
    return round(num_waiting / gain, 1) if gain > 0 else None


def _rate(num: int, seconds: float, is_known: bool) -> float:
    return round(max(0, num) / seconds, 3) if is_known else 0.0
