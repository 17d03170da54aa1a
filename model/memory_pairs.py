"""What the memory counts of two choices in a row: how many pairs have room, what a version carries of them, and how
they move to a larger table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryArrays
from kernels.memory.arrays import CHANGED, NEXT_OF_PAIR
from kernels.memory.pairs import slots_of
from model.dirty import UNPUBLISHED, is_dirty

Int64 = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]

PAIRS_PER_ROW, MOST_PAIRS = 16, 1 << 18
"""How many pairs have room for each row of the capacity, and at most: each takes 74 bytes, so all of them 18.5 MiB."""
PAIRS = ("pair_row", "pair_next", "pair_count")
"""Columns of a pair's slot."""
PAIR_CHANGES = ("pair_dirty", "pair_moved")
"""Columns that say what has changed in a slot."""


def pairs_at(capacity: int) -> int:
    """How many pairs have room in a memory of ``capacity`` rows: a power of two."""
    return min(MOST_PAIRS, 1 << (PAIRS_PER_ROW * capacity - 1).bit_length())


def with_pairs(old: MemoryArrays, num_pairs: int) -> MemoryArrays:
    """The memory with room for so many pairs, at least as many as before. A slot of a smaller table has the pairs of
    several of a larger one, so none is lost; and all are marked as changed, since they have moved."""
    if num_pairs == old.num_pairs:
        return old
    new, used = empty_pairs(num_pairs), np.flatnonzero(old.pair_row[:, 0])
    slots = slots_of(old.pair_row[used], num_pairs)
    for name in PAIRS:
        new[name][slots] = getattr(old, name)[used]
    # All of the old slots too: a reader may have begun to copy them, or have copied pairs that are gone since.
    for changed in (slots, slice(old.num_pairs)):
        new["pair_dirty"][changed], new["pair_moved"][changed] = CHANGED, 255
    return replace(old, **new)


def with_room_for_pairs(arrays: MemoryArrays) -> MemoryArrays:
    """The memory with pairs; those that it lacks are counted from here on."""
    return arrays if arrays.num_pairs else replace(arrays, **empty_pairs(pairs_at(arrays.capacity)))


def empty_pairs(num_pairs: int) -> Arrays:
    """The arrays of a table that counts nothing yet."""
    empty = MemoryArrays.empty(0, 1, 0, num_pairs=num_pairs)
    return {name: getattr(empty, name) for name in (*PAIRS, *PAIR_CHANGES)}


def changed_pairs(arrays: MemoryArrays, *, everything: bool) -> Arrays:
    """What a version carries of the pairs: `published_pairs` of those in use, or of the dirty ones."""
    chosen_S = arrays.pair_row[:, 0] > 0 if everything else is_dirty(arrays.pair_dirty, UNPUBLISHED)
    slots = np.flatnonzero(chosen_S)
    columns = {name: getattr(arrays, name)[slots] for name in (*PAIRS, "pair_moved")}
    columns["moved"] = columns.pop("pair_moved")
    return published_pairs(slots, columns, arrays.num_pairs, everything=everything)


def published_pairs(slots_U: Int64, columns: Arrays, num_pairs: int, *, everything: bool) -> Arrays:
    """What a version carries of these slots: which pairs they have, and those of their successors that are new or
    whose counts changed (all with ``everything``). ``columns``: theirs, (U, …)."""
    moved_U = np.full(len(slots_U), 255, np.uint8) if everything else columns["moved"]
    moved_UN = _moved(moved_U)
    return {
        "pair_size": np.array([num_pairs], np.int64),
        "pair_index": slots_U.astype(np.int32),
        "pair_moved": moved_U,
        "pair_row": columns["pair_row"],
        **{name: columns[name][moved_UN] for name in ("pair_next", "pair_count")},
    }


def take_over_pairs(arrays: MemoryArrays, changes: Mapping[str, NDArray[Any]]) -> None:
    """Write what `published_pairs` returned into a reader's table; one of another size is replaced by an empty one."""
    if "pair_index" not in changes:  # of an earlier build
        return
    if (num_pairs := int(changes["pair_size"][0])) != arrays.num_pairs:
        for name, array in empty_pairs(num_pairs).items():
            setattr(arrays, name, array)
    slots_U, moved_UN = changes["pair_index"].astype(np.int64), _moved(changes["pair_moved"])
    places = (slots_U[:, None] * NEXT_OF_PAIR + np.arange(NEXT_OF_PAIR))[moved_UN]
    arrays.pair_row[slots_U] = changes["pair_row"]
    for name in ("pair_next", "pair_count"):
        getattr(arrays, name).reshape(-1)[places] = changes[name]


def _moved(moved_U: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.unpackbits(moved_U[:, None], axis=1, bitorder="little").view(np.bool_)
