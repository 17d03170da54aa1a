# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Events of a group predicted on a GPU, one program each: scores, the shortlist, ranks, and what to learn.

A program has a slice of scratch memory for its event: evidence for each row (`kernels.memory.triton_features`), the
score, and the push that the event's softmax gives.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.memory.arrays import FEW_REPEATS, PRIOR_CHOICES
from kernels.memory.shortlist import FURTHEST, LAST_LEAD, LEAK, LEAST_VARIANCE, LENGTH_SCALE
from kernels.memory.triton_features import (
    BUCKET,
    CHOSEN,
    COUNTED_LAGS,
    ENTRIES,
    EVENT,
    FOLLOWERS,
    GATHERED,
    LEARNED_GAIN,
    LEARNED_LAGS,
    LIST,
    MET,
    MET_BEGIN,
    MET_END,
    MET_LATELY,
    NUM_FEATURES,
    NUM_SEEN,
    OWN_COLUMNS,
    OWN_GAIN,
    PAST_BEGIN,
    PAST_END,
    QUERY,
    SHOWN_BEGIN,
    SHOWN_END,
    SLOPES,
    TARGET,
    UNITS,
    VISIT,
    features_of,
    gather,
    note_next,
    note_rows,
    only_if,
    since_of,
)
from kernels.memory.triton_groups import lift_rows
from kernels.memory.triton_hours import note_hours
from kernels.memory.triton_pairs import list_pairs, note_pairs, pairs_before
from kernels.memory.triton_pick import OUT, pick

FEW, PRIOR = tl.constexpr(FEW_REPEATS), tl.constexpr(PRIOR_CHOICES)
LEAKY, BOUND, LEAST, LOWEST_LEAD, PER_LENGTH = map(
    tl.constexpr, (LEAK, FURTHEST, LEAST_VARIANCE, LAST_LEAD, LENGTH_SCALE)
)


@triton.jit
def num_better(value, own, runs):
    """How many of the rows that compete are better than the target, and how many equal to it."""
    return tl.sum((runs & (value > own)).to(tl.int32), 0), tl.sum((runs & (value == own)).to(tl.int32), 0)


@triton.jit(
    do_not_specialize=[
        "first_event",
        "first_place",
        "num_rows",
        "width",
        "stride",
        "logit_stride",
        "num_events",
        "num_columns",
        "num_groups",
        "num_pairs",
    ]
)
def predict_events_kernel(
    event_ptr, past_ptr, met_ptr, shown_ptr, past_ms_ptr, now_ms_ptr, logit_ptr,
    neighbour_row, num_neighbours, after, before, direct, weight, seen, heat, first, last, hourly, gain_ptr,
    shortlist_weight, shortlist_norm, clock_ptr,
    evidence_ptr, own_ptr, score_ptr, push_ptr, slope_ptr, list_ptr, shortlist_slope_ptr, moment_ptr, told_ptr,
    rate_ptr, learning_ptr, counting_ptr, sight_ptr, rank_ptr, loss_ptr,
    pairs, groups, first_event, first_place, num_rows, width, stride, logit_stride, num_events, num_columns, num_groups,
    num_pairs, EXCLUDE: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Event ``first_event`` + program, at place ``first_place`` + program of its group; scratch by program.
    ``groups``: `kernels.memory.triton_groups.Groups`, None if items have none."""
    event = first_event + tl.program_id(0)
    place = first_place + tl.program_id(0)
    index = tl.arange(0, GROUP)
    earlier_ptr = event_ptr + (event - place + index) * EVENT + TARGET
    earlier = tl.load(earlier_ptr, mask=index < place, other=0)  # rows that earlier events of the group have met
    event_ptr += event * EVENT
    target, chosen = tl.load(event_ptr + TARGET), tl.load(event_ptr + CHOSEN)
    past_begin, past_end = tl.load(event_ptr + PAST_BEGIN), tl.load(event_ptr + PAST_END)
    num_past = past_end - past_begin
    past_ptr += past_begin
    lag = tl.arange(0, ENTRIES)
    other = tl.load(past_ptr + num_past - 1 - lag, mask=lag < num_past, other=-1)
    counts = only_if((target > 0) & (chosen > 0), (lag < COUNTED_LAGS) & (other >= 0) & (other != target))
    counting_ptr += place * ENTRIES + 2 * lag
    tl.store(counting_ptr, tl.where(counts, other, -1), mask=2 * lag < ENTRIES)
    tl.store(counting_ptr + 1, tl.where(counts, target, -1), mask=2 * lag < ENTRIES)
    before_last, second, slot = pairs_before(past_ptr, num_past, num_pairs)
    list_pairs(pairs, place, slot, (target > 0) & (chosen > 0))
    is_predicted = (target > 0) & (chosen == 1)
    if is_predicted:
        is_predicted = (tl.load(first + target) >= 0) | (tl.max((earlier == target).to(tl.int32), 0) > 0)
    tl.store(learning_ptr + place * ENTRIES + lag, tl.where(only_if(is_predicted, lag < LEARNED_LAGS), other, -1))
    told_ptr += place * 4
    tl.store(told_ptr, is_predicted.to(tl.int32))
    if is_predicted:
        slice_at = tl.program_id(0).to(tl.int64) * stride
        evidence_ptr += slice_at * GATHERED
        own_ptr += slice_at * OWN_COLUMNS
        score_ptr += slice_at
        push_ptr += place.to(tl.int64) * stride
        logit_ptr += tl.load(event_ptr + QUERY).to(tl.int64) * logit_stride
        bucket, num_visit = tl.load(event_ptr + BUCKET), tl.load(event_ptr + VISIT)
        history = past_ms_ptr + past_begin, num_past, tl.load(now_ms_ptr + event), num_visit
        for start in range(0, num_rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            for f in tl.static_range(GATHERED):
                tl.store(evidence_ptr + f * stride + row, tl.zeros([BLOCK], tl.float32), mask=row < num_rows)
            for f in tl.static_range(OWN_COLUMNS):
                tl.store(own_ptr + f * stride + row, tl.zeros([BLOCK], tl.int32), mask=row < num_rows)
        tl.debug_barrier()
        tl.atomic_or(own_ptr + earlier, MET_LATELY, mask=earlier > 0)
        note_rows(past_ptr, num_past, own_ptr, own_ptr + stride, WIDTH)
        shown_begin, shown_end = tl.load(event_ptr + SHOWN_BEGIN), tl.load(event_ptr + SHOWN_END)
        note_rows(shown_ptr + shown_begin, shown_end - shown_begin, own_ptr + 2 * stride, own_ptr + 3 * stride, WIDTH)
        note_next(past_ptr, num_past, own_ptr + 4 * stride, WIDTH)
        note_hours(past_ptr, history, own_ptr + 5 * stride, WIDTH)
        if EXCLUDE == 2:
            share = tl.load(clock_ptr + 5) / (tl.load(clock_ptr + 6) + PRIOR)
            excludes = share.to(tl.float32) < FEW
        else:
            excludes = (target * 0 + EXCLUDE) == 1
        is_repeat = target < 0
        met_begin, met_end = tl.load(event_ptr + MET_BEGIN), tl.load(event_ptr + MET_END)
        for start in range(met_begin, met_end, WIDTH):
            place_M = start + tl.arange(0, WIDTH)
            row = tl.load(met_ptr + place_M, mask=place_M < met_end, other=0)
            is_repeat = is_repeat | (tl.max((row == target).to(tl.int32), 0) > 0)
            tl.atomic_or(own_ptr + row, MET, mask=only_if(excludes, place_M < met_end))
        neighbours = neighbour_row, num_neighbours, after, before, direct, weight
        gather(past_ptr, num_past, num_visit, neighbours, seen, clock_ptr, evidence_ptr, width, stride, WIDTH)
        value_ptr = pairs.value + tl.program_id(0) * FOLLOWERS
        note_pairs(pairs, before_last, second, slot, seen, clock_ptr, own_ptr, value_ptr)
        lift_ptr = None
        if groups is not None:
            lift_ptr = groups.lift + tl.program_id(0).to(tl.int64) * (stride + num_columns * num_groups)
            lift_rows(
                groups, event, place, target, past_ptr, num_past, clock_ptr, lift_ptr, num_rows, stride, num_columns,
                num_groups, BLOCK,
            )  # fmt: skip
        tl.debug_barrier()
        column = tl.arange(0, 32)
        gain = tl.load(gain_ptr + column, mask=column < NUM_FEATURES, other=0.0)
        gain += tl.load(gain_ptr + bucket * NUM_FEATURES + column, mask=column < NUM_FEATURES, other=0.0)
        tl.store(rate_ptr + place, tl.sum(tl.where(column == LEARNED_GAIN, gain, 0.0), 0))
        # The scores of all rows, and the largest.
        standing, scratch = (seen, heat, first, last, hourly), (evidence_ptr, own_ptr, value_ptr)
        top = tl.full([BLOCK], OUT, tl.float32)
        for start in range(0, num_rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            inside = row < num_rows
            features, is_known, is_out = features_of(
                row, inside, standing, clock_ptr, scratch, history, logit_ptr, lift_ptr, stride
            )
            score = tl.zeros([BLOCK], tl.float32)
            for f in tl.static_range(NUM_FEATURES):
                score += features[f] * tl.sum(tl.where(column == f, gain, 0.0), 0)
            competes = inside & ((is_known & (is_out == 0)) | (row == target))
            score = tl.where(competes, score, OUT)
            tl.store(score_ptr + row, score, mask=inside)
            top = tl.maximum(top, score)
        best = tl.max(top, 0)
        tl.debug_barrier()
        # The softmax's probabilities, less one for the target.
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, num_rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            total += tl.exp(tl.load(score_ptr + row, mask=row < num_rows, other=OUT) - best)
        mass = tl.sum(total, 0)
        slope = tl.zeros([32], tl.float32)
        for start in range(0, num_rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            inside = row < num_rows
            push = tl.exp(tl.load(score_ptr + row, mask=inside, other=OUT) - best) / mass
            push -= tl.where(row == target, 1.0, 0.0)
            tl.store(push_ptr + row, push, mask=inside)
            features, _, _ = features_of(
                row, inside, standing, clock_ptr, scratch, history, logit_ptr, lift_ptr, stride
            )
            for f in tl.static_range(NUM_FEATURES):
                slope += tl.where(column == f, tl.sum(features[f] * push, 0), 0.0)
        tl.store(slope_ptr + place * 32 + column, slope)
        # The shortlist: the best rows, rescored.
        list_ptr += tl.program_id(0) * LIST
        num = pick(score_ptr, list_ptr, num_rows, BLOCK)
        tl.debug_barrier()
        item = tl.arange(0, LIST)
        is_listed = item < num
        used = is_listed.to(tl.float32)
        listed = tl.load(list_ptr + item, mask=is_listed, other=0)
        score = tl.load(score_ptr + listed, mask=is_listed, other=OUT)
        features, _, _ = features_of(
            listed, is_listed, standing, clock_ptr, scratch, history, logit_ptr, lift_ptr, stride
        )
        into = sight_ptr + (tl.program_id(0) * LIST + item) * 32  # by way of memory: columns of registers would be many
        for f in tl.static_range(NUM_FEATURES):
            tl.store(into + f, used * features[f])
        tl.store(into + NUM_FEATURES, used * tl.maximum(score - best, LOWEST_LEAD))
        tl.store(into + NUM_FEATURES + 1, used * (features[OWN_GAIN] > 0).to(tl.float32))
        tl.store(into + NUM_FEATURES + 2, used * PER_LENGTH * bucket)
        pause = since_of(item * 0, is_listed & (item * 0 + num_past > 0), history)
        tl.store(into + NUM_FEATURES + 3, used * tl.where(item * 0 + num_past > 0, pause, 0.0))
        tl.debug_barrier()
        raw = tl.load(into[:, None] + column[None, :])
        of_list = column < NUM_SEEN
        mean = tl.load(shortlist_norm + column, mask=of_list, other=0.0)
        variance = tl.load(shortlist_norm + NUM_SEEN + column, mask=of_list, other=1.0)
        away = tl.where(is_listed[:, None] & of_list[None, :], raw - mean[None, :], 0.0)
        tl.store(moment_ptr + place * 64 + column, tl.sum(away, 0) / num)
        tl.store(moment_ptr + place * 64 + 32 + column, tl.sum(away * away, 0) / num)
        sight = (raw - mean[None, :]) / tl.sqrt(variance + LEAST)[None, :]
        sight = tl.minimum(tl.maximum(sight, -BOUND), BOUND)
        sight = tl.where(is_listed[:, None] & of_list[None, :], sight, 0.0)
        unit = tl.arange(0, UNITS)
        linear = tl.load(shortlist_weight + column, mask=of_list, other=0.0)
        of_unit = unit[:, None] * NUM_SEEN + column[None, :]
        hidden = tl.load(shortlist_weight + NUM_SEEN + of_unit, mask=of_list[None, :], other=0.0)
        bias = tl.load(shortlist_weight + NUM_SEEN * (1 + UNITS) + unit)
        given = tl.load(shortlist_weight + NUM_SEEN * (1 + UNITS) + UNITS + unit)
        z = tl.dot(sight, tl.trans(hidden), input_precision="ieee") + bias[None, :]
        leaked = tl.maximum(z, z * LEAKY)
        out = score + tl.sum(sight * linear[None, :], 1) + tl.sum(leaked * given[None, :], 1)
        best_out = tl.max(tl.where(is_listed, out, OUT), 0)
        share = tl.where(is_listed, tl.exp(tl.minimum(out - best_out, 0.0)), 0.0)
        mass_out = tl.sum(share, 0)
        mass_in = tl.sum(tl.where(is_listed, tl.exp(score - best), 0.0), 0)
        shift = (best + tl.log(mass_in)) - (best_out + tl.log(mass_out))
        at_target = (is_listed & (listed == target)).to(tl.float32)
        push = share / mass_out - at_target
        back = given[None, :] * tl.where(z > 0, 1.0, LEAKY) * push[:, None]
        shortlist_slope_ptr += place * SLOPES
        tl.store(shortlist_slope_ptr + column, tl.sum(sight * push[:, None], 0), mask=of_list)
        slopes = tl.dot(tl.trans(back), sight, input_precision="ieee")
        tl.store(shortlist_slope_ptr + NUM_SEEN + of_unit, slopes, mask=of_list[None, :] & (unit[:, None] >= 0))
        tl.store(shortlist_slope_ptr + NUM_SEEN * (1 + UNITS) + unit, tl.sum(back, 0))
        tl.store(shortlist_slope_ptr + NUM_SEEN * (1 + UNITS) + UNITS + unit, tl.sum(leaked * push[:, None], 0))
        tl.store(told_ptr + 1, (tl.sum(at_target, 0) > 0).to(tl.int32))
        tl.store(told_ptr + 2, is_repeat.to(tl.int32))
        begins = tl.where(num_visit > 0, 0, 1)
        tl.store(told_ptr + 3, tl.where(num_past > 0, begins, -1))
        tl.store(score_ptr + listed, out + shift, mask=is_listed)
        tl.debug_barrier()
        # Ranks by the whole score, by the network alone, and by counts alone.
        own_score = tl.load(score_ptr + target)
        own_logit = tl.load(logit_ptr + target)
        own_count = tl.load(evidence_ptr + target)
        better_0, better_1, better_2 = target * 0, target * 0, target * 0
        equal_0, equal_1, equal_2 = target * 0, target * 0, target * 0
        for start in range(0, num_rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            inside = row < num_rows
            final = tl.load(score_ptr + row, mask=inside, other=OUT)
            runs = (final > 0.5 * OUT) & (row != target)
            better, equal = num_better(final, own_score, runs)
            better_0, equal_0 = better_0 + better, equal_0 + equal
            better, equal = num_better(tl.load(logit_ptr + row, mask=inside, other=0.0), own_logit, runs)
            better_1, equal_1 = better_1 + better, equal_1 + equal
            better, equal = num_better(tl.load(evidence_ptr + row, mask=inside, other=0.0), own_count, runs)
            better_2, equal_2 = better_2 + better, equal_2 + equal
        tl.store(rank_ptr + event, 1 + better_0 + (equal_0 + 1) // 2)
        tl.store(rank_ptr + num_events + event, 1 + better_1 + (equal_1 + 1) // 2)
        tl.store(rank_ptr + 2 * num_events + event, 1 + better_2 + (equal_2 + 1) // 2)
        tl.store(loss_ptr + event, best + tl.log(mass) - own_score)
