# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""What followed two choices in a row, and what followed a choice with any one between, on a GPU: see
`kernels.memory.pairs`.

Few rows follow an event's two pairs. Their features stand in a table of the event, and each such row's count of own
choices has, in bits of its own, where in the table: so no number of scratch memory is needed for the other rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernels.memory import pairs
from kernels.memory.arrays import CHANGED, NEXT_OF_PAIR, PAIRED
from kernels.memory.triton_features import (
    EVENT,
    FOLLOWERS,
    PAIR_BIT,
    PAST_END,
    SKIP_BIT,
    TARGET,
    TINY,
    logarithm,
    only_if,
)

NEXT, PER_EVENT = tl.constexpr(NEXT_OF_PAIR), tl.constexpr(len(PAIRED))
SCALE = tl.constexpr(pairs.SCALE)
MARK = tl.constexpr(CHANGED)
PAIR_MARK, SKIP_MARK = tl.constexpr(1 << PAIR_BIT.value), tl.constexpr(1 << SKIP_BIT.value)


class Pairs(NamedTuple):
    """`kernels.memory.MemoryArrays` of pairs, and scratch memory. ``slot``: (events, `PER_EVENT`) the slots in which a
    group's events are counted, -1 for none; ``value``: `FOLLOWERS` features for each program."""

    row: Any
    next: Any
    count: Any
    dirty: Any
    moved: Any
    slot: Any
    value: Any


@triton.jit
def slots_of(first, second, num_pairs):
    """The slots of pairs of rows. In 64 bits, since a product of 32 would have a sign."""
    hashed = (first.to(tl.int64) * 0x9E3779B1 ^ second.to(tl.int64) * 0x85EBCA77) & 0xFFFFFFFF
    hashed ^= hashed >> 15
    hashed = (hashed * 0x2C1B3C6D) & 0xFFFFFFFF
    hashed ^= hashed >> 13
    return (hashed & (num_pairs - 1)).to(tl.int32)


@triton.jit
def pairs_before(past_ptr, num_past, num_pairs):
    """What comes before a choice, once for each of `FOLLOWERS`: the pair, and its slot; -1 if there were fewer than two
    choices."""
    follower = tl.arange(0, FOLLOWERS)
    has_two = num_past > follower * 0 + 1
    first = tl.load(past_ptr + num_past - 2 + follower * 0, mask=has_two, other=0)
    second = tl.load(past_ptr + num_past - 1 + follower * 0, mask=has_two & (follower < NEXT), other=0)
    return first, second, tl.where(has_two, slots_of(first, second, num_pairs), -1)


@triton.jit
def list_pairs(of, place, slot, is_counted):
    """List the slots in which an event is counted."""
    follower = tl.arange(0, FOLLOWERS)
    into = of.slot + place * PER_EVENT + follower // NEXT
    tl.store(into, tl.where(is_counted, slot, -1), mask=follower % NEXT == 0)


@triton.jit
def note_pairs(of, first, second, slot, seen_ptr, clock_ptr, own_ptr, value_ptr):
    """Write the features of the rows that followed an event's pairs, and note in these rows where they are."""
    follower = tl.arange(0, FOLLOWERS)
    at = tl.maximum(slot, 0).to(tl.int64)
    is_it = (slot >= 0) & (tl.load(of.row + at * 2) == first) & (tl.load(of.row + at * 2 + 1) == second)
    count = tl.load(of.count + at * NEXT + follower % NEXT, mask=is_it, other=0.0)
    row = tl.load(of.next + at * NEXT + follower % NEXT, mask=count > 0, other=0)
    of_both = tl.sum(tl.where(follower < NEXT, count, 0.0), 0)
    of_one = tl.sum(tl.where(follower < NEXT, 0.0, count), 0)
    of_one = tl.maximum(of_one, tl.load(seen_ptr + first, mask=slot >= 0, other=0.0))
    counted = tl.where(follower < NEXT, of_both, of_one)
    unit = tl.load(clock_ptr + 1).to(tl.float32)
    tl.store(value_ptr + follower, logarithm(count / (counted + unit), SCALE))
    mark = tl.where(follower < NEXT, PAIR_MARK, SKIP_MARK)
    tl.atomic_or(own_ptr + row, (follower % NEXT + 1) * mark, mask=count > 0)


@triton.jit
def rescale_pairs(of, unit, num_pairs, BLOCK: tl.constexpr):
    """Rescale counts with their unit, which changes every slot in use."""
    for start in range(0, num_pairs * NEXT, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < num_pairs * NEXT
        tl.store(of.count + at, tl.load(of.count + at, mask=inside, other=0.0) * unit, mask=inside)
    for start in range(0, num_pairs, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        is_used = tl.load(of.row + slot * 2, mask=slot < num_pairs, other=0) > 0
        tl.store(of.dirty + slot, tl.full([BLOCK], MARK, tl.uint8), mask=is_used)
        tl.store(of.moved + slot, tl.full([BLOCK], 255, tl.uint8), mask=is_used)


@triton.jit
def count_pairs(of, task, event_ptr, past_ptr, unit_ptr, num, GROUP: tl.constexpr):
    """Count what followed the pairs of a slot, in order. As in `count_events_kernel`, the program of a slot's first
    place in the list counts all."""
    index = tl.arange(0, GROUP * PER_EVENT)
    slots = tl.load(of.slot + index, mask=index < num * PER_EVENT, other=-1)
    slot = tl.load(of.slot + task)
    if slot >= 0:
        place = tl.min(tl.where(slots == slot, index, 1 << 30), 0)
        if place == task:
            column = tl.arange(0, NEXT)
            at = slot.to(tl.int64) * NEXT + column
            row_0, row_1 = tl.load(of.row + slot * 2), tl.load(of.row + slot * 2 + 1)
            ids, counts = tl.load(of.next + at), tl.load(of.count + at)
            moved = tl.zeros([NEXT], tl.int32)
            while place < num * PER_EVENT:
                event = place // PER_EVENT
                end = tl.load(event_ptr + event * EVENT + PAST_END)
                first, last = tl.load(past_ptr + end - 2), tl.load(past_ptr + end - 1)
                second = tl.where(place % PER_EVENT == 0, last, 0)
                target, unit = tl.load(event_ptr + event * EVENT + TARGET), tl.load(unit_ptr + event)
                # The slot: it is the pair's, or is given up for it, or counts less but stays another's.
                is_own, counted = (row_0 == first) & (row_1 == second), tl.sum(counts, 0)
                is_reduced = (is_own == 0) & (unit < counted)
                is_claimed = (is_own == 0) & (is_reduced == 0)
                left = tl.where(is_reduced, 1.0 - unit / tl.maximum(counted, TINY), 1.0)
                counts = tl.where(is_claimed, 0.0, counts * left)
                ids = tl.where(is_claimed, 0, ids)
                row_0, row_1 = tl.where(is_claimed, first, row_0), tl.where(is_claimed, second, row_1)
                # What followed: a count more, or a place that is free, or one that becomes free as all lose as much.
                found, least = (ids == target) & (counts > 0), tl.min(counts, 0)
                is_found = tl.max(found.to(tl.int32), 0) > 0
                weakest = tl.min(tl.where(counts == least, column, NEXT), 0)
                takes = (is_reduced == 0) & (is_found == 0)
                taken = tl.where(takes, tl.minimum(unit, least), 0.0)
                more = tl.where(is_reduced, 0.0, unit - taken)
                is_it = tl.where(is_found, found, column == weakest)
                counts = counts - taken + tl.where(is_it, more, 0.0)
                ids = tl.where(only_if(takes & (more > 0), is_it), target, ids)
                is_whole = (is_own == 0) | (taken > 0)
                moved = tl.where(is_whole, 1, tl.where(is_it, 1, moved))
                place = tl.min(tl.where((slots == slot) & (index > place), index, 1 << 30), 0)
            bits = tl.load(of.moved + slot).to(tl.int32) | tl.sum(moved << column, 0)
            tl.debug_barrier()  # every thread has read what is changed now
            tl.store(of.row + slot * 2, row_0)
            tl.store(of.row + slot * 2 + 1, row_1)
            tl.store(of.next + at, ids)
            tl.store(of.count + at, counts)
            tl.store(of.dirty + slot, MARK)
            tl.store(of.moved + slot, bits.to(tl.uint8))
