"""Shapes of the kernels' tiles. Chosen from the compiler's reports; `python -m bench gpu_tiles` measures the others."""

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


def forward_tile(dtype: torch.dtype, width: int, in_order: bool = True) -> Tile:
    """``width``: the wider of a query's and a value's head. ``in_order``: the version for times that do not go back.

    One warpgroup a program: two programs fit a processor, and one multiplies while the other takes SiLU.
    """
    if INTERPRETED:
        return Tile(64, 64, 4, 1)
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    return Tile(64, 64, 4, 2) if in_order or width <= 64 else Tile(64, 32, 4, 2)


def query_gradient_tile(dtype: torch.dtype, width: int, in_order: bool = True) -> Tile:
    """Of the kernel for dQ and the biases. 128 queries a tile spilt under Triton 3.6 at width 128."""
    if INTERPRETED:
        return Tile(64, 64, 4, 1)
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    return Tile(64, 64, 8, 2) if in_order and width <= 128 else Tile(64, 32, 8, 2)


def key_gradient_tile(dtype: torch.dtype, width: int, in_order: bool = True) -> Tile:
    """Of the kernel for dK and dV."""
    if INTERPRETED:
        return Tile(64, 64, 4, 1)
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    if width > 64:
        return Tile(64, 64, 8, 2) if in_order else Tile(32, 64, 8, 2)
    return Tile(64, 64, 8, 2)
