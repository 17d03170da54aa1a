"""Which groups of items come next, in plain NumPy.

Items that were chosen too rarely to be counted one by one belong to groups that were not: a category, a brand. Each
column of groups has a prediction of its own, a mixture of three parts: what is usual (all choices so far), what
followed the group of the user's last choice, and the groups of the user's last choices. A part's share is how often it
predicted what was chosen, by its responsibility for it (online expectation maximisation; Cappé & Moulines, JRSS B
2009), so a column that says nothing leaves the scores as they are. The feature ``lift`` of an item is the logarithm of
how much likelier than usual that makes its groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.memory.arrays import Float64, Int32, Int64, MemoryArrays
from kernels.memory.events import MemoryEvents
from kernels.memory.past import MemoryPast

LAGS, OWN_DECAY, SHARE_DECAY = 20, 0.9, 0.998
"""How many of the user's last choices count, by which factor each counts less than the one after it, and by which a
part's share fades with every choice."""
SEEN = 1
"""The clock's entry that says what one choice is worth in the counts."""


def lift_of(memory: MemoryArrays, rows: slice | Int64, past: MemoryPast) -> Float64:
    """(rows,) the logarithm of how much likelier than usual a user's past makes the groups of items."""
    lift = np.zeros(len(memory.group[rows]))
    for column in range(memory.num_columns):
        part_3G = _parts(memory, column, past)
        group = memory.group[rows, column]
        lift += np.where(group > 0, np.log(_share(memory, column) @ part_3G)[group], 0.0)
    return lift


def groups_of(memory: MemoryArrays, events: MemoryEvents, r: int) -> Int32:
    """(C,) the groups of event r's item: as the event tells them, or else as they are known."""
    known_C: Int32 = memory.group[events.target_R[r]]
    if events.group_RC is None:
        return known_C
    return np.asarray(np.where(events.group_RC[r] > 0, events.group_RC[r], known_C), np.int32)


def parts_of(memory: MemoryArrays, group_C: Int32, past: MemoryPast) -> Float64:
    """(C, 3) by which share each part of a column's mixture predicted its group; zeros where nothing was predicted."""
    part_C3 = np.zeros((memory.num_columns, 3))
    for column, group in enumerate(group_C.tolist()):
        if group and memory.group[past.row_P[-LAGS:], column].any():
            part_3 = _share(memory, column) * _parts(memory, column, past)[:, group]
            part_C3[column] = part_3 / part_3.sum()
    return part_C3


def learn_groups(memory: MemoryArrays, part_C3: Float64, weight: float) -> None:
    """Count which part of each column's mixture was right (`parts_of`)."""
    for column in np.flatnonzero(part_C3.any(axis=1)).tolist():
        share_3 = memory.group_share[column]
        share_3[:] = share_3 * SHARE_DECAY + weight * part_C3[column]


def count_groups(memory: MemoryArrays, target: int, past: MemoryPast, unit: float) -> None:
    """Count the groups of a choice; ``unit``: what it counts."""
    for column, group in enumerate(memory.group[target].tolist()):
        if not group:
            continue
        memory.group_seen[column, group] += unit
        memory.group_total[column] += unit
        last = int(memory.group[past.row_P[-1], column]) if len(past.row_P) else 0
        if last:
            _count_next(memory.group_next[column, last], memory.group_count[column, last], group, unit)


def _count_next(next_N: Int32, count_N: np.ndarray[Any, Any], group: int, unit: float) -> None:
    """Count one more sighting of a group; if there is no room, as `kernels.memory.counting` does it for neighbours."""
    found = np.flatnonzero((next_N == group) & (count_N > 0))
    least = int(np.argmin(count_N))
    if len(found):
        count_N[found[0]] += unit
    elif unit < count_N[least]:
        count_N[least] *= 1.0 - unit / count_N[least]
    else:
        next_N[least], count_N[least] = group, unit


def _share(memory: MemoryArrays, column: int) -> Float64:
    """(3,) the shares of the parts. Each part has one more sighting, so none is lost for ever."""
    count_3 = memory.group_share[column].astype(float) + 1.0
    return np.asarray(count_3 / count_3.sum())


def _parts(memory: MemoryArrays, column: int, past: MemoryPast) -> Float64:
    """(3, G) how likely each part makes each group, relative to what is usual; one if it knows nothing of the user."""
    part_3G = np.ones((3, memory.num_groups))
    own_P = memory.group[past.row_P[-LAGS:], column][::-1]
    if not own_P.any():
        return part_3G
    unit, last = float(memory.clock[SEEN]), int(own_P[0])
    usual_G = (memory.group_seen[column].astype(float) + unit) / (float(memory.group_total[column]) + unit)
    if last:
        count_N = memory.group_count[column, last].astype(float)
        next_G = np.bincount(memory.group_next[column, last], count_N, memory.num_groups)
        part_3G[1] = (next_G / usual_G + unit) / (count_N.sum() + unit)
    own_G = np.bincount(own_P, np.where(own_P > 0, OWN_DECAY ** np.arange(len(own_P)), 0.0), memory.num_groups)
    part_3G[2] = own_G / own_G.sum() / usual_G
    return part_3G
