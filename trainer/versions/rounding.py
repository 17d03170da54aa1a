"""Rounds a published version to a third of its bytes; the trainer itself keeps float32.

Rows of tables are rounded to half precision. The memory's learned weights, which are most of a delta, are rounded to
multiples of `UNIT`. A delta has the differences from the weights that readers hold, in units, as planes of bytes: most
differences are so small that the upper planes are zeros, and compress to nothing. Dense weights, counts and the outputs
of `model.probe` are exact.

Numbers beyond what those can hold are published as the largest that they can: weights that large are of no use, but a
version that were refused for them would be refused again whatever step the trainer went back to.

A reader's weights are a function of the trainer's, whichever versions came before. So a replay can still compare every
bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from model.memory_version import BLOCK_ROWS, neighbour_places
from trainer.copies.rows import Arrays
from wire.weights import Snapshot, TableRows

log = structlog.get_logger("trainer")
UNIT = 2.0**-12
"""The grid of the memory's weights. A score sums at most 60 of them, each off by up to half a unit, which changes it by
about .0005."""
MOST_UNITS = 1 << 23
"""A step from one end to the other is the largest number of units that float32 represents exactly."""
MOST_HALF = 65504.0
BLOCK_STEPS = 1 << 17
"""How many steps are laid out at a time, so that temporary arrays stay in the cache."""
Int32 = NDArray[np.int32]
Block = TypeVar("Block")


class Rounding:
    """Rounds, and keeps the memory's weights as readers have them. For the publishing thread only."""

    def __init__(self) -> None:
        self._held_VN: Int32 = np.zeros((0, 0), np.int32)
        self.errors: dict[str, float] = {}
        """The largest changes that rounding made to the last version: of a row, relative to its length; of a weight."""
        self._has_warned = False

    def round(self, snapshot: Snapshot, *, is_base: bool) -> Snapshot:
        """A base or the next delta as it is published."""
        self.errors = {}
        tables = {name: self._table(name, rows, is_base=is_base) for name, rows in snapshot.tables.items()}
        return replace(snapshot, tables=tables, memory=self._memory(snapshot.memory, is_base=is_base))

    def _table(self, name: str, table: TableRows, *, is_base: bool) -> TableRows:
        rows, error = np.empty(table.rows.shape, np.float16), 0.0
        for first in paced(range(0, len(rows), BLOCK_ROWS), rests=is_base):
            block = slice(first, first + BLOCK_ROWS)
            exact, rows[block] = table.rows[block], halved(table.rows[block])
            back = rows[block].astype(np.float32)
            if max(back.max(), -back.min()) >= MOST_HALF:
                self._warn(f"rows of table {name}")
            with np.errstate(over="ignore", invalid="ignore"):  # of a row whose length is beyond float32, all is lost
                change = np.linalg.norm(back - exact, axis=1) / np.maximum(np.linalg.norm(exact, axis=1), 1e-12)
            error = max(error, float(np.nan_to_num(change, nan=1.0).max()))
        self.errors[f"{name}.rows"] = error
        return replace(table, rows=rows)

    def _memory(self, memory: Arrays, *, is_base: bool) -> Arrays:
        _, capacity, width = memory["size"].tolist()
        self._resize(capacity, width, keep=not is_base)
        weights, rows = memory["weight"], memory["row_index"]
        held, steps, error = self._held_VN.reshape(-1), np.empty(len(weights), np.int32), 0.0
        for part, places in paced(neighbour_places(rows, memory["num_neighbours"], width), rests=is_base):
            units = on_grid(weights[part])
            steps[part] = units - held[places]
            held[places] = units
            error = max(error, float(np.abs(_weights_of(units) - weights[part]).max(initial=0.0)))
        if error > UNIT:
            self._warn("weights of the memory")
        self.errors["memory.weight"] = error
        exact = {name: array for name, array in memory.items() if name != "weight"}
        return {**exact, "weight_steps": planes_of(steps), "weight_unit": np.array([UNIT], np.float32)}

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            log.warning("numbers beyond what a version can hold are published as the largest that it can", what=what)
        self._has_warned = True

    def _resize(self, capacity: int, width: int, *, keep: bool) -> None:
        """Resize as readers do (`model.memory.Memory.apply`): a new width sets their weights to zero."""
        held = self._held_VN
        if not keep or width != held.shape[1]:
            self._held_VN = np.zeros((capacity, width), np.int32)
        elif capacity > len(held):
            self._held_VN = np.zeros((max(capacity, 2 * len(held)), width), np.int32)
            self._held_VN[: len(held)] = held


def paced(blocks: Iterable[Block], *, rests: bool) -> Iterator[Block]:
    """The blocks; with ``rests``, after each one as long as it took, in which the steps beside have the memory to
    themselves."""
    for block in blocks:
        began_s = time.perf_counter()
        yield block
        if rests:
            time.sleep(time.perf_counter() - began_s)


def on_grid(weights: NDArray[np.float32]) -> Int32:
    """The memory's weights in units, at most `MOST_UNITS` in either direction."""
    most = np.float32(MOST_UNITS * UNIT)  # before the division, which could be too large for float32
    return np.asarray(np.rint(np.clip(weights, -most, most) / np.float32(UNIT)).astype(np.int32))


def _weights_of(units: Int32) -> NDArray[np.float32]:
    return np.asarray(units.astype(np.float32) * np.float32(UNIT))


def halved(rows: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rows in half precision, at most `MOST_HALF` in either direction. By torch: numpy takes ten times as long."""
    return np.asarray(torch.from_numpy(rows).half().clamp_(-MOST_HALF, MOST_HALF).numpy())


def rounded(snapshot: Snapshot) -> Snapshot:
    """An exact base as readers would hold it after rounding."""
    tables = {
        name: replace(table, rows=halved(table.rows).astype(np.float32)) for name, table in snapshot.tables.items()
    }
    weight = _weights_of(on_grid(snapshot.memory["weight"]))
    return replace(snapshot, tables=tables, memory={**snapshot.memory, "weight": weight})


def planes_of(steps_n: Int32) -> NDArray[np.uint8]:
    """(P, n): numbers with their sign in the lowest bit, byte by byte, in as few planes as they fit into."""
    most = max((int(_coded(steps_n[block]).max()) for block in _blocks(len(steps_n))), default=0)
    planes_Pn = np.empty((max(1, -(-most.bit_length() // 8)), len(steps_n)), np.uint8)
    for block in _blocks(len(steps_n)):
        coded = _coded(steps_n[block])
        for plane, out_n in enumerate(planes_Pn):
            out_n[block] = coded >> np.uint32(8 * plane)
    return planes_Pn


def _coded(steps_n: Int32) -> NDArray[np.uint32]:
    return ((steps_n << 1) ^ (steps_n >> 31)).view(np.uint32)


def _blocks(num: int) -> Iterator[slice]:
    return (slice(first, first + BLOCK_STEPS) for first in range(0, num, BLOCK_STEPS))
