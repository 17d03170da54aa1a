"""The arguments of attention's kernels, in groups: argument lists stay short, and an absent group is None.

Triton passes the fields of a named tuple one by one and removes those that are None at compile time. It also compiles
again for integers that are 1 or a multiple of 16, which cannot be disabled within a tuple: so values that vary from
batch to batch are passed outside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Operand(NamedTuple):
    """A (tokens, heads, width) tensor, contiguous along the width; strides in elements."""

    pointer: Any
    stride: int
    head_stride: int


class Tokens(NamedTuple):
    """A batch's tokens, from `kernels.attention.triton_plan.Plan`; None if no user has context or targets."""

    start: Any
    stop: Any
    context: Any
    history: Any
    order: Any
    """The order in which programs take the blocks."""


class Positions(NamedTuple):
    """rab^p / 2 from `make_position_table`; ``grouped``: whether each head has its own row."""

    table: Any
    grouped: bool


class Times(NamedTuple):
    """rab^t, contiguous, and `kernels.attention.triton_times.TimeTables`; one threshold fewer than buckets."""

    bias: Any
    grouped: bool
    near: Any
    ranges: Any
    bounds: Any
    unsorted: Any
    thresholds: Any
    query_time: Any
    key_time: Any


class BiasSums(NamedTuple):
    """Each program's sums by diagonal and by time level, one row each; and its notes on one tile of queries."""

    diagonals: Any
    levels: Any
    notes: Any


def operand(tensor: Tensor) -> Operand:
    """A tensor with its strides."""
    return Operand(tensor, tensor.stride(0), tensor.stride(1))
