"""Shapes of the kernels' tiles: the fastest of a sweep where one was measured.

Measured (H200, Triton 3.6, bfloat16, B 32, N 4096, H 4; B 512, N 128 for short users): every tile of 32 to 128 queries
and keys, 4 and 8 warps, 2 and 3 stages. `bench/gpu_tiles.py` measures them again; bench/NOTES.md has what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.triton_shared import INTERPRETED


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a tile, warps of a program, how many loads ahead are pipelined, registers at most."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None


@dataclass(frozen=True)
class Shape:
    """What a tile is chosen by: ``width`` of the wider of a query's and a value's head; ``architecture``: 80 is Ampere,
    90 Hopper; ``timed``: whether there is a time bias (one of position alone costs what none does)."""

    dtype: torch.dtype
    width: int
    timed: bool
    architecture: int


EXACT = Tile(32, 32, 4, 1)
"""Of float32 on a GPU: its products run on the FP32 pipe, from registers. The interpreter takes bfloat16's tiles."""

#                          plain                  with a time bias
FORWARD = {
    64: (Tile(64, 32, 4, 3), Tile(64, 64, 4, 2, 168)),  # 168: three programs a processor
    128: (Tile(64, 64, 4, 3), Tile(64, 64, 4, 2)),
    256: (Tile(64, 32, 4, 2), Tile(64, 32, 4, 2)),
}
QUERIES = {
    64: (Tile(64, 64, 4, 3), Tile(64, 64, 4, 2)),
    128: (Tile(128, 64, 8, 3), Tile(128, 64, 8, 2)),
    256: (Tile(64, 32, 8, 2), Tile(64, 32, 8, 2)),
}
KEYS = {
    64: (Tile(64, 64, 4, 3), Tile(64, 64, 4, 2)),
    128: (Tile(32, 64, 4, 3), Tile(32, 64, 4, 2)),
    256: (Tile(32, 64, 8, 2), Tile(32, 64, 8, 2)),
}
AMPERE = {"forward": Tile(64, 32, 4, 2), "queries": Tile(128, 32, 8, 2), "keys": Tile(32, 64, 8, 2)}
"""Others spill, where heads are wider than 64."""


def _choose(table: dict[int, tuple[Tile, Tile]], kernel: str, shape: Shape) -> Tile:
    if shape.dtype == torch.float32 and not INTERPRETED:
        return EXACT
    width = next((width for width in table if shape.width <= width), 256)
    if shape.architecture < 90 and width == 128:
        return AMPERE[kernel]
    return table[width][shape.timed]


def forward_tile(shape: Shape) -> Tile:
    """Of the forward kernel."""
    return _choose(FORWARD, "forward", shape)


def query_gradient_tile(shape: Shape) -> Tile:
    """Of the kernel for dQ and the biases."""
    return _choose(QUERIES, "queries", shape)


def key_gradient_tile(shape: Shape) -> Tile:
    """Of the kernel for dK and dV."""
    return _choose(KEYS, "keys", shape)
