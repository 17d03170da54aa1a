# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The best rows of an event on a GPU: a bound that leaves enough of them is found bit by bit."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.memory.reference import OUT as SCORE_OUT
from kernels.memory.triton_features import LIST

OUT = tl.constexpr(SCORE_OUT)


@triton.jit
def ordered(score):
    """Scores as integers that sort in the same order."""
    bits = score.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def num_at_least(score_ptr, bound, num_rows, BLOCK: tl.constexpr):
    """How many scores, of rows that compete, are at least ``bound``, by `ordered`."""
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        score = tl.load(score_ptr + row, mask=row < num_rows, other=OUT)
        count += ((score > 0.5 * OUT) & (ordered(score).to(tl.int64) >= bound)).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def pick(score_ptr, list_ptr, num_rows, BLOCK: tl.constexpr):
    """Write the best rows into the list, of equal ones the first; returns how many."""
    lowest = tl.zeros([], tl.int64) - 2147483648
    num = tl.minimum(num_at_least(score_ptr, lowest, num_rows, BLOCK), LIST)
    low, high = lowest, tl.zeros([], tl.int64) + 2147483648
    for _ in range(32):  # the largest bound that leaves enough
        middle = (low + high) >> 1
        enough = num_at_least(score_ptr, middle, num_rows, BLOCK) >= num
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
    num_equal = num - num_at_least(score_ptr, low + 1, num_rows, BLOCK)
    listed, equal = tl.zeros([], tl.int32), tl.zeros([], tl.int32)
    for start in range(0, num_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        score = tl.load(score_ptr + row, mask=row < num_rows, other=OUT)
        key = ordered(score).to(tl.int64)
        is_equal = ((score > 0.5 * OUT) & (key == low)).to(tl.int32)
        taken = (score > 0.5 * OUT) & ((key > low) | ((is_equal > 0) & (equal + tl.cumsum(is_equal, 0) <= num_equal)))
        place = listed + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(list_ptr + place, row, mask=taken)
        listed += tl.sum(taken.to(tl.int32), 0)
        equal += tl.sum(is_equal, 0)
    return num
