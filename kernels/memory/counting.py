"""What the memory counts of an event, in plain NumPy."""

from __future__ import annotations

import numpy as np

from kernels.memory.arrays import CHANGED, NUM_HEATS, RECENT, Int32, MemoryArrays
from kernels.memory.events import MemoryRules
from kernels.memory.features import BEGUN, CHOICES, CONTINUED, COUNTED, EVENTS, HEAT, REPEATS, SEEN, visit_share
from kernels.memory.groups import count_groups
from kernels.memory.hours import count_hour, note_time
from kernels.memory.pairs import count_pairs, rescale_pairs
from kernels.memory.past import MemoryPast

DIRECT_COUNT_DECAY = 0.05
RESCALE_AT = 1e12


def count_choice(memory: MemoryArrays, past: MemoryPast, *, is_repeat: bool, rules: MemoryRules) -> None:
    """Count one more choice: a repeat or not, and after ``past``, if there is any, the first of a visit or not."""
    decay = 0.5 ** (1.0 / rules.repeat_half_life)
    memory.clock[REPEATS] = memory.clock[REPEATS] * decay + float(is_repeat)
    memory.clock[CHOICES] = memory.clock[CHOICES] * decay + 1.0
    if len(past.row_P):
        memory.clock[[BEGUN, CONTINUED]] *= decay
        memory.clock[CONTINUED if past.in_visit_P[-1] else BEGUN] += 1.0


def meet(
    memory: MemoryArrays,
    target: int,
    group_C: Int32,
    past: MemoryPast | None,
    num_rows: int,
    rules: MemoryRules,
    now_ms: int,
    weight: float = 1.0,
) -> None:
    """Count one more event, at ``now_ms``: a choice after ``past``, or (None) one that was only met; ``group_C``: its
    groups."""
    now = int(memory.clock[EVENTS])
    if memory.first[target] < 0 or (past is not None and memory.last[target] < 0):
        memory.first[target] = now
    if past is not None:
        memory.last[target] = now
        memory.recent[now % RECENT] = target
    memory.dirty[target] = CHANGED
    memory.group[target] = group_C
    if past is not None:
        _count(memory, target, past, num_rows, rules, now_ms, weight)
    memory.clock[EVENTS] += 1
    note_time(memory, now_ms)


def _count(
    memory: MemoryArrays, target: int, past: MemoryPast, num_rows: int, rules: MemoryRules, now_ms: int, weight: float
) -> None:
    _rescale(memory, num_rows)
    lags, decay = COUNTED
    unit = weight * float(np.float32(memory.clock[SEEN]))
    for lag, row in enumerate(past.row_P[::-1][:lags].tolist()):
        if row != target:
            direct = unit * DIRECT_COUNT_DECAY**lag * visit_share(memory, past, lag)
            _sight(memory, row, target, unit * decay**lag, 0.0, direct)
            _sight(memory, target, row, 0.0, unit * decay**lag, 0.0)
    count_groups(memory, target, past, unit)
    count_pairs(memory, target, past, unit)
    count_hour(memory, target, now_ms, unit)
    memory.seen[target] += unit
    memory.clock[SEEN] *= 2.0 ** (1.0 / rules.seen_half_life)
    for heat, half_life in enumerate(rules.heat_half_lives):
        memory.heat[heat, target] += weight * memory.clock[HEAT + heat]
        memory.clock[HEAT + heat] *= 2.0 ** (1.0 / half_life)


def _sight(memory: MemoryArrays, row: int, other: int, after: float, before: float, direct: float) -> None:
    """Count one more sighting of ``other`` beside ``row``.

    If the row is full, its weakest neighbour is reduced, and replaced by one that outweighs what is left of it (Misra &
    Gries, 1982, but only for the weakest).
    """
    memory.dirty[row] = CHANGED
    num = int(memory.num_neighbours[row])
    found = np.flatnonzero(memory.neighbour_row[row, :num] == other)
    if len(found):
        memory.after[row, found[0]] += after
        memory.before[row, found[0]] += before
        memory.direct[row, found[0]] += direct
        _mark(memory, row, int(found[0]))
        return
    at = num
    if num == memory.width:
        both = memory.after[row] + memory.before[row]
        at = int(np.argmin(both))
        if after + before < both[at]:
            left = 1.0 - (after + before) / float(both[at])
            memory.after[row, at] *= left
            memory.before[row, at] *= left
            memory.direct[row, at] *= left
            _mark(memory, row, at)
            return
    else:
        memory.num_neighbours[row] += 1
    memory.neighbour_row[row, at] = other
    memory.after[row, at], memory.before[row, at], memory.weight[row, at] = after, before, 0.0
    memory.direct[row, at] = direct
    _mark(memory, row, at)


def _mark(memory: MemoryArrays, row: int, at: int) -> None:
    memory.moved[row, at // 8] |= 1 << at % 8


def _rescale(memory: MemoryArrays, num_rows: int) -> None:
    """Rescale counts before their unit outgrows a float."""
    if memory.clock[SEEN] > RESCALE_AT:
        for counts in (
            memory.seen, memory.after, memory.before, memory.direct, memory.hour,
            memory.group_seen, memory.group_count, memory.group_total,
        ):  # fmt: skip
            counts *= 1.0 / memory.clock[SEEN]
        rescale_pairs(memory)
        memory.dirty[:num_rows] = CHANGED
        memory.moved[:num_rows] = 255
        memory.clock[SEEN] = 1.0
    for heat in range(NUM_HEATS):
        if memory.clock[HEAT + heat] > RESCALE_AT:
            memory.dirty[(memory.heat[heat] != 0) & (memory.first >= 0)] = CHANGED
            memory.heat[heat] *= 1.0 / memory.clock[HEAT + heat]
            memory.clock[HEAT + heat] = 1.0
