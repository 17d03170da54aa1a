"""How many rows and neighbours a memory has room for, and how it grows: its capacity doubles with the item table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kernels.memory import MemoryArrays
from model.dirty import CHANGED
from model.growing import GrowingColumns
from model.memory_version import COUNTS, LEARNED, ROWS

NUM_BUCKETS = 8
NEIGHBOUR_BYTES = 20
FREE_BYTES = 80 << 20
"""As long as all neighbours fit into this, each item may have as many as configured."""
FEWEST_NEIGHBOURS = 23
"""Each item of a larger catalogue may have at least this many; with its counts that takes 512 bytes."""
FIRST_CAPACITY = 1024
CHECKPOINTED = ("gain_square", "shortlist_square", "recent")
"""Arrays that belong to no row and are in checkpoints, but not in versions."""
NEIGHBOURS = (*COUNTS, "weight")
"""Columns of a row's neighbours."""
CHANGES = ("dirty", "moved")
"""Columns that say what has changed in a row."""


def neighbours_at(capacity: int, most: int) -> int:
    """How many neighbours a row may have in a catalogue of ``capacity`` rows."""
    return min(most, max(FEWEST_NEIGHBOURS, FREE_BYTES // (NEIGHBOUR_BYTES * capacity)))


def empty_memory(capacity: int, most: int) -> MemoryArrays:
    """The arrays of an empty memory of ``capacity`` rows, each with at most ``most`` neighbours."""
    return MemoryArrays.empty(capacity, neighbours_at(capacity, most), NUM_BUCKETS)


def reshaped(old: MemoryArrays, capacity: int, width: int, columns: GrowingColumns) -> MemoryArrays:
    """The memory with room for ``capacity`` rows of ``width`` neighbours, of which the strongest are kept. If the width
    stays, ``columns`` lengthens it in place."""
    if width == old.width:
        return _lengthened(old, capacity, columns)
    new = MemoryArrays.empty(capacity, width, NUM_BUCKETS)
    if width < old.width:
        _keep_strongest(old, width)
    num, kept = old.capacity, min(width, old.width)
    for name in (*ROWS, "dirty"):
        getattr(new, name)[:num] = getattr(old, name)
    new.moved[:num] = 255
    for name in NEIGHBOURS:
        getattr(new, name)[:num, :kept] = getattr(old, name)[:, :kept]
    new.heat[:, :num] = old.heat
    for name in (*LEARNED, *CHECKPOINTED):
        setattr(new, name, getattr(old, name))
    return new


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
    """Sort each row's neighbours, the strongest first, and drop those beyond ``width``."""
    unused = np.arange(arrays.width) >= arrays.num_neighbours[:, None]
    strength = np.where(unused, -1.0, arrays.after + arrays.before)
    order = np.argsort(-strength, axis=1, kind="stable")
    for name in NEIGHBOURS:
        setattr(arrays, name, np.take_along_axis(getattr(arrays, name), order, axis=1))
    arrays.num_neighbours = np.minimum(arrays.num_neighbours, width).astype(np.int32)
    arrays.dirty[arrays.first >= 0] = CHANGED
