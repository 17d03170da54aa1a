# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""What a group of events changes in rows' neighbours, on a GPU: learned weights and counts.

Different rows are independent, so there is a program for each place in the list of rows; the one at a row's first place
goes through the list and applies that row's changes, in order.
"""

from __future__ import annotations

from math import log2

import triton
import triton.language as tl

from kernels.memory import counting, features
from kernels.memory.triton_features import (
    ENTRIES,
    EVENT,
    LEARNED_FADE,
    TINY,
    VISIT,
    across_visits,
    only_if,
)
from kernels.memory.triton_groups import count_column
from kernels.memory.triton_hours import refresh_hourly
from kernels.memory.triton_pairs import MARK, PER_EVENT, count_pairs

COUNT_FADE, DIRECT_COUNT_FADE = (
    tl.constexpr(log2(decay)) for decay in (features.COUNTED[1], counting.DIRECT_COUNT_DECAY)
)


@triton.jit
def after_place(table, row, place):
    """The next place of a row in a list of rows, or a large number."""
    index = tl.arange(0, table.shape[0])
    return tl.min(tl.where((table == row) & (index > place), index, 1 << 30), 0)


@triton.jit
def places_of(row, list_ptr, num, TABLE: tl.constexpr):
    """A list of rows of ``num`` events, and the first place of ``row`` in it."""
    index = tl.arange(0, TABLE)
    table = tl.load(list_ptr + index, mask=index < num * ENTRIES, other=-1)
    return table, after_place(table, row, -1)


@triton.jit(do_not_specialize=["num", "width", "stride"])
def learn_weights_kernel(
    learning_ptr, rate_ptr, push_ptr, neighbour_row, num_neighbours, weight, dirty, weight_rate, num, width, stride,
    WIDTH: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """Update the learned weights of the last choices' neighbours, one row per program."""
    row = tl.load(learning_ptr + tl.program_id(0))
    if row >= 0:
        table, place = places_of(row, learning_ptr, num, TABLE)
        if place == tl.program_id(0):
            neighbour = tl.arange(0, WIDTH)
            inside = neighbour < tl.load(num_neighbours + row)
            at = row.to(tl.int64) * width + neighbour
            other = tl.load(neighbour_row + at, mask=inside, other=0)
            value = tl.load(weight + at, mask=inside, other=0.0)
            while place < num * ENTRIES:
                event, lag = place // ENTRIES, (place % ENTRIES).to(tl.float32)
                rate = weight_rate * tl.load(rate_ptr + event) * tl.exp2(lag * LEARNED_FADE)
                push = tl.load(push_ptr + event.to(tl.int64) * stride + other, mask=inside, other=0.0)
                value -= rate * push
                place = after_place(table, row, place)
            tl.store(weight + at, value, mask=inside)
            tl.store(dirty + row, MARK)


@triton.jit(do_not_specialize=["num", "num_rows", "width", "num_groups"])
def count_events_kernel(
    event_ptr, past_ptr, counting_ptr, unit_ptr, neighbour_row, num_neighbours, after_ptr, before_ptr, direct_ptr,
    weight_ptr, hour, hourly, dirty, moved, clock_ptr, pairs, groups, num, num_rows, width, num_groups,
    WIDTH: tl.constexpr, TABLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count sightings of rows' neighbours, one row per program; see `kernels.memory.counting`.

    The list has pairs: a past choice, then what was chosen after it. Each is counted as a neighbour of the other. The
    programs after the list's count what followed two choices in a row, then compute the rows' times of day, a block of
    rows each, then count groups.
    """
    task = tl.program_id(0) - num * ENTRIES
    if task >= 0:
        if task < num * PER_EVENT:
            count_pairs(pairs, task, event_ptr, past_ptr, unit_ptr, num, TABLE // ENTRIES)
        task -= num * PER_EVENT
        num_blocks = (num_rows + BLOCK - 1) // BLOCK
        if (task >= 0) & (task < num_blocks):
            refresh_hourly(hour, hourly, clock_ptr, task, num_rows, BLOCK)
        if groups is not None:
            task -= num_blocks
            if task >= 0:
                count_column(groups, task, unit_ptr, num, num_groups, TABLE // ENTRIES)
    row = tl.load(counting_ptr + tl.program_id(0), mask=tl.program_id(0) < num * ENTRIES, other=-1)
    if row >= 0:
        table, place = places_of(row, counting_ptr, num, TABLE)
        if place == tl.program_id(0):
            neighbour = tl.arange(0, WIDTH)
            at = row.to(tl.int64) * width + neighbour
            count = tl.load(num_neighbours + row)
            inside = neighbour < count
            ids = tl.load(neighbour_row + at, mask=inside, other=-1)
            after = tl.load(after_ptr + at, mask=inside, other=0.0)
            before = tl.load(before_ptr + at, mask=inside, other=0.0)
            direct = tl.load(direct_ptr + at, mask=inside, other=0.0)
            weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
            changed = tl.zeros([WIDTH], tl.int32)
            while place < num * ENTRIES:
                other = tl.load(counting_ptr + (place ^ 1))
                is_after = (place % 2) == 0
                unit = tl.load(unit_ptr + place // ENTRIES)
                lag = (place % ENTRIES // 2).to(tl.float32)
                value = unit * tl.exp2(lag * COUNT_FADE)
                more_after, more_before = tl.where(is_after, value, 0.0), tl.where(is_after, 0.0, value)
                num_visit = tl.load(event_ptr + place // ENTRIES * EVENT + VISIT).to(tl.float32)
                share = tl.where(lag < num_visit, 1.0, across_visits(clock_ptr)) * tl.exp2(lag * DIRECT_COUNT_FADE)
                more_direct = tl.where(is_after, unit * share, 0.0)
                is_it = ids == other
                is_found = tl.max(is_it.to(tl.int32), 0) > 0
                is_full = count == width
                both = tl.where(neighbour < count, after + before, float("inf"))
                least = tl.min(both, 0)
                weakest = tl.min(tl.where(both == least, neighbour, WIDTH), 0)
                is_reduced = (is_found == 0) & is_full & (value < least)
                is_it = tl.where(is_found, is_it, neighbour == tl.where(is_full, weakest, count))
                left = tl.where(is_reduced, 1.0 - value / tl.maximum(least, TINY), 1.0)
                is_kept = is_found | is_reduced
                gain = tl.where(is_reduced, 0.0, 1.0)
                after = tl.where(is_it, tl.where(is_kept, after * left, 0.0) + gain * more_after, after)
                before = tl.where(is_it, tl.where(is_kept, before * left, 0.0) + gain * more_before, before)
                direct = tl.where(is_it, tl.where(is_kept, direct * left, 0.0) + gain * more_direct, direct)
                is_new = only_if(is_kept == 0, is_it)
                weight = tl.where(is_new, 0.0, weight)
                ids = tl.where(is_new, other, ids)
                count = tl.where(is_kept | is_full, count, count + 1)
                changed = tl.where(is_it, 1, changed)
                place = after_place(table, row, place)
            inside = neighbour < count
            tl.store(neighbour_row + at, ids, mask=inside)
            tl.store(after_ptr + at, after, mask=inside)
            tl.store(before_ptr + at, before, mask=inside)
            tl.store(direct_ptr + at, direct, mask=inside)
            tl.store(weight_ptr + at, weight, mask=inside)
            tl.store(num_neighbours + row, count)
            tl.store(dirty + row, MARK)
            bits = tl.sum(tl.reshape(changed << (neighbour % 8), [WIDTH // 8, 8]), 1)
            byte = tl.arange(0, WIDTH // 8)
            num_bytes = (width + 7) // 8
            at_byte = moved + row.to(tl.int64) * num_bytes + byte
            old = tl.load(at_byte, mask=byte < num_bytes, other=0).to(tl.int32)
            tl.store(at_byte, (old | bits).to(tl.uint8), mask=byte < num_bytes)
