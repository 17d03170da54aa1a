"""At what time of day items are chosen, in plain NumPy.

Every choice is counted in the two of `NUM_HOURS` parts of the day whose middles are next to it, more in the nearer one.
The feature ``hourly`` of an item is the logarithm of how much more often than at all times of day it is chosen at this
one, smoothed by `PRIOR` choices. This time of day is that of the latest event so far, so the feature is the same for
all users; an event that arrives after later ones does not set it back.
"""

from __future__ import annotations

import numpy as np

from kernels.memory.arrays import NUM_HOURS, Float64, Int64, MemoryArrays
from kernels.memory.past import DAY_MS

PRIOR = 5.0
SEEN, NEWEST_MS = 1, 9
"""The clock's entries that say what one choice is worth in the counts, and the time of the latest event in ms; earlier
builds kept its time of day there, which any event is later than."""


def hourly_of(memory: MemoryArrays, rows: slice | Int64) -> Float64:
    """(rows,) the feature of these rows; zeros where no times of day are counted."""
    if not memory.num_hours:
        return np.zeros(len(memory.seen[rows]))
    hour_VH = memory.hour[rows] / memory.clock[SEEN]
    first, second, share = parts_at(int(memory.clock[NEWEST_MS]))
    now_V = NUM_HOURS * ((1.0 - share) * hour_VH[:, first] + share * hour_VH[:, second])
    return np.asarray(np.log((now_V + PRIOR) / (hour_VH.sum(axis=1) + PRIOR)))


def parts_at(time_ms: int) -> tuple[int, int, float]:
    """Two parts of the day, and the share of a choice at this time that counts for the second of them."""
    width = DAY_MS // NUM_HOURS
    part, into = divmod((time_ms - width // 2) % DAY_MS, width)
    return part, (part + 1) % NUM_HOURS, into / width


def note_time(memory: MemoryArrays, now_ms: int) -> None:
    """Note when an event was, unless a later one has come before it."""
    if memory.num_hours and (memory.clock[NEWEST_MS] == 0.0 or now_ms > memory.clock[NEWEST_MS]):
        memory.clock[NEWEST_MS] = now_ms


def count_hour(memory: MemoryArrays, target: int, now_ms: int, unit: float) -> None:
    """Count a choice at this time; ``unit``: what it counts."""
    if memory.num_hours:
        first, second, share = parts_at(now_ms)
        memory.hour[target, first] += unit * (1.0 - share)
        memory.hour[target, second] += unit * share
