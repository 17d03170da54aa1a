"""Shapes of the kernels' tiles: the fastest of a sweep, where one was measured.

Measured (H200, Triton 3.6, bfloat16, keys and values by the copy engine; B 32, N 4096, H 4; B 64, N 1024; B 256 and
512, N 128 for short users): tiles of 32 to 128 queries and keys, 4 and 8 warps, 2 to 4 stages, with and without a limit
on registers. `bench/on_gpu/tiles.py` repeats the sweep; bench/NOTES.md has the results.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.backend import KernelUnavailable
from kernels.triton_shared import INTERPRETED


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a tile, warps of a program, how many loads ahead are pipelined, the limit on registers."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None


@dataclass(frozen=True)
class Shape:
    """What a tile is chosen by: ``width``, of the wider of a query and a value head; ``architecture``: 80 is Ampere, 90
    Hopper; ``timed``: whether there is a time bias (a position bias alone needs no tile of its own); ``length``: the
    average number of tokens of a user."""

    dtype: torch.dtype
    width: int
    timed: bool
    architecture: int
    length: int


EXACT = Tile(32, 32, 4, 1)
"""For float32 on a GPU, whose products run on the FP32 pipe, from registers. The interpreter uses bfloat16's tiles."""

#                          plain                  with a time bias
FORWARD = {
    64: (Tile(64, 64, 4, 3), Tile(64, 64, 4, 3, 168)),  # 168: three programs a processor
    128: (Tile(64, 64, 4, 3), Tile(64, 64, 4, 3)),
    256: (Tile(64, 32, 4, 2), Tile(64, 32, 4, 2)),
}
QUERIES = {
    64: (Tile(64, 64, 4, 3), Tile(64, 64, 4, 2)),
    128: (Tile(128, 64, 8, 3), Tile(64, 32, 4, 3)),
    256: (Tile(64, 32, 8, 2), Tile(64, 32, 8, 2)),
}
KEYS = {
    64: (Tile(64, 64, 4, 3), Tile(64, 64, 4, 3)),
    128: (Tile(64, 64, 4, 2), Tile(32, 64, 4, 3)),
    256: (Tile(32, 64, 8, 2), Tile(32, 64, 8, 2)),
}
SHORT = 256
"""Users with fewer tokens have no far tiles: run more programs per processor, to have more loads in flight."""
SHORT_FORWARD = {
    64: (Tile(64, 32, 4, 3), Tile(64, 32, 4, 3, 128)),
    128: (Tile(64, 32, 4, 3, 168), Tile(64, 64, 4, 3)),
}
SHORT_QUERIES = {128: (Tile(64, 64, 4, 2), Tile(64, 32, 4, 3))}
SHORT_KEYS = {64: (Tile(32, 64, 4, 3, 168), Tile(32, 64, 4, 3, 168))}
AMPERE = {"forward": Tile(64, 32, 4, 2), "queries": Tile(128, 32, 8, 2), "keys": Tile(32, 64, 8, 2)}
"""Other tiles spill if heads are wider than 64."""

SMALL = {86, 89, 120, 121}
"""GPUs of workstations (RTX), on which a program has 99 KiB of shared memory: 163 on an A100, 227 from Hopper on."""
SMALL_TILES = {
    128: {"forward": Tile(64, 32, 4, 2), "queries": Tile(64, 32, 4, 2), "keys": Tile(32, 64, 8, 2)},
    256: {"forward": Tile(64, 32, 4, 2), "queries": Tile(32, 32, 4, 1), "keys": Tile(32, 32, 4, 1)},
}
"""Tiles that fit; not measured."""

Tiles = dict[int, tuple[Tile, Tile]]


def _choose(table: Tiles, short: Tiles, kernel: str, shape: Shape) -> Tile:
    width, is_small = next((width for width in table if shape.width <= width), 256), shape.architecture in SMALL
    if shape.dtype == torch.float32 and not INTERPRETED:
        if is_small and width > 128 and kernel != "forward":
            raise KernelUnavailable(
                f"hstu_attention: expected heads of at most 128 for gradients in float32 on this GPU, which has 99 KiB "
                f"of shared memory, got {shape.width}; use narrower heads (model.qk_width, model.value_width)"
            )
        return EXACT
    if is_small and width in SMALL_TILES:
        return SMALL_TILES[width][kernel]
    if shape.architecture < 90 and width == 128:
        return AMPERE[kernel]
    return (short if shape.length < SHORT and width in short else table)[width][shape.timed]


def forward_tile(shape: Shape) -> Tile:
    """The tile of the forward kernel."""
    return _choose(FORWARD, SHORT_FORWARD, "forward", shape)


def query_gradient_tile(shape: Shape) -> Tile:
    """The tile of the kernel for dQ and the biases."""
    return _choose(QUERIES, SHORT_QUERIES, "queries", shape)


def key_gradient_tile(shape: Shape) -> Tile:
    """The tile of the kernel for dK and dV."""
    return _choose(KEYS, SHORT_KEYS, "keys", shape)
