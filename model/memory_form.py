"""The form of what a version carries of the memory: names, types and shapes, checked before anything is applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.memory import MemoryArrays
from kernels.memory.arrays import NEXT_GROUPS, NUM_HOURS
from model.memory_pairs import MOST_PAIRS, PAIRS
from model.memory_room import NUM_BUCKETS
from model.memory_version import COUNTS, GROUPS, LEARNED, ROWS, size_of
from model.upgrade import upgraded
from wire.errors import VersionError

Arrays = dict[str, NDArray[Any]]
_EMPTY = MemoryArrays.empty(0, 1, NUM_BUCKETS)
_SHAPES: dict[str, tuple[int | str, ...]] = {
    "size": (3,),
    "row_index": ("U",),
    **dict.fromkeys(ROWS, ("U",)),
    "group": ("U", "C"),
    "hour": ("U", "H"),
    "heat": (len(_EMPTY.heat), "U"),
    **{name: getattr(_EMPTY, name).shape for name in LEARNED if name not in GROUPS},
    **dict.fromkeys(("group_key", "group_seen"), ("C", "G")),
    **dict.fromkeys(("group_next", "group_count"), ("C", "G", NEXT_GROUPS)),
    "group_total": ("C",),
    "group_share": ("C", _EMPTY.group_share.shape[1]),
    "num_moved": ("U",),
    **dict.fromkeys(("slot", *COUNTS), ("M",)),
    "weight": ("N",),
    "weight_steps": ("P", "N"),
    "weight_unit": (1,),
    "pair_size": (1,),
    **dict.fromkeys(("pair_index", "pair_moved"), ("S",)),
    "pair_row": ("S", _EMPTY.pair_row.shape[1]),
    **dict.fromkeys(("pair_next", "pair_count"), ("Q",)),
}
"""U rows with N neighbours, of which the counts of M have changed; C columns of G groups, H parts of the day; weights
in P planes of bytes; S slots of pairs with Q successors."""
_TYPES = {
    **{name: getattr(_EMPTY, name).dtype for name in _SHAPES if hasattr(_EMPTY, name)},
    **dict.fromkeys(("size", "row_index", "pair_size"), np.dtype(np.int64)),
    **dict.fromkeys(("num_moved", "pair_index"), np.dtype(np.int32)),
    "slot": np.dtype(np.uint16),
    "weight_steps": np.dtype(np.uint8),
    "weight_unit": np.dtype(np.float32),
}
_OTHER_BUILD = (
    "another build has published this version: upgrade servers first, then the trainer, and let it publish a base"
)
_NEEDED = ("size", "row_index", "heat", "num_neighbours", "seen", "first", "last", *COUNTS)
_TOGETHER = (
    ("group", *GROUPS), ("pair_size", "pair_index", "pair_moved", *PAIRS), ("slot", "num_moved"),
    ("shortlist_weight", "shortlist_norm"),
)  # fmt: skip
"""All of them are there, or none."""


def in_form(changes: Mapping[str, NDArray[Any]], num_columns: int | None = None) -> Arrays:
    """What a version carries, in this build's form. ``num_columns``: of groups, if there are any; None for any number.
    Raises `VersionError` if it cannot be applied, and ValueError for a size that no memory has."""
    if not changes:
        return {}
    _check_names(changes)
    try:
        found = upgraded(changes)
    except (LookupError, TypeError, ValueError) as error:
        raise VersionError(f"memory: expected gains and a clock of some build, got others ({error})") from error
    _compare({name: kind for name, kind in _TYPES.items() if name in found},
             {name: array.dtype for name, array in found.items()})  # fmt: skip
    sizes = _sizes(found)
    if num_columns is not None and sizes["C"]:
        sizes["C"] = num_columns
    _compare({name: tuple(sizes.get(size, size) for size in shape) for name, shape in _SHAPES.items() if name in found},
             {name: array.shape for name, array in found.items()})  # fmt: skip
    _check_numbers(found)
    return found


def _check_names(changes: Iterable[str]) -> None:
    names = set(changes)
    weights = ("weight_steps", "weight_unit") if "weight_steps" in names else ("weight",)
    expected = {*_NEEDED, *weights} | {name for each in _TOGETHER for name in each if names & set(each)}
    if lacking := sorted(expected - names):
        raise VersionError(f"memory: expected {', '.join(lacking)} too; {_OTHER_BUILD}")


def _sizes(changes: Mapping[str, NDArray[Any]]) -> dict[int | str, int]:
    """How large the dimensions are that have letters in `_SHAPES`."""
    num = int(changes["num_neighbours"].sum(dtype=np.int64))
    nothing = np.zeros((0, 0), np.uint8)
    lengths = {name: np.atleast_1d(changes.get(name, nothing)).shape for name in ("group_key", "hour", "weight_steps")}
    return {
        "U": changes["row_index"].size,
        "N": num,
        "M": int(changes["num_moved"].sum(dtype=np.int64)) if "num_moved" in changes else num,
        "C": changes.get("group_total", nothing).size,
        "G": max(1, lengths["group_key"][-1]),
        "H": NUM_HOURS if lengths["hour"][-1] else 0,
        "P": min(4, max(1, lengths["weight_steps"][0])),
        "S": changes.get("pair_index", nothing).size,
        "Q": int(np.bitwise_count(changes.get("pair_moved", nothing)).sum(dtype=np.int64)),
    }


def _compare(expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    for name, each in expected.items():
        if got[name] != each:
            raise VersionError(f"memory.{name}: expected {each}, got {got[name]}; {_OTHER_BUILD}")


def _check_numbers(changes: Mapping[str, NDArray[Any]]) -> None:
    """Check that rows, neighbours and slots of pairs are some that a memory of that size has."""
    num_rows, _, width = size_of(changes)
    num_pairs = int(changes["pair_size"][0]) if "pair_size" in changes else 0
    if not 0 <= num_pairs <= MOST_PAIRS or num_pairs & (num_pairs - 1):
        raise VersionError(f"memory.pair_size: expected a power of two up to {MOST_PAIRS}, got {num_pairs}")
    for name, end in (("row_index", num_rows), ("num_neighbours", width + 1), ("pair_index", num_pairs)):
        numbers = changes.get(name, np.zeros(0, np.int64))
        if numbers.min(initial=0) < 0 or numbers.max(initial=-1) >= end:
            raise VersionError(f"memory.{name}: expected numbers below {end}, got others; {_OTHER_BUILD}")
