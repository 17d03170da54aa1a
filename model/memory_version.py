"""The memory in a version of the weights: what is published of its rows, and how a reader takes it over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryArrays
from kernels.memory.arrays import PAIRED
from model.dirty import UNPUBLISHED, is_dirty
from model.memory_pairs import PAIR_CHANGES, PAIRS, changed_pairs, take_over_pairs
from model.upgrade import learned_anew

Int64 = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]

MOST_NEIGHBOURS = 4096
"""The most that ``model.memory_neighbours`` may be."""
ROWS = ("num_neighbours", "seen", "first", "last", "group", "hour")
"""Columns of a row that are published."""
GROUPS = ("group_key", "group_seen", "group_next", "group_count", "group_total", "group_share")
"""What is counted of groups: arrays that belong to no row, as long as there are groups."""
LEARNED = ("gain", "shortlist_weight", "shortlist_norm", "clock", *GROUPS)
"""Arrays that belong to no row."""
COUNTS = ("neighbour_row", "after", "before", "direct")
"""Columns of a row's neighbours; the learned weights are published beside them."""
NEIGHBOURS = (*COUNTS, "weight")
"""Columns of a row's neighbours."""
BLOCK_ROWS = 1 << 12
"""How many rows' neighbours are read or written at a time: temporary arrays of a base as a whole would take longer to
make than to use, and numpy holds the interpreter while it reads or writes at many places.
"""


def changes_of(arrays: MemoryArrays, num_rows: int, *, everything: bool) -> Arrays:
    """What a version carries: every row in use with all its neighbours, or the dirty ones with the learned weights of
    all their neighbours but only the counts that changed; and all gains.

    Every prediction changes all of a row's weights, but an event changes the counts of only a few tens of neighbours:
    ``slot`` and ``num_moved`` say which ones of each row. Without those two, all are there.
    """
    chosen_V = arrays.first[:num_rows] >= 0 if everything else is_dirty(arrays.dirty[:num_rows], UNPUBLISHED)
    rows = np.flatnonzero(chosen_V)
    columns = {name: getattr(arrays, name)[rows] for name in (*ROWS, *NEIGHBOURS, "moved")}
    size = np.array([num_rows, arrays.capacity, arrays.width], np.int64)
    learned = {name: getattr(arrays, name).copy() for name in LEARNED}
    columns["heat"] = arrays.heat[:, rows].T
    pairs = changed_pairs(arrays, everything=everything)
    return published_memory(rows, columns, size, learned, everything=everything) | pairs


def published_memory(rows_U: Int64, columns: Arrays, size: Int64, learned: Arrays, *, everything: bool) -> Arrays:
    """What a version carries of these rows: see `changes_of`.

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
        **{name: _chosen(columns[name], moved) for name in COUNTS},
        "weight": _chosen(columns["weight"], used),
    }


def _chosen(column_UN: NDArray[Any], is_chosen_UN: NDArray[np.bool_]) -> NDArray[Any]:
    """(n,) the numbers at these places; a view if they are all of them."""
    return column_UN.reshape(-1) if is_chosen_UN.all() else column_UN[is_chosen_UN]


def take_over(arrays: MemoryArrays, changes: Mapping[str, NDArray[Any]]) -> None:
    """Write what `published_memory` returned into a reader's arrays of the same capacity and width."""
    rows = changes["row_index"]
    for name in set(ROWS) & changes.keys():  # earlier builds had no groups
        getattr(arrays, name)[rows] = changes[name]
    arrays.heat[:, rows] = changes["heat"]
    for part, whole in neighbour_places(rows, changes["num_neighbours"], arrays.width):
        if "slot" not in changes:
            _write_counts(arrays, changes, whole, part)
        weight = arrays.weight.reshape(-1)
        if "weight_steps" in changes:
            weight[whole] += changes["weight_unit"] * _numbers_of(changes["weight_steps"][:, part])
        else:
            weight[whole] = changes["weight"][part]
    if "slot" in changes:
        moved = np.repeat(rows, changes["num_moved"]) * arrays.width + changes["slot"]
        _write_counts(arrays, changes, moved, slice(None))
    for name in set(LEARNED) & changes.keys():  # what was `upgraded` has no shortlist
        setattr(arrays, name, changes[name].copy())
    take_over_pairs(arrays, changes)


def size_of(changes: Mapping[str, NDArray[Any]]) -> tuple[int, int, int]:
    """The rows of a version's memory, those with room, and how many neighbours each of these may have. Raises
    ValueError for a size that no memory has, and that would take any amount of room."""
    num_rows, capacity, width = changes["size"].tolist()
    if not (0 < num_rows <= capacity <= max(2 * num_rows, 1 << 18) and 0 < width <= MOST_NEIGHBOURS):
        raise ValueError(
            f"memory.size: expected rows, room for at most twice as many, and 1 to {MOST_NEIGHBOURS} neighbours, got "
            f"{num_rows}, {capacity}, {width}"
        )
    return num_rows, capacity, width


def num_columns_of(changes: Mapping[str, NDArray[Any]]) -> int:
    """How many columns of groups a version has; earlier builds had none."""
    return len(changes.get("group_total", ()))


def num_hours_of(changes: Mapping[str, NDArray[Any]]) -> int:
    """In how many parts of the day a version counts choices; earlier builds had none."""
    return int(changes["hour"].shape[1]) if "hour" in changes else 0


def counted_alike(arrays: MemoryArrays, state: Mapping[str, NDArray[Any]]) -> Arrays:
    """A checkpoint of an earlier build without what it does not count as these arrays do: groups, times of day, and
    pairs, of which memories on a GPU had none. Their features begin anew."""
    out = {"group", *GROUPS} if num_columns_of(state) < arrays.num_columns else set()
    features: tuple[str, ...] = ()
    if num_hours_of(state) != arrays.num_hours:
        out, features = out | {"hour"}, ("hourly",)
    if not len(state.get("pair_row", ())):
        out, features = out | {*PAIRS, *PAIR_CHANGES}, (*features, *PAIRED)
    return {name: value for name, value in state.items() if name not in out} | learned_anew(state, features)


def neighbour_places(rows_U: Int64, num_U: NDArray[np.int32], width: int) -> Iterator[tuple[slice, Int64]]:
    """Where in (V * width,) these rows' neighbours are, some rows at a time; before that, which of all they are."""
    slots, end = np.arange(width), 0
    for first in range(0, len(rows_U), BLOCK_ROWS):
        block = slice(first, first + BLOCK_ROWS)
        places = rows_U[block, None] * width + slots
        places = places[slots < num_U[block, None]]
        yield slice(end, end + len(places)), places
        end += len(places)


def _write_counts(arrays: MemoryArrays, changes: Mapping[str, NDArray[Any]], places: Int64, part: slice) -> None:
    for name in COUNTS:
        getattr(arrays, name).reshape(-1)[places] = changes[name][part]


def _numbers_of(planes_Pn: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n,) whole numbers of up to 32 bits from (P, n) planes of their bytes, lowest first, with the sign in the lowest
    bit."""
    coded = planes_Pn[0].astype(np.uint32)
    for plane, bytes_n in enumerate(planes_Pn[1:], 1):
        coded |= bytes_n.astype(np.uint32) << np.uint32(8 * plane)
    numbers = (coded >> np.uint32(1)).view(np.int32) ^ -(coded & np.uint32(1)).view(np.int32)
    return np.asarray(numbers.astype(np.float32))
