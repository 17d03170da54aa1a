"""The memory in a version of the weights: what is published of its rows, and how a reader takes it over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryArrays

Int64 = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]

ROWS = ("num_neighbours", "seen", "first", "last")
"""Columns of a row that are published."""
LEARNED = ("gain", "shortlist_weight", "shortlist_norm", "clock")
"""Arrays that belong to no row."""
COUNTS = ("neighbour_row", "after", "before", "direct")
"""Columns of a row's neighbours; the learned weights are published beside them."""


def published_memory(rows_U: Int64, columns: Arrays, size: Int64, learned: Arrays, *, everything: bool) -> Arrays:
    """What a version carries of these rows: see `model.memory.Memory.changes`.

    ``columns``: theirs, (U, …); ``size``: rows, capacity and width of the memory; ``learned``: what belongs to no row.
    """
    width = int(size[2])
    used = np.arange(width) < columns["num_neighbours"][:, None]
    moved, slots = used, Arrays()
    if not everything:
        bits = np.unpackbits(columns["moved"], axis=1, count=width, bitorder="little")
        moved = used & bits.view(np.bool_)
        slots = {"num_moved": moved.sum(axis=1, dtype=np.int32), "slot": np.nonzero(moved)[1].astype(np.uint16)}
    return {
        **slots,
        "row_index": rows_U,
        "size": size,
        "heat": np.ascontiguousarray(columns["heat"].T),
        **{name: learned[name] for name in LEARNED},
        **{name: columns[name] for name in ROWS},
        **{name: columns[name][moved] for name in COUNTS},
        "weight": columns["weight"][used],
    }


def take_over(arrays: MemoryArrays, changes: Mapping[str, NDArray[Any]]) -> None:
    """Write what `published_memory` returned into a reader's arrays of the same capacity and width."""
    rows = changes["row_index"]
    for name in ROWS:
        getattr(arrays, name)[rows] = changes[name]
    arrays.heat[:, rows] = changes["heat"]
    used = np.arange(arrays.width) < changes["num_neighbours"][:, None]
    whole = np.repeat(rows, changes["num_neighbours"]), np.nonzero(used)[1]
    moved = (np.repeat(rows, changes["num_moved"]), changes["slot"]) if "slot" in changes else whole
    for name in COUNTS:
        getattr(arrays, name)[moved] = changes[name]
    if "weight_steps" in changes:
        arrays.weight[whole] += changes["weight_unit"] * _numbers_of(changes["weight_steps"])
    else:
        arrays.weight[whole] = changes["weight"]
    for name in set(LEARNED) & changes.keys():  # what was `upgraded` has no shortlist
        setattr(arrays, name, changes[name].copy())


def _numbers_of(planes_Pn: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n,) whole numbers from (P, n) planes of their bytes, lowest first, with the sign in the lowest bit."""
    coded = np.zeros(planes_Pn.shape[1], np.int64)
    for plane, bytes_n in enumerate(planes_Pn):
        coded |= bytes_n.astype(np.int64) << (8 * plane)
    return ((coded >> 1) ^ -(coded & 1)).astype(np.float32)
