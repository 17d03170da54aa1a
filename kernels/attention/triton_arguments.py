"""What attention's kernels take, in groups: a kernel's list of arguments stays short, and an absent group is a None.

Triton passes the fields of a named tuple one by one and compiles what is None away. It also compiles anew for integers
that are 1 or a multiple of 16, in a tuple always: so what varies from batch to batch stays outside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Operand(NamedTuple):
    """A (tokens, heads, width) tensor whose width is contiguous; strides in elements."""

    pointer: Any
    stride: int
    head_stride: int


class Tokens(NamedTuple):
    """A batch's tokens, as `kernels.attention.triton_plan.Plan` has them; None where nobody has context or targets."""

    start: Any
    stop: Any
    context: Any
    history: Any
    order: Any
    """Of the blocks that a kernel's programs take."""


class Positions(NamedTuple):
    """Halves of rab^p, of `make_position_table`; ``grouped``: whether each head has a row of its own."""

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
    """Each program's sums by diagonal and by level of time, in rows; and its notes on one tile of queries."""

    diagonals: Any
    levels: Any
    notes: Any


def operand(tensor: Tensor) -> Operand:
    """A tensor with its strides."""
    return Operand(tensor, tensor.stride(0), tensor.stride(1))
