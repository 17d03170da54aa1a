# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Which groups of items come next, on a GPU: see `kernels.memory.groups`.

Relative to what is usual, an event's past makes all groups of a column equally likely but for those of the last choices
and those that followed the last one's. So an event has a table of its groups' lifts in scratch memory, of which few
differ from the column's base, and a lift for each row, in which any feature of a few rows could be written.
"""

from __future__ import annotations

from math import log2
from typing import Any, NamedTuple

import triton
import triton.language as tl

from kernels.memory import groups
from kernels.memory.arrays import FIRST_SHARES, NEXT_GROUPS
from kernels.memory.triton_features import CHOSEN, EVENT, PAST_BEGIN, PAST_END, TARGET, TINY, only_if

LAGS, NEXT, PARTS = tl.constexpr(groups.LAGS), tl.constexpr(NEXT_GROUPS), tl.constexpr(len(FIRST_SHARES))
OWN_FADE, SHARE_FADE = (tl.constexpr(log2(decay)) for decay in (groups.OWN_DECAY, groups.SHARE_DECAY))
NEXT_AT, ENTRIES = tl.constexpr(32), tl.constexpr(64)
"""Of the groups that differ: where those that followed begin, and how many there are at most."""
NOTES = tl.constexpr(PARTS.value + 1)
"""Numbers for an event and a column: by which share each part predicted its group, and whether any did."""


class Groups(NamedTuple):
    """`kernels.memory.MemoryArrays` of groups, and scratch memory. ``told``: (R, C) the events' groups; ``lift``: for
    each program a number for each row and for each group; ``part``: `NOTES` for each event of a group and column;
    ``pair``: (C, events, 2) the group of the choice before, and the event's, as they are counted."""

    group: Any
    seen: Any
    next: Any
    count: Any
    total: Any
    share: Any
    told: Any
    lift: Any
    part: Any
    pair: Any


@triton.jit
def shares_of(of, column):
    """The shares of a column's parts."""
    usual = tl.load(of.share + column * PARTS) + 1.0
    following = tl.load(of.share + column * PARTS + 1) + 1.0
    own = tl.load(of.share + column * PARTS + 2) + 1.0
    total = usual + following + own
    return usual / total, following / total, own / total


@triton.jit
def lift_column(of, column, told, target, past_ptr, num_past, clock_ptr, table_ptr, part_ptr, num_columns, num_groups):
    """Write the logarithms of what a column's mixture makes of each group, and the parts' shares in the target's."""
    usual, following, own_share = shares_of(of, column)
    unit = tl.load(clock_ptr + 1).to(tl.float32)
    total = tl.load(of.total + column) + unit
    entry = tl.arange(0, ENTRIES)
    is_own = (entry < LAGS) & (entry < num_past)
    row = tl.load(past_ptr + num_past - 1 - entry, mask=is_own, other=0).to(tl.int64)
    group = tl.load(of.group + row * num_columns + column, mask=is_own, other=0)
    own = tl.where(group > 0, tl.exp2(entry.to(tl.float32) * OWN_FADE), 0.0)
    last = tl.sum(tl.where(entry == 0, group, 0), 0)
    is_next = only_if(last > 0, (entry >= NEXT_AT) & (entry < NEXT_AT + NEXT))
    at = (column * num_groups + last) * NEXT + entry - NEXT_AT
    count = tl.load(of.count + at, mask=is_next, other=0.0)
    group = tl.where(is_next, tl.load(of.next + at, mask=is_next, other=0), group)
    is_used = (own > 0) | (count > 0)
    known, counted = tl.sum(own, 0), tl.sum(count, 0)
    base = usual + following * (unit / (counted + unit))
    flat = tl.where(known > 0, tl.log(base), 0.0)
    table_ptr += column * num_groups
    for start in range(0, num_groups, ENTRIES):
        each = start + entry
        tl.store(table_ptr + each, tl.where(each > 0, flat, 0.0), mask=each < num_groups)
    tl.debug_barrier()
    same = group[:, None] == group[None, :]
    own_of = tl.sum(tl.where(same, own[None, :], 0.0), 1)
    count_of = tl.sum(tl.where(same, count[None, :], 0.0), 1)
    rarity = total / (tl.load(of.seen + column * num_groups + group, mask=is_used, other=0.0) + unit)
    per_own = own_share / tl.maximum(known, TINY)
    likely = usual + following * (count_of * rarity + unit) / (counted + unit) + per_own * own_of * rarity
    tl.store(table_ptr + group, tl.log(likely), mask=is_used)
    group_of = tl.load(of.group + target.to(tl.int64) * num_columns + column)
    group_of = tl.where(told > 0, told, group_of)
    own_it = tl.sum(tl.where(group == group_of, own, 0.0), 0)
    count_it = tl.sum(tl.where(group == group_of, count, 0.0), 0)
    rarity_it = total / (tl.load(of.seen + column * num_groups + group_of) + unit)
    next_it = following * (count_it * rarity_it + unit) / (counted + unit)
    own_it = per_own * own_it * rarity_it
    all_it = usual + next_it + own_it
    tl.store(part_ptr, usual / all_it)
    tl.store(part_ptr + 1, next_it / all_it)
    tl.store(part_ptr + 2, own_it / all_it)
    tl.store(part_ptr + 3, tl.where((group_of > 0) & (known > 0), 1.0, 0.0))


@triton.jit
def lift_rows(
    of, event, place, target, past_ptr, num_past, clock_ptr, lift_ptr, num_rows, stride, num_columns, num_groups,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write how much likelier than usual an event's past makes the groups of each row."""
    table_ptr = lift_ptr + stride
    for column in range(num_columns):
        told = tl.load(of.told + event * num_columns + column)
        part_ptr = of.part + (place * num_columns + column) * NOTES
        lift_column(
            of, column, told, target, past_ptr, num_past, clock_ptr, table_ptr, part_ptr, num_columns, num_groups
        )
    tl.debug_barrier()
    for start in range(0, num_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        lift = tl.zeros([BLOCK], tl.float32)
        for column in range(num_columns):
            group = tl.load(of.group + row.to(tl.int64) * num_columns + column, mask=row < num_rows, other=0)
            lift += tl.load(table_ptr + column * num_groups + group, mask=row < num_rows, other=0.0)
        tl.store(lift_ptr + row, lift, mask=row < num_rows)
    tl.debug_barrier()


@triton.jit
def newest_told(row, target, told, is_earlier):
    """The place of the newest event that told the group of each of these rows, -1 for none."""
    place = tl.arange(0, target.shape[0])
    tells = (row[:, None] == target[None, :]) & (told > 0)[None, :] & is_earlier
    return tl.max(tl.where(tells, place[None, :], -1), 1)


@triton.jit
def learn_column(
    of, column, event_ptr, told_ptr, past_ptr, first_event, num, num_columns, GROUP: tl.constexpr
):  # fmt: skip
    """Learn a column's shares, note the groups that the events tell, and list what is to be counted."""
    place = tl.arange(0, GROUP)
    inside = place < num
    part_ptr = of.part + (place * num_columns + column) * NOTES
    is_predicted = tl.load(told_ptr + place * 4, mask=inside, other=0) > 0
    is_learned = is_predicted & (tl.load(part_ptr + 3, mask=is_predicted, other=0.0) > 0)
    num_learned = tl.sum(is_learned.to(tl.int32), 0)
    later = (num_learned - tl.cumsum(is_learned.to(tl.int32), 0)).to(tl.float32)
    for part in tl.static_range(PARTS):
        more = tl.load(part_ptr + part, mask=is_learned, other=0.0) * tl.exp2(later * SHARE_FADE)
        share = tl.load(of.share + column * PARTS + part) * tl.exp2(num_learned.to(tl.float32) * SHARE_FADE)
        tl.debug_barrier()
        tl.store(of.share + column * PARTS + part, share + tl.sum(more, 0))
    target = tl.load(event_ptr + place * EVENT + TARGET, mask=inside, other=0)
    chosen = tl.load(event_ptr + place * EVENT + CHOSEN, mask=inside, other=0)
    begin = tl.load(event_ptr + place * EVENT + PAST_BEGIN, mask=inside, other=0)
    end = tl.load(event_ptr + place * EVENT + PAST_END, mask=inside, other=0)
    before = tl.load(past_ptr + end - 1, mask=end > begin, other=0)
    told_at = of.told + first_event * num_columns + column
    told = tl.load(told_at + place * num_columns, mask=inside & (target > 0), other=0)
    is_earlier = place[None, :] <= place[:, None]
    own_at = newest_told(target, target, told, is_earlier)
    last_at = newest_told(before, target, told, is_earlier)
    final_at = newest_told(target, target, told, place[None, :] >= 0)
    group_ptr = of.group + column
    own = tl.load(group_ptr + target.to(tl.int64) * num_columns, mask=target > 0, other=0)
    last = tl.load(group_ptr + before.to(tl.int64) * num_columns, mask=before > 0, other=0)
    own = tl.where(own_at < 0, own, tl.load(told_at + own_at * num_columns, mask=own_at >= 0, other=0))
    last = tl.where(last_at < 0, last, tl.load(told_at + last_at * num_columns, mask=last_at >= 0, other=0))
    is_counted = (target > 0) & (chosen > 0) & (own > 0)
    pair_ptr = of.pair + (column * GROUP + place) * 2
    tl.store(pair_ptr, tl.where(is_counted, last, 0))
    tl.store(pair_ptr + 1, tl.where(is_counted, own, 0))
    final = tl.load(told_at + final_at * num_columns, mask=final_at >= 0, other=0)
    tl.debug_barrier()  # all groups as they were have been read
    tl.store(group_ptr + target.to(tl.int64) * num_columns, final, mask=(target > 0) & (final_at >= 0))


@triton.jit
def rescale_groups(of, unit, num_columns, num_groups, BLOCK: tl.constexpr):
    """Rescale the counts of groups."""
    num = num_columns * num_groups
    for start in range(0, num * NEXT, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(of.count + at, tl.load(of.count + at, mask=at < num * NEXT, other=0.0) * unit, mask=at < num * NEXT)
        tl.store(of.seen + at, tl.load(of.seen + at, mask=at < num, other=0.0) * unit, mask=at < num)
        tl.store(of.total + at, tl.load(of.total + at, mask=at < num_columns, other=0.0) * unit, mask=at < num_columns)


@triton.jit
def first_of(is_it):
    """The first place of which this is true, or a large number."""
    place = tl.arange(0, is_it.shape[0])
    return tl.min(tl.where(is_it, place, 1 << 30), 0)


@triton.jit
def count_column(of, task, unit_ptr, num, num_groups, GROUP: tl.constexpr):
    """Count a choice's group in a column. As in `count_events_kernel`, the one at a group's first place counts all."""
    column, place = task // num, task % num
    index = tl.arange(0, GROUP)
    pair_ptr = of.pair + column * GROUP * 2
    groups, lasts = tl.load(pair_ptr + index * 2 + 1), tl.load(pair_ptr + index * 2)
    units = tl.load(unit_ptr + index, mask=index < num, other=0.0)
    last, group = tl.load(pair_ptr + place * 2), tl.load(pair_ptr + place * 2 + 1)
    if place == 0:
        more = tl.sum(tl.where(groups > 0, units, 0.0), 0)
        tl.store(of.total + column, tl.load(of.total + column) + more)
    if group > 0:
        is_it = groups == group
        if first_of(is_it) == place:
            seen_ptr = of.seen + column * num_groups + group
            tl.store(seen_ptr, tl.load(seen_ptr) + tl.sum(tl.where(is_it, units, 0.0), 0))
    if last > 0:
        is_it = lasts == last
        if first_of(is_it) == place:
            slot = tl.arange(0, NEXT)
            at = (column * num_groups + last) * NEXT + slot
            ids, counts = tl.load(of.next + at), tl.load(of.count + at)
            while place < num:
                other, unit = tl.load(pair_ptr + place * 2 + 1), tl.load(unit_ptr + place)
                is_found = tl.max(((ids == other) & (counts > 0)).to(tl.int32), 0) > 0
                least = tl.min(counts, 0)
                weakest = tl.min(tl.where(counts == least, slot, NEXT), 0)
                is_reduced = (is_found == 0) & (unit < least)
                changed = tl.where(is_found, (ids == other) & (counts > 0), slot == weakest)
                left = tl.where(is_reduced, 1.0 - unit / tl.maximum(least, TINY), 1.0)
                kept = tl.where(is_found | is_reduced, counts * left, 0.0)
                counts = tl.where(changed, kept + tl.where(is_reduced, 0.0, unit), counts)
                ids = tl.where(only_if((is_found | is_reduced) == 0, changed), other, ids)
                place = first_of(is_it & (index > place))
            tl.store(of.next + at, ids)
            tl.store(of.count + at, counts)
