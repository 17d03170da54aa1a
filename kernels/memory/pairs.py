"""What followed two choices in a row, and what followed a choice with any one between, in plain NumPy.

Both are counted in one hash table: a slot for each pair of rows, where row 0 as the second stands for any. A slot that
another pair wants loses what the newcomer counts, and is given up once it counts no more than that. The features
``pair`` and ``skip`` of an item are log(1 + `SCALE` x its share of what followed), smoothed by one sighting, so that
one already says something. Only the few items that follow a pair more often than all others do have a place, and so
such features: if a newcomer finds none, what it counts is taken from each of them (Misra & Gries, 1982).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kernels.memory.arrays import CHANGED, PAIRED, Float32, Float64, Int32, Int64, MemoryArrays
from kernels.memory.past import MemoryPast

SCALE = 100.0
SEEN = 1
"""The clock's entry that says what one choice is worth in the counts."""


def slots_of(row_N2: Int32, num_pairs: int) -> Int64:
    """(N,) the slots of pairs of rows."""
    first_N, second_N = row_N2.astype(np.uint32).T
    hash_N: NDArray[np.uint32] = first_N * np.uint32(0x9E3779B1) ^ second_N * np.uint32(0x85EBCA77)
    hash_N ^= hash_N >> np.uint32(15)
    hash_N *= np.uint32(0x2C1B3C6D)
    hash_N ^= hash_N >> np.uint32(13)
    return (hash_N & np.uint32(num_pairs - 1)).astype(np.int64)


def paired_of(memory: MemoryArrays, past: MemoryPast, num_rows: int) -> Float64:
    """(2, V) the features of rows that followed the last two choices, and the last but one."""
    feature_2V = np.zeros((len(PAIRED), num_rows))
    for place, rows, count in _followers(memory, past):
        counted = float(count.sum())
        if place:
            counted = max(counted, float(memory.seen[past.row_P[-2]]))
        feature_2V[place, rows] = np.log1p(SCALE * count.astype(float) / (counted + float(memory.clock[SEEN])))
    return feature_2V


def followers(memory: MemoryArrays, past: MemoryPast) -> Int32:
    """The rows that have such features."""
    return np.concatenate([np.zeros(0, np.int32), *(rows for _, rows, _ in _followers(memory, past))])


def count_pairs(memory: MemoryArrays, target: int, past: MemoryPast, unit: float) -> None:
    """Count a choice for what it followed; ``unit``: what it counts."""
    unit = float(np.float32(unit))  # both pairs of a choice may come to one slot, and the same outweighs the same
    for _, pair, slot in _pairs_before(memory, past):
        memory.pair_dirty[slot] = CHANGED
        if _is_claimed(memory, slot, pair, unit):
            _count(memory, slot, target, unit)


def _pairs_before(memory: MemoryArrays, past: MemoryPast) -> Iterator[tuple[int, tuple[int, int], int]]:
    """The pairs that come before a choice after ``past``, and their slots: 0 for the last two choices, 1 for the last
    but one. None if there were fewer."""
    if not memory.num_pairs or len(past.row_P) < len(PAIRED):
        return
    before, last = past.row_P[-2:].tolist()
    for place, pair in enumerate(((before, last), (before, 0))):
        yield place, pair, int(slots_of(np.array([pair], np.int32), memory.num_pairs)[0])


def _followers(memory: MemoryArrays, past: MemoryPast) -> Iterator[tuple[int, Int32, Float32]]:
    """What followed each of these pairs that has its slot: rows, and their counts."""
    for place, pair, slot in _pairs_before(memory, past):
        if tuple(memory.pair_row[slot].tolist()) == pair:
            used = memory.pair_count[slot] > 0
            yield place, memory.pair_next[slot, used], memory.pair_count[slot, used]


def _is_claimed(memory: MemoryArrays, slot: int, pair: tuple[int, int], unit: float) -> bool:
    """Give the slot to the pair, unless another one has it that counts more; that is then reduced."""
    if tuple(memory.pair_row[slot].tolist()) == pair:
        return True
    memory.pair_moved[slot] = 255
    if unit < (counted := float(memory.pair_count[slot].sum())):
        memory.pair_count[slot] *= 1.0 - unit / counted
        return False
    memory.pair_row[slot] = pair
    memory.pair_next[slot] = 0
    memory.pair_count[slot] = 0.0
    return True


def _count(memory: MemoryArrays, slot: int, target: int, unit: float) -> None:
    """Count one more sighting of what follows a pair; if there is no room, all others lose as much."""
    next_N, count_N = memory.pair_next[slot], memory.pair_count[slot]
    found, at = np.flatnonzero((next_N == target) & (count_N > 0)), int(np.argmin(count_N))
    if len(found):
        count_N[found[0]] += unit
        memory.pair_moved[slot] |= 1 << int(found[0])
    elif count_N[at] > 0:
        taken = min(unit, float(count_N[at]))
        count_N -= taken
        memory.pair_moved[slot] = 255
        if unit > taken:
            next_N[at], count_N[at] = target, unit - taken
    else:
        next_N[at], count_N[at] = target, unit
        memory.pair_moved[slot] |= 1 << at


def forget_pairs(memory: MemoryArrays, gone_V: NDArray[np.bool_]) -> None:
    """Empty the slots of rows that are gone, and take such rows out of what followed others."""
    is_gone_S2, is_lost_SN = ((rows > 0) & gone_V[rows] for rows in (memory.pair_row, memory.pair_next))
    is_gone_S = is_gone_S2.any(axis=1)
    is_lost_SN[is_gone_S] = True
    memory.pair_row[is_gone_S] = 0
    memory.pair_next[is_lost_SN] = 0
    memory.pair_count[is_lost_SN] = 0.0
    is_changed_S = is_lost_SN.any(axis=1)
    memory.pair_dirty[is_changed_S], memory.pair_moved[is_changed_S] = CHANGED, 255


def rescale_pairs(memory: MemoryArrays) -> None:
    """Rescale counts with their unit, which changes every slot in use."""
    memory.pair_count *= 1.0 / memory.clock[SEEN]
    used_S = memory.pair_row[:, 0] > 0
    memory.pair_dirty[used_S], memory.pair_moved[used_S] = CHANGED, 255
