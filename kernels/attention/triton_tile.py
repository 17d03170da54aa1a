"""Shapes of the kernels' tiles. Chosen from the compiler's reports; `bench/gpu_tiles.py` measures others.

A program reads keys and values (or queries and gradients) once for all rows that it keeps: few rows, and the L2 cache
is what limits it. ``width``: the wider of a query's and a value's head. ``architecture``: 80 is Ampere, 90 Hopper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.triton_shared import INTERPRETED


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a tile, warps of a program, and how many loads ahead the compiler pipelines."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


EXACT = Tile(32, 32, 4, 1)
"""Of float32 on a GPU: its products run on the FP32 pipe, from registers. The interpreter takes bfloat16's tiles."""


def forward_tile(dtype: torch.dtype, width: int, architecture: int) -> Tile:
    """Narrow heads: two programs a processor, and a user of 128 tokens leaves less of a tile empty."""
    if dtype == torch.float32 and not INTERPRETED:
        return EXACT
    if width <= 64:
        return Tile(64, 64, 4, 2)
    if architecture < 90:  # others spill
        return Tile(64, 32, 4, 2)
    return Tile(128, 64 if width <= 128 else 32, 8, 2)


def query_gradient_tile(dtype: torch.dtype, width: int) -> Tile:
    """Of the kernel for dQ and the biases."""
    if dtype == torch.float32 and not INTERPRETED:
        return EXACT
    return Tile(128 if width <= 128 else 64, 32, 8, 2)


def key_gradient_tile(dtype: torch.dtype, width: int, architecture: int) -> Tile:
    """Of the kernel for dK and dV."""
    if dtype == torch.float32 and not INTERPRETED:
        return EXACT
    if architecture < 90 or width > 128:
        return Tile(32, 64, 8, 2)
    return Tile(64 if width <= 64 else 32, 128, 8, 2)
