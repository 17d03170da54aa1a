# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The best rows of an event on a GPU: a bound that leaves enough of them is found bit by bit."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.memory.reference import OUT as SCORE_OUT
from kernels.memory.triton_features import LIST

OUT = tl.constexpr(SCORE_OUT)


DIGIT_BITS = tl.constexpr(8)
NUM_DIGITS = tl.constexpr(1 << DIGIT_BITS.value)


@triton.jit
def ordered(score):
    """Scores as integers from 0 to 2^32 - 1 that sort in the same order."""
    bits = score.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def count_digits(score_ptr, prefix, shift, num_rows, BLOCK: tl.constexpr):
    """How many scores, of rows that compete, have each value of the digit from bit ``shift`` on, of those whose bits
    above it are ``prefix``."""
    count = tl.zeros([NUM_DIGITS], tl.int32)
    for start in range(0, num_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        score = tl.load(score_ptr + row, mask=row < num_rows, other=OUT)
        bits = ordered(score) >> shift
        is_counted = (score > 0.5 * OUT) & ((bits >> DIGIT_BITS) == prefix)
        count += tl.histogram((bits & (NUM_DIGITS - 1)).to(tl.int32), NUM_DIGITS, mask=is_counted)
    return count


@triton.jit
def pick(score_ptr, list_ptr, num_rows, BLOCK: tl.constexpr):
    """Write the best rows into the list, of equal ones the first; returns how many."""
    digit = tl.arange(0, NUM_DIGITS)
    bound, num, num_equal = tl.zeros([], tl.int64), tl.zeros([], tl.int32), tl.zeros([], tl.int32)
    for back in tl.static_range(4):  # the score of the last one that is listed, from its highest digit on
        count = count_digits(score_ptr, bound, 24 - 8 * back, num_rows, BLOCK)
        below = tl.cumsum(count, 0)
        all_digits = tl.sum(count, 0)
        if back == 0:
            num = tl.minimum(all_digits, LIST)
            num_equal = num
        at_least = all_digits - below + count
        found = tl.max(tl.where(at_least >= num_equal, digit, 0), 0)
        num_equal -= tl.sum(tl.where(digit > found, count, 0), 0)
        bound = (bound << DIGIT_BITS) | found
    listed, equal = tl.zeros([], tl.int32), tl.zeros([], tl.int32)
    for start in range(0, num_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        score = tl.load(score_ptr + row, mask=row < num_rows, other=OUT)
        key = ordered(score)
        is_equal = ((score > 0.5 * OUT) & (key == bound)).to(tl.int32)
        taken = (score > 0.5 * OUT) & ((key > bound) | ((is_equal > 0) & (equal + tl.cumsum(is_equal, 0) <= num_equal)))
        place = listed + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(list_ptr + place, row, mask=taken)
        listed += tl.sum(taken.to(tl.int32), 0)
        equal += tl.sum(is_equal, 0)
    return num
