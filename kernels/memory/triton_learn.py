# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""What a group of predicted events changes on a GPU, besides rows' neighbours (`kernels.memory.triton_neighbours`):
gains, the shortlist, the clock, and the rows that were met. Each is small, and one program updates it for all events,
in their order; programs read nothing that another one changes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.memory import counting
from kernels.memory.arrays import NUM_HEATS, RECENT
from kernels.memory.shortlist import LISTS_REMEMBERED
from kernels.memory.triton_features import (
    BUCKET,
    CHOSEN,
    EVENT,
    NUM_FEATURES,
    NUM_SEEN,
    NUM_WEIGHTS,
    SLOPES,
    TARGET,
    only_if,
)
from kernels.memory.triton_groups import learn_column, rescale_groups
from kernels.memory.triton_hours import HOURS, count_hours, note_time
from kernels.memory.triton_pairs import MARK, rescale_pairs

NUM_HEAT, LAST_CHOICES = tl.constexpr(NUM_HEATS), tl.constexpr(RECENT)
LISTS = tl.constexpr(LISTS_REMEMBERED)
RESCALE_AT = tl.constexpr(counting.RESCALE_AT)
LEAST_SQUARE = tl.constexpr(1e-37)
UNROLLED = tl.constexpr(4)
"""Events whose slopes are loaded at once, so that not each of them waits for its own."""
NUM_PROGRAMS = 3
"""Of a launch without groups."""


@triton.jit
def root(square):
    """The square root; of a subnormal number, to which the square of an input that is always 0 decays, not 0."""
    return tl.sqrt(tl.maximum(square, LEAST_SQUARE))


@triton.jit
def learn_gains(
    event_ptr, slope_ptr, told_ptr, gain_ptr, square_ptr, num, num_parts, rate, decay,
    PARTS: tl.constexpr,
):  # fmt: skip
    """The shared gains and each bucket's: a step for each event, in order."""
    part, column = tl.arange(0, PARTS), tl.arange(0, 32)
    at = part[:, None] * NUM_FEATURES + column[None, :]
    inside = (part < num_parts)[:, None] & (column < NUM_FEATURES)[None, :]
    gain = tl.load(gain_ptr + at, mask=inside, other=0.0)
    square = tl.load(square_ptr + at, mask=inside, other=1.0)
    part_rate = tl.where(part == 0, 1.0, 0.5) * rate
    for place in tl.range(num, loop_unroll_factor=UNROLLED):
        bucket = tl.load(event_ptr + place * EVENT + BUCKET)
        slope = tl.load(slope_ptr + place * 32 + column)[None, :]
        moves = only_if(tl.load(told_ptr + place * 4) > 0, inside & ((part == 0) | (part == bucket))[:, None])
        square = tl.where(moves, square * decay + slope * slope, square)
        gain = tl.where(moves, gain - part_rate[:, None] * slope / root(square), gain)
    tl.store(gain_ptr + at, gain, mask=inside)
    tl.store(square_ptr + at, square, mask=inside)


@triton.jit
def learn_shortlist(slope_ptr, moment_ptr, told_ptr, weight_ptr, square_ptr, norm_ptr, num, rate, decay):
    """The shortlist's network, and the statistics of its inputs."""
    at, column = tl.arange(0, SLOPES), tl.arange(0, 32)
    inside, of_list = at < NUM_WEIGHTS, column < NUM_SEEN
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
    square = tl.load(square_ptr + at, mask=inside, other=1.0)
    first_mean = tl.load(norm_ptr + column, mask=of_list, other=0.0)
    variance = tl.load(norm_ptr + NUM_SEEN + column, mask=of_list, other=1.0)
    lists = tl.load(norm_ptr + 2 * NUM_SEEN + column, mask=of_list, other=0.0)
    mean = first_mean
    for place in tl.range(num, loop_unroll_factor=UNROLLED):
        is_predicted = tl.load(told_ptr + place * 4) > 0
        slope = tl.load(slope_ptr + place * SLOPES + at, mask=inside, other=0.0)
        moves = only_if(is_predicted & (tl.load(told_ptr + place * 4 + 1) > 0), inside)
        square = tl.where(moves, square * decay + slope * slope, square)
        weight = tl.where(moves, weight - rate * slope / root(square), weight)
        away_1 = tl.load(moment_ptr + place * 64 + column)
        away_2 = tl.load(moment_ptr + place * 64 + 32 + column)
        since = first_mean - mean
        lists = tl.where(is_predicted, lists + 1.0, lists)
        share = tl.where(is_predicted, 1.0 / tl.minimum(tl.maximum(lists, 1.0), LISTS), 0.0)
        mean = tl.where(is_predicted, mean + share * (away_1 + since), mean)
        spread = away_2 + 2.0 * since * away_1 + since * since
        variance = tl.where(is_predicted, variance + share * (spread - variance), variance)
    tl.store(weight_ptr + at, weight, mask=inside)
    tl.store(square_ptr + at, square, mask=inside)
    tl.store(norm_ptr + column, mean, mask=of_list)
    tl.store(norm_ptr + NUM_SEEN + column, variance, mask=of_list)
    tl.store(norm_ptr + 2 * NUM_SEEN + column, lists, mask=of_list)


@triton.jit
def rescale(
    after, before, direct, seen, hour, heat, first, dirty, moved, clock_ptr, pairs, groups, num_rows, width, stride,
    num_bytes, num_columns, num_groups, num_pairs, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rescale counts before their unit outgrows a float; see `kernels.memory.counting`."""
    scale = tl.load(clock_ptr + 1)
    if scale.to(tl.float32) > RESCALE_AT:
        unit = (1.0 / scale).to(tl.float32)
        for start in range(0, num_rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            tl.store(seen + row, tl.load(seen + row, mask=row < num_rows, other=0.0) * unit, mask=row < num_rows)
            tl.store(dirty + row, tl.full([BLOCK], MARK, tl.uint8), mask=row < num_rows)
        for start in range(0, num_rows * HOURS, BLOCK):
            at = start + tl.arange(0, BLOCK)
            count = tl.load(hour + at, mask=at < num_rows * HOURS, other=0.0)
            tl.store(hour + at, count * unit, mask=at < num_rows * HOURS)
        for start in range(0, num_rows.to(tl.int64) * width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < num_rows.to(tl.int64) * width
            tl.store(after + at, tl.load(after + at, mask=inside, other=0.0) * unit, mask=inside)
            tl.store(before + at, tl.load(before + at, mask=inside, other=0.0) * unit, mask=inside)
            tl.store(direct + at, tl.load(direct + at, mask=inside, other=0.0) * unit, mask=inside)
        for start in range(0, num_rows.to(tl.int64) * num_bytes, BLOCK):
            at = start + tl.arange(0, BLOCK)
            tl.store(moved + at, tl.full([BLOCK], 255, tl.uint8), mask=at < num_rows.to(tl.int64) * num_bytes)
        rescale_pairs(pairs, unit, num_pairs, BLOCK)
        if groups is not None:
            rescale_groups(groups, unit, num_columns, num_groups, BLOCK)
        tl.debug_barrier()  # every thread has read the scale
        tl.store(clock_ptr + 1, scale * 0.0 + 1.0)
    for h in tl.static_range(NUM_HEAT):
        scale = tl.load(clock_ptr + 2 + h)
        if scale.to(tl.float32) > RESCALE_AT:
            unit = (1.0 / scale).to(tl.float32)
            for start in range(0, num_rows, BLOCK):
                row = start + tl.arange(0, BLOCK)
                inside = row < num_rows
                value = tl.load(heat + h * stride + row, mask=inside, other=0.0)
                is_known = tl.load(first + row, mask=inside, other=-1) >= 0
                tl.store(dirty + row, tl.full([BLOCK], MARK, tl.uint8), mask=inside & is_known & (value != 0))
                tl.store(heat + h * stride + row, value * unit, mask=inside)
            tl.debug_barrier()
            tl.store(clock_ptr + 2 + h, scale * 0.0 + 1.0)
    tl.debug_barrier()


@triton.jit
def meet(
    event_ptr, now_ms_ptr, told_ptr, unit_ptr, seen, hour, heat, first, last, recent, dirty, clock_ptr, num, stride,
    seen_fade, heat_fade_0, heat_fade_1, heat_fade_2, repeat_fade, GROUP: tl.constexpr,
):  # fmt: skip
    """Times and counts of the rows met. Events of the same row all write what the row has after the last of them."""
    place = tl.arange(0, GROUP)
    target = tl.load(event_ptr + place * EVENT + TARGET, mask=place < num, other=0)
    chosen = tl.load(event_ptr + place * EVENT + CHOSEN, mask=place < num, other=0)
    is_met = target > 0
    is_chosen = is_met & (chosen > 0)
    now = tl.load(clock_ptr).to(tl.int64)
    order = tl.cumsum(is_met.to(tl.int32), 0) - 1
    num_chosen = tl.cumsum(is_chosen.to(tl.int32), 0) - is_chosen.to(tl.int32)
    same = (target[:, None] == target[None, :]) & is_chosen[None, :]
    first_choice = tl.min(tl.where(same, order[None, :], GROUP), 1)
    last_choice = tl.max(tl.where(same, order[None, :], -1), 1)
    is_same = (target[:, None] == target[None, :]) & is_met[None, :]
    first_meeting = tl.min(tl.where(is_same, order[None, :], GROUP), 1)
    was_first = tl.load(first + target, mask=is_met, other=0)
    was_last = tl.load(last + target, mask=is_met, other=0)
    was_seen = tl.load(seen + target, mask=is_met, other=0.0)
    steps = num_chosen.to(tl.float64)
    unit = (tl.load(clock_ptr + 1) * tl.exp2(steps * seen_fade)).to(tl.float32)
    tl.store(unit_ptr + place, unit, mask=place < num)
    more = tl.sum(tl.where(same, unit[None, :], 0.0), 1)
    heat_0 = _heated(same, steps, clock_ptr, 0, heat_fade_0) + tl.load(heat + target, mask=is_met, other=0.0)
    heat_1 = _heated(same, steps, clock_ptr, 1, heat_fade_1) + tl.load(heat + stride + target, mask=is_met, other=0.0)
    heat_2 = _heated(same, steps, clock_ptr, 2, heat_fade_2)
    heat_2 += tl.load(heat + 2 * stride + target, mask=is_met, other=0.0)
    tl.debug_barrier()
    has_choice = last_choice >= 0
    is_first, is_new = has_choice & (was_last < 0), was_first < 0
    begins = tl.where(is_first, now + first_choice, tl.where(is_new, now + first_meeting, was_first))
    tl.store(first + target, begins, mask=is_met)
    tl.store(last + target, tl.where(has_choice, now + last_choice, was_last), mask=is_met)
    tl.store(seen + target, was_seen + more, mask=is_met)
    tl.store(heat + target, heat_0, mask=is_met)
    tl.store(heat + stride + target, heat_1, mask=is_met)
    tl.store(heat + 2 * stride + target, heat_2, mask=is_met)
    tl.store(dirty + target, tl.full([GROUP], MARK, tl.uint8), mask=is_met)
    tl.store(recent + (now + order) % LAST_CHOICES, target, mask=is_chosen)
    now_ms = tl.load(now_ms_ptr + place, mask=place < num, other=0)
    count_hours(hour, target, is_met, same, unit, now_ms)
    note_time(clock_ptr, is_met, now_ms)
    all_chosen = tl.sum(is_chosen.to(tl.int32), 0).to(tl.float64)
    tl.store(clock_ptr, tl.load(clock_ptr) + tl.sum(is_met.to(tl.int32), 0).to(tl.float64))
    tl.store(clock_ptr + 1, tl.load(clock_ptr + 1) * tl.exp2(all_chosen * seen_fade))
    tl.store(clock_ptr + 2, tl.load(clock_ptr + 2) * tl.exp2(all_chosen * heat_fade_0))
    tl.store(clock_ptr + 3, tl.load(clock_ptr + 3) * tl.exp2(all_chosen * heat_fade_1))
    tl.store(clock_ptr + 4, tl.load(clock_ptr + 4) * tl.exp2(all_chosen * heat_fade_2))
    told = tl.load(told_ptr + place * 4, mask=place < num, other=0) > 0
    add_fading(clock_ptr + 5, told, tl.load(told_ptr + place * 4 + 2, mask=told, other=0), repeat_fade)
    add_fading(clock_ptr + 6, told, told.to(tl.int32), repeat_fade)
    is_begun = tl.load(told_ptr + place * 4 + 3, mask=told, other=-1)
    add_fading(clock_ptr + 7, is_begun >= 0, is_begun, repeat_fade)
    add_fading(clock_ptr + 8, is_begun >= 0, 1 - is_begun, repeat_fade)


@triton.jit
def add_fading(count_ptr, is_counted, value, fade):
    """Add values to a count that fades by two to the power of ``fade`` for each of them."""
    later = tl.sum(is_counted.to(tl.int32), 0) - tl.cumsum(is_counted.to(tl.int32), 0)
    added = tl.where(is_counted, value.to(tl.float64) * tl.exp2(later.to(tl.float64) * fade), 0.0)
    faded = tl.load(count_ptr) * tl.exp2(tl.sum(is_counted.to(tl.int32), 0).to(tl.float64) * fade)
    tl.store(count_ptr, faded + tl.sum(added, 0))


@triton.jit
def _heated(same, steps, clock_ptr, h, fade):
    unit = (tl.load(clock_ptr + 2 + h) * tl.exp2(steps * fade)).to(tl.float32)
    return tl.sum(tl.where(same, unit[None, :], 0.0), 1)


@triton.jit(
    do_not_specialize=[
        "first_event", "num", "num_rows", "width", "stride", "num_parts", "num_columns", "num_groups",
        "num_pairs",
    ]
)  # fmt: skip
def learn_events_kernel(
    event_ptr, past_ptr, now_ms_ptr, slope_ptr, shortlist_slope_ptr, moment_ptr, told_ptr, unit_ptr,
    after, before, direct, seen, hour, heat, first, last, gain_ptr, gain_square, shortlist_weight,
    shortlist_square, shortlist_norm, clock_ptr, dirty, moved, recent, rule_ptr, pairs, groups,
    first_event, num, num_rows, width, stride, num_parts, num_columns, num_groups, num_pairs,
    PARTS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Programs: what is met, the gains, the shortlist, and each column of groups. ``rule_ptr``: float64, see
    `kernels.memory.device`."""
    event_ptr += first_event * EVENT
    if tl.program_id(0) == 0:
        rescale(
            after, before, direct, seen, hour, heat, first, dirty, moved, clock_ptr, pairs, groups, num_rows, width,
            stride, (width + 7) // 8, num_columns, num_groups, num_pairs, BLOCK,
        )  # fmt: skip
        meet(
            event_ptr, now_ms_ptr + first_event, told_ptr, unit_ptr, seen, hour, heat, first, last, recent, dirty,
            clock_ptr, num, stride, tl.load(rule_ptr + 4), tl.load(rule_ptr + 5), tl.load(rule_ptr + 6),
            tl.load(rule_ptr + 7), tl.load(rule_ptr + 8), GROUP,
        )  # fmt: skip
    elif tl.program_id(0) == 1:
        rate, decay = tl.load(rule_ptr).to(tl.float32), tl.load(rule_ptr + 1).to(tl.float32)
        learn_gains(event_ptr, slope_ptr, told_ptr, gain_ptr, gain_square, num, num_parts, rate, decay, PARTS)
    elif tl.program_id(0) == 2:
        rate, decay = tl.load(rule_ptr + 2).to(tl.float32), tl.load(rule_ptr + 3).to(tl.float32)
        learn_shortlist(
            shortlist_slope_ptr, moment_ptr, told_ptr, shortlist_weight, shortlist_square, shortlist_norm, num, rate,
            decay,
        )  # fmt: skip
    elif groups is not None:
        learn_column(
            groups, tl.program_id(0) - 3, event_ptr, told_ptr, past_ptr, first_event, num, num_columns, GROUP
        )  # fmt: skip
