"""How many rows and neighbours a memory has room for, and how it grows: its capacity doubles with the item table, and
from `LARGE_CAPACITY` on grows by an eighth."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryArrays
from kernels.memory.arrays import NUM_HOURS, PAIRED
from model.dirty import CHANGED
from model.growing import GrowingColumns
from model.memory_groups import FIRST_GROUPS
from model.memory_pairs import PAIR_CHANGES, PAIRS, pairs_at, with_pairs, with_room_for_pairs
from model.memory_version import GROUPS, LEARNED, NEIGHBOURS, ROWS
from model.upgrade import SQUARES, learned_anew

NUM_BUCKETS = 8
NEIGHBOUR_BYTES = 20
FREE_BYTES = 80 << 20
"""As long as all neighbours fit into this, each item may have as many as configured."""
FEWEST_NEIGHBOURS = 22
"""Each item of a larger catalogue may have at least this many; with its counts that takes 512 bytes."""
FIRST_CAPACITY = 1024
LARGE_CAPACITY, GRANULE = 1 << 18, 1 << 12
"""From so many rows on, twice the room would take a step too long: the heats are copied, and new rows set to -1."""
SELECTED_TOGETHER = 4096
"""How many rows lose neighbours at a time, so that temporary arrays stay in the cache."""
CHECKPOINTED = ("gain_square", "shortlist_square", "recent")
"""Arrays that belong to no row and are in checkpoints, but not in versions."""
CHANGES = ("dirty", "moved")
"""Columns that say what has changed in a row."""


def capacity_for(num_rows: int, capacity: int) -> int:
    """The capacity of a memory of ``num_rows`` rows that had ``capacity``."""
    while capacity < num_rows:
        capacity += capacity if capacity < LARGE_CAPACITY else capacity // 8 // GRANULE * GRANULE
    return capacity


def neighbours_at(capacity: int, most: int) -> int:
    """How many neighbours a row may have in a catalogue of ``capacity`` rows."""
    return min(most, max(FEWEST_NEIGHBOURS, FREE_BYTES // (NEIGHBOUR_BYTES * capacity)))


def empty_memory(capacity: int, most: int, num_columns: int) -> MemoryArrays:
    """The arrays of an empty memory of ``capacity`` rows, each with at most ``most`` neighbours and ``num_columns``
    groups."""
    width, num_pairs = neighbours_at(capacity, most), pairs_at(capacity)
    return MemoryArrays.empty(capacity, width, NUM_BUCKETS, num_columns, FIRST_GROUPS, num_pairs, NUM_HOURS)


def reshaped(old: MemoryArrays, capacity: int, width: int, columns: GrowingColumns) -> MemoryArrays:
    """The memory with room for ``capacity`` rows of ``width`` neighbours, of which the strongest are kept. It is in
    ``columns``, which lengthens it in place as long as the width stays."""
    old = with_pairs(old, pairs_at(capacity) if old.num_pairs else 0)
    if width == old.width:
        return _lengthened(old, capacity, columns)
    nothing = MemoryArrays.empty(0, width, NUM_BUCKETS, old.num_columns, num_hours=old.num_hours)
    new = _lengthened(nothing, capacity, columns)
    if width < old.width:
        _keep_strongest(old, width)
    num, kept = old.capacity, min(width, old.width)
    for name in (*ROWS, "dirty"):
        getattr(new, name)[:num] = getattr(old, name)
    new.moved[:num] = 255
    for name in NEIGHBOURS:
        getattr(new, name)[:num, :kept] = getattr(old, name)[:, :kept]
    new.heat[:, :num] = old.heat
    for name in (*LEARNED, *CHECKPOINTED, *PAIRS, *PAIR_CHANGES):
        setattr(new, name, getattr(old, name))
    return new


def copied(old: MemoryArrays, columns: GrowingColumns) -> MemoryArrays:
    """A copy that shares nothing, in ``columns``."""
    rows = {name: columns.taken(name, getattr(old, name)) for name in (*ROWS, *NEIGHBOURS, *CHANGES)}
    rest = {each.name: getattr(old, each.name).copy() for each in fields(old) if each.name not in rows}
    return replace(old, **rows, **rest)


def with_counts_of(like: MemoryArrays, arrays: MemoryArrays) -> MemoryArrays:
    """The memory with pairs, times of day, and groups if ``like`` has some. What it lacks is counted from here on."""
    if like.num_columns and not arrays.num_columns:
        empty = MemoryArrays.empty(arrays.capacity, 1, 0, like.num_columns, FIRST_GROUPS)
        arrays = replace(arrays, group=empty.group, **{name: getattr(empty, name) for name in GROUPS})
    lacked = (*(() if arrays.num_pairs else PAIRED), *(() if arrays.num_hours else ("hourly",)))
    arrays = replace(arrays, **learned_anew({name: getattr(arrays, name) for name in SQUARES}, lacked))
    return with_hours(with_room_for_pairs(arrays), NUM_HOURS)


def with_hours(arrays: MemoryArrays, num_hours: int) -> MemoryArrays:
    """The memory with so many parts of the day; of another number, nothing is counted yet."""
    if arrays.num_hours == num_hours:
        return arrays
    return replace(arrays, hour=np.zeros((arrays.capacity, num_hours), np.float32))


def _lengthened(old: MemoryArrays, capacity: int, columns: GrowingColumns) -> MemoryArrays:
    """The heats (12 bytes a row) are copied, since their rows come second."""
    names = (*ROWS, *NEIGHBOURS, *CHANGES)
    longer = {name: columns.longer(name, getattr(old, name), capacity) for name in names}
    for name in ("first", "last"):
        longer[name][old.capacity :] = -1
    heat = np.zeros((len(old.heat), capacity), np.float32)
    heat[:, : old.capacity] = old.heat
    return replace(old, heat=heat, **longer)


def _keep_strongest(arrays: MemoryArrays, width: int) -> None:
    """Drop the weakest neighbours of each row that has more than ``width``; the others keep their order."""
    full, num_dropped = np.flatnonzero(arrays.num_neighbours > width), arrays.width - width
    for start in range(0, len(full), SELECTED_TOGETHER):
        rows = full[start : start + SELECTED_TOGETHER]
        unused = np.arange(arrays.width) >= arrays.num_neighbours[rows, None]
        strength = np.where(unused, np.float32(-1.0), arrays.after[rows] + arrays.before[rows])
        weakest, is_kept = np.argpartition(strength, num_dropped - 1, axis=1), np.ones(strength.shape, np.bool_)
        np.put_along_axis(is_kept, weakest[:, :num_dropped], values=False, axis=1)
        for name in NEIGHBOURS:
            column = getattr(arrays, name)
            column[rows, :width] = column[rows][is_kept].reshape(len(rows), width)
    arrays.num_neighbours[full] = width
    arrays.dirty[arrays.first >= 0] = CHANGED


def clear_changed(arrays: MemoryArrays) -> None:
    """Nothing has changed for any reader."""
    arrays.dirty[:] = arrays.moved[:] = 0
    arrays.pair_dirty[:] = arrays.pair_moved[:] = 0


def clear_rows(arrays: MemoryArrays, rows_N: NDArray[np.int64]) -> None:
    """Forget what is counted of these rows themselves."""
    arrays.num_neighbours[rows_N] = 0
    arrays.seen[rows_N] = 0.0
    arrays.group[rows_N] = 0
    arrays.hour[rows_N] = 0.0
    arrays.heat[:, rows_N] = 0.0
    arrays.first[rows_N] = arrays.last[rows_N] = -1
