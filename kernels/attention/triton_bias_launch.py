"""The gradients of attention's biases on a GPU: memory for each program's sums, and the kernels that add them up."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kernels.attention.triton_arguments import BiasSums
from kernels.attention.triton_bias_gradient import (
    bias_gradient_kernel,
    fold_positions_kernel,
    time_gradient_kernel,
    unfold_kernel,
)
from kernels.attention.triton_tile import Tile
from kernels.attention.triton_times import NEAR


def _num_diagonals(num_positions: int, tile: Tile) -> int:
    """How many distances from the diagonal a tile can have; the first one holds what is beyond the table's ends."""
    return (num_positions + tile.queries + tile.keys) // min(tile.queries, tile.keys) + 1


def bias_sums(
    like: Tensor, num_programs: int, pos_bias_GP: Tensor | None, time_bias_GK: Tensor | None, tile: Tile
) -> tuple[BiasSums, int]:
    """Zeros for each program to add to, one level per bucket, and room for its notes; the strides between programs."""
    width = num_buckets = 0
    if pos_bias_GP is not None:
        width = _num_diagonals(pos_bias_GP.shape[1], tile) * tile.queries * tile.keys // 4
    if time_bias_GK is not None:
        num_buckets = time_bias_GK.shape[1]
    stride = width + (num_buckets + 15) // 16 * 16
    if stride == 0:
        return BiasSums(None, None, None), 0
    sums = torch.zeros(num_programs, stride, dtype=torch.float32, device=like.device)
    diagonals = sums[:, :width] if pos_bias_GP is not None else None
    if time_bias_GK is None:
        return BiasSums(diagonals, None, None), stride
    notes = torch.empty(num_programs, tile.queries * (NEAR + num_buckets), dtype=torch.float32, device=like.device)
    return BiasSums(diagonals, sums[:, width : width + num_buckets], notes), stride


def position_gradient(
    sums: Tensor, pos_bias_GP: Tensor, num_heads: int, tile: Tile, scale: float
) -> Tensor:  # fmt: skip
    """The position bias's gradient from the programs' sums by diagonal."""
    groups, num_positions = pos_bias_GP.shape
    by_tile = add_programs(sums, groups, num_heads, scale)
    by_distance = torch.empty(groups, num_positions + 512, dtype=torch.float32, device=sums.device)
    unfold_kernel[(triton.cdiv(by_distance.shape[1], 32), groups)](
        by_tile, by_distance, num_positions, _num_diagonals(num_positions, tile),
        BM=tile.queries, BN=tile.keys, BLOCK=32,
    )  # fmt: skip
    return fold_positions(by_distance, pos_bias_GP)


def time_gradient(sums: Tensor, time_bias_GK: Tensor, num_heads: int, unsorted: Tensor, scale: float) -> Tensor:
    """The time bias's gradient from the programs' sums by level, or by bucket if times are not in order."""
    grad = torch.empty(time_bias_GK.shape, dtype=time_bias_GK.dtype, device=sums.device)
    groups, num_buckets = grad.shape
    time_gradient_kernel[(triton.cdiv(num_buckets, 64), groups)](
        sums, unsorted, grad, sums.stride(0), num_buckets, sums.shape[0], num_heads if groups > 1 else 1,
        grad.stride(0), scale, PROGRAMS=32, BLOCK=64,
    )  # fmt: skip
    return grad


def fold_positions(sums: Tensor, pos_bias_GP: Tensor) -> Tensor:
    """The position bias's gradient from sums by distance."""
    grad = torch.empty(pos_bias_GP.shape, dtype=pos_bias_GP.dtype, device=pos_bias_GP.device)
    grid = (triton.cdiv(grad.shape[1], 128), grad.shape[0])
    fold_positions_kernel[grid](sums, grad, grad.shape[1], BLOCK=128)
    return grad


def add_programs(sums: Tensor, num_groups: int, num_heads: int, scale: float) -> Tensor:
    """Private sums (programs, width) of programs that keep to one head → (groups, width)."""
    width = sums.shape[1]
    total = torch.empty(num_groups, width, dtype=torch.float32, device=sums.device)
    bias_gradient_kernel[(triton.cdiv(width, 64), num_groups)](
        sums, total, sums.stride(0), width, sums.shape[0], num_heads, width, scale,
        GROUPED=num_groups > 1, PROGRAMS=32, BLOCK=64,
    )  # fmt: skip
    return total
