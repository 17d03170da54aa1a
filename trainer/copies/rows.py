"""The pieces of a learner's rows in a checkpoint's file, in the order in which they were copied.

A piece is its length (8 bytes, little-endian) and a safetensors blob: ``<region>.rows`` (U,) int64 and the region's
columns; for entries of a dictionary ``<region>.json``, a list of ``[key, value]``. `assembled` turns all pieces
into the arrays of the learner that they were copied from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from model.memory_pairs import empty_pairs
from wire.tensors import Buffer, Tensors

Arrays = dict[str, NDArray[Any]]
NO_ROWS = np.zeros(0, np.int64)
_UNMET = ("first", "last")
"""Columns of the memory that are -1 for items that were never met."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A copy of some rows of a region: ``columns`` (U, …) of ``rows_U``; or of entries, as JSON."""

    region: str
    rows_U: NDArray[np.int64]
    columns: Arrays

    @property
    def num_bytes(self) -> int:
        """The size of all columns."""
        return self.rows_U.nbytes + sum(column.nbytes for column in self.columns.values())


def encode_piece(piece: Piece) -> list[Buffer]:
    """A piece as bytes of a file."""
    rows = {"rows": piece.rows_U} if len(piece.rows_U) else {}
    blob = Tensors({f"{piece.region}.{name}": column for name, column in {**rows, **piece.columns}.items()})
    return [blob.num_bytes.to_bytes(8, "little"), *blob.parts]


def decode_pieces(file: IO[bytes]) -> Iterator[Piece]:
    """The pieces of a file. The caller has verified it as a whole."""
    while head := file.read(8):
        tensors = load_tensors(file.read(int.from_bytes(head, "little")))
        region = next(iter(tensors)).partition(".")[0]
        columns = {name[len(region) + 1 :]: array for name, array in tensors.items()}
        yield Piece(region, columns.pop("rows", NO_ROWS), columns)


def copied(column: NDArray[Any], rows_U: NDArray[np.int64]) -> NDArray[Any]:
    """A copy of ascending rows; faster if they are consecutive."""
    num = len(rows_U)
    if num and rows_U[-1] - rows_U[0] == num - 1:
        return column[rows_U[0] : rows_U[0] + num].copy()
    return np.asarray(column[rows_U])


class Columns:
    """The rows of one region, each as in the last piece that has it."""

    def __init__(self) -> None:
        self._columns: Arrays = {}

    def put(self, rows_U: NDArray[np.int64], columns: Arrays) -> None:
        """Replace these rows."""
        if not len(rows_U):
            return
        for name, values in columns.items():
            column = self._column(name, int(rows_U[-1]) + 1 if _ascends(rows_U) else int(rows_U.max()) + 1, values)
            column[rows_U] = values

    def _column(self, name: str, num_rows: int, like: NDArray[Any]) -> NDArray[Any]:
        held = self._columns.get(name)
        if held is None or held.shape[1:] != like.shape[1:]:  # the width has changed, so all rows in use follow
            held = np.zeros((0, *like.shape[1:]), like.dtype)
        if num_rows > len(held):
            grown = np.full((max(num_rows, 2 * len(held)), *like.shape[1:]), -1 if name in _UNMET else 0, like.dtype)
            grown[: len(held)] = held
            held = grown
        self._columns[name] = held
        return held

    def of_length(self, name: str, num_rows: int) -> NDArray[Any]:
        """A column with ``num_rows`` rows: cut, or extended by rows that were never used."""
        column = self._columns[name]
        if len(column) >= num_rows:
            return column[:num_rows]
        more = np.full((num_rows - len(column), *column.shape[1:]), -1 if name in _UNMET else 0, column.dtype)
        return np.concatenate([column, more])

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return list(self._columns)


def _ascends(rows_U: NDArray[np.int64]) -> bool:
    return bool((rows_U[1:] > rows_U[:-1]).all())


def assembled(small: Arrays, pieces: Iterable[Piece], *, entries: bool = True) -> Arrays:
    """The arrays of a whole learner (`trainer.checkpoint.snapshot.learner_arrays`), from its small arrays and its rows.

    All rows count as unpublished: a trainer that continues from a checkpoint publishes a base first. Without
    ``entries``, it knows no names and no users: merging a million of them holds the interpreter for half a second.
    """
    regions: dict[str, Columns] = {}
    merged: dict[str, dict[Any, Any]] = {"names": {}, "users": {}}
    for piece in pieces:
        if piece.region in merged:
            if entries:
                pairs = json.loads(piece.columns["json"].tobytes())
                _merge(merged[piece.region], pairs, newest_last=piece.region == "names")
        else:
            regions.setdefault(piece.region, Columns()).put(piece.rows_U, piece.columns)
    out = {name: array for name, array in small.items() if not name.startswith("size.")}
    sizes = {name[5:]: array.tolist() for name, array in small.items() if name.startswith("size.")}
    for name, size in sizes.items():
        if name == "memory":
            out |= _memory(regions[name], size[0])
        elif name == "memory_pairs":
            out |= _pairs(regions.get(name, Columns()), size[0])
        elif name.endswith("counts"):
            out |= _counts(regions[name], size)
        elif name == "kept":
            kept = regions.get(name, Columns())  # none, if nothing was learned yet
            out |= {f"rates.kept_{each}": kept.of_length(each, size[0]) for each in kept.names}
        else:
            out |= _table(name, regions[name], size[0])
    out |= _users(merged["users"])
    names = np.frombuffer(json.dumps(list(merged["names"].items()), ensure_ascii=False).encode(), np.uint8)
    return {**out, "names.all": names, "names.unpublished": names}


def _merge(known: dict[Any, Any], pairs: list[tuple[Any, Any]], *, newest_last: bool) -> None:
    for key, value in pairs:
        if value is None or newest_last:
            known.pop(key, None)
        if value is not None:
            known[key] = value


def _table(name: str, columns: Columns, num_rows: int) -> Arrays:
    weight, state, live, ids, seen = (
        columns.of_length(each, num_rows) for each in ("weight", "state", "live", "ids", "last_seen_ms")
    )
    rows = np.flatnonzero(live)
    own = rows[rows > 0]
    return {
        f"{name}.weight": weight, f"{name}.state": state, f"{name}.live": live, f"{name}.dirty": live.copy(),
        f"{name}.map.rows": own - 1, f"{name}.map.ids": ids[own], f"{name}.map.last_seen_ms": seen[own],
    }  # fmt: skip


def _memory(columns: Columns, num_rows: int) -> Arrays:
    out = {f"memory.{name}": columns.of_length(name, num_rows) for name in columns.names if name != "heat"}
    heat = np.ascontiguousarray(columns.of_length("heat", num_rows).T)
    used = np.arange(out["memory.neighbour_row"].shape[1]) < out["memory.num_neighbours"][:, None]
    changed = {
        "memory.dirty": (out["memory.first"] >= 0).astype(np.uint8),
        "memory.moved": np.packbits(used, axis=1, bitorder="little"),
    }
    return {**out, **changed, "memory.heat": heat}


def _pairs(columns: Columns, num_pairs: int) -> Arrays:
    found = empty_pairs(num_pairs) | {name: columns.of_length(name, num_pairs) for name in columns.names}
    is_used = (found["pair_row"][:, 0] > 0).astype(np.uint8)
    changed = {"pair_dirty": is_used, "pair_moved": 255 * is_used}
    return {f"memory.{name}": column for name, column in {**found, **changed}.items()}


def _counts(columns: Columns, sizes: list[int]) -> Arrays:
    out = {name: columns.of_length(name, size) for name, size in zip(sorted(columns.names), sizes, strict=True)}
    rates = next(name for name in out if name.startswith("rates."))
    is_met = np.asarray(out[rates].any(axis=1))
    return {**out, rates.replace("_VC", "_dirty_V"): is_met.astype(np.uint8)}


def _users(known: dict[str, tuple[int, int]]) -> Arrays:
    users = sorted(known)
    return {
        "histories.users": np.frombuffer(json.dumps(users, ensure_ascii=False).encode(), np.uint8),
        "histories.born": np.array([known[user][0] for user in users], np.int64),
        "histories.touched": np.array([known[user][1] for user in users], np.int64),
    }
