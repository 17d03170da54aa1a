# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Events of a group predicted on a GPU, one program each: features, scores, the shortlist, ranks, and what to learn.

A program has a slice of scratch memory for its event: evidence for each row, the score, and the push that the event's
softmax gives. Evidence is added a past choice at a time, whose neighbours are all different rows: so no atomics on
floats, and the same sums in the same order every time.
"""

from __future__ import annotations

from math import log2

import triton
import triton.language as tl

from kernels.memory.arrays import (
    EVIDENCE,
    FEATURES,
    FEW_REPEATS,
    HIDDEN,
    LISTED,
    OWN,
    PRIOR_CHOICES,
    SEEN_AGAIN,
    STANDING,
)
from kernels.memory.features import (
    ACROSS_VISITS,
    CHAIN,
    COSINE_SCALE,
    COUNTED,
    DIRECT,
    FOLLOWS,
    FOLLOWS_SCALE,
    HEAT_SCALES,
    LEARNED,
    NEAR,
    THREADS,
    TIME_SHARE,
    WIDE,
)
from kernels.memory.past import SINCE_SHARE
from kernels.memory.reference import OUT as SCORE_OUT
from kernels.memory.shortlist import FURTHEST, LAST_LEAD, LEAK, LEAST_VARIANCE, LENGTH_SCALE

TARGET, CHOSEN, PAST_BEGIN, PAST_END, MET_BEGIN, MET_END, BUCKET, QUERY, VISIT, SHOWN_BEGIN, SHOWN_END = map(
    tl.constexpr, range(11)
)
EVENT = tl.constexpr(12)
"""The columns of an event."""
GATHERED = tl.constexpr(len(EVIDENCE) - len(OWN))
NUM_STANDING, NUM_FEATURES, NUM_SEEN = map(tl.constexpr, (len(STANDING), len(FEATURES), len(SEEN_AGAIN)))
LEARNED_GAIN, OWN_GAIN = (tl.constexpr(len(STANDING) + EVIDENCE.index(name)) for name in ("learned", "own_count"))
OWN_COLUMNS = tl.constexpr(4)
"""Of a row in scratch memory: how often it was chosen, and when last; how often shown and left alone, and when last."""
TINY = tl.constexpr(1e-37)
LIST, UNITS = tl.constexpr(LISTED), tl.constexpr(HIDDEN)
MET = tl.constexpr(1 << 20)
"""The bit in a row's count of own choices that marks it as left out."""
ENTRIES = tl.constexpr(64)
"""Places for an event in the list of rows that learn (its past choices), and in that of rows that count (pairs)."""
FEW, PRIOR, OUT = tl.constexpr(FEW_REPEATS), tl.constexpr(PRIOR_CHOICES), tl.constexpr(SCORE_OUT)
_WINDOWS = {"follows": FOLLOWS, "chain": CHAIN, "wide": WIDE, "near": NEAR, "learned": LEARNED, "direct": DIRECT,
            "threads": THREADS}  # fmt: skip
FOLLOWS_LAGS, CHAIN_LAGS, WIDE_LAGS, NEAR_LAGS, LEARNED_LAGS, DIRECT_LAGS, THREAD_LAGS = (
    tl.constexpr(lags) for lags, _ in _WINDOWS.values()
)
FOLLOWS_FADE, CHAIN_FADE, WIDE_FADE, NEAR_FADE, LEARNED_FADE, DIRECT_FADE, THREAD_FADE = (
    tl.constexpr(log2(decay)) for _, decay in _WINDOWS.values()
)
COUNTED_LAGS = tl.constexpr(COUNTED[0])
SCALE_OF_FOLLOWS, SCALE_OF_COSINE = tl.constexpr(FOLLOWS_SCALE), tl.constexpr(COSINE_SCALE)
HEAT_0, HEAT_1, HEAT_2 = (tl.constexpr(each) for each in HEAT_SCALES)
SHARE_OF_TIME, SHARE_OF_SINCE, ACROSS = map(tl.constexpr, (TIME_SHARE, SINCE_SHARE, ACROSS_VISITS))
LEAKY, BOUND, LEAST, LOWEST_LEAD, PER_LENGTH = map(
    tl.constexpr, (LEAK, FURTHEST, LEAST_VARIANCE, LAST_LEAD, LENGTH_SCALE)
)


@triton.jit
def only_if(flag, mask):
    """``mask`` (a tile) where ``flag`` (one) is set; Triton's interpreter cannot combine them by ``&``."""
    return tl.where(flag, mask.to(tl.int32), 0) > 0


@triton.jit
def logarithm(x, scale):
    """log(1 + scale x)."""
    return tl.log(x * scale + 1.0)


@triton.jit
def per_unit(scale_ptr, of):
    """What one sighting is worth in a decayed count."""
    return (1.0 / tl.load(scale_ptr) * of).to(tl.float32)


@triton.jit
def standing_of(row, inside, memory, clock_ptr, stride):
    """The features of rows that are the same for all users."""
    seen_ptr, heat_ptr, first_ptr, last_ptr = memory
    now = tl.load(clock_ptr)
    seen = tl.load(seen_ptr + row, mask=inside, other=0.0) * per_unit(clock_ptr + 1, 1.0)
    heat_0 = tl.load(heat_ptr + row, mask=inside, other=0.0) * per_unit(clock_ptr + 2, HEAT_0)
    heat_1 = tl.load(heat_ptr + stride + row, mask=inside, other=0.0) * per_unit(clock_ptr + 3, HEAT_1)
    heat_2 = tl.load(heat_ptr + 2 * stride + row, mask=inside, other=0.0)
    heat_2 *= per_unit(clock_ptr + 4, HEAT_2)
    first, last = tl.load(first_ptr + row, mask=inside, other=-1), tl.load(last_ptr + row, mask=inside, other=-1)
    age = tl.where(last >= 0, (now.to(tl.int64) - first).to(tl.float32), 0.0)
    idle = tl.where(last >= 0, (now.to(tl.int64) - last).to(tl.float32), 0.0)
    return (
        logarithm(seen, 1.0), logarithm(heat_0, 1.0), logarithm(heat_1, 1.0), logarithm(heat_2, 1.0),
        logarithm(age, 1.0) * SHARE_OF_TIME, logarithm(idle, 1.0) * SHARE_OF_TIME, 1.0 / (1.0 + seen), first,
    )  # fmt: skip


@triton.jit
def since_of(lag, inside, history):
    """How long ago the user's last choices were, by their lag."""
    past_ms_ptr, num_past, now_ms, _ = history
    ms = tl.load(past_ms_ptr + num_past - 1 - lag, mask=inside, other=0)
    return logarithm(tl.maximum(now_ms - ms, 0).to(tl.float32), 1e-3) * SHARE_OF_SINCE


@triton.jit
def recency_of(newest):
    """Of rows whose newest choice or showing has this number (`note_rows`), 0 for none."""
    lag = (newest - MET) * -1
    return tl.where(newest > 0, 1.0 / (1.0 + lag.to(tl.float32) * 0.1), 0.0)


@triton.jit
def note_rows(rows_ptr, num, count_ptr, newest_ptr, WIDTH: tl.constexpr):
    """Count how often each row is among these, oldest first, and when last."""
    for start in range(0, num, WIDTH):
        place = start + tl.arange(0, WIDTH)
        row = tl.load(rows_ptr + place, mask=place < num, other=0)
        tl.atomic_add(count_ptr + row, 1, mask=place < num)
        tl.atomic_max(newest_ptr + row, place - (num - 1) + MET, mask=place < num)


@triton.jit
def evidence_of(row, inside, evidence_ptr, own_ptr, history, stride):
    """The features of rows given the user's history; and which rows are left out."""
    own = tl.load(own_ptr + row, mask=inside, other=0)
    newest = tl.load(own_ptr + stride + row, mask=inside, other=0)
    shown = tl.load(own_ptr + 2 * stride + row, mask=inside, other=0)
    newest_shown = tl.load(own_ptr + 3 * stride + row, mask=inside, other=0)
    is_own, lag = newest > 0, (newest - MET) * -1
    recency, shown_recency = recency_of(newest), recency_of(newest_shown)
    visit = (is_own & (lag < history[3])).to(tl.float32)
    since = tl.where(is_own, since_of(lag, is_own, history), 0.0)
    follows = tl.load(evidence_ptr + row, mask=inside, other=0.0)
    chain = tl.load(evidence_ptr + stride + row, mask=inside, other=0.0)
    wide = tl.load(evidence_ptr + 2 * stride + row, mask=inside, other=0.0)
    after = tl.load(evidence_ptr + 3 * stride + row, mask=inside, other=0.0)
    before = tl.load(evidence_ptr + 4 * stride + row, mask=inside, other=0.0)
    learned = tl.load(evidence_ptr + 5 * stride + row, mask=inside, other=0.0)
    direct = tl.load(evidence_ptr + 6 * stride + row, mask=inside, other=0.0)
    threads = tl.load(evidence_ptr + 7 * stride + row, mask=inside, other=0.0)
    return (
        logarithm(follows, SCALE_OF_FOLLOWS), chain, logarithm(wide, SCALE_OF_COSINE),
        logarithm(after, SCALE_OF_COSINE), logarithm(before, SCALE_OF_COSINE), learned,
        logarithm(direct, SCALE_OF_FOLLOWS), logarithm(threads, SCALE_OF_FOLLOWS),
        logarithm((own % MET).to(tl.float32), 1.0), recency, visit, since,
        logarithm(shown.to(tl.float32), 1.0), shown_recency, own >= MET,
    )  # fmt: skip


@triton.jit
def features_of(row, inside, standing, clock_ptr, evidence_ptr, own_ptr, history, logit_ptr, stride):
    """All features of rows, in order; which rows are known, and which are left out."""
    s0, s1, s2, s3, s4, s5, s6, first = standing_of(row, inside, standing, clock_ptr, stride)
    e0, e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, e11, e12, e13, is_out = evidence_of(
        row, inside, evidence_ptr, own_ptr, history, stride
    )
    logit = tl.load(logit_ptr + row, mask=inside, other=0.0)
    standing, evidence = (s0, s1, s2, s3, s4, s5, s6), (e0, e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, e11, e12, e13)
    return standing + evidence + (logit,), first >= 0, is_out


@triton.jit
def add_to_each(pointer, value, inside):
    """Add to places of which no two are the same."""
    tl.store(pointer, tl.load(pointer, mask=inside, other=0.0) + value, mask=inside)


@triton.jit
def gather(past_ptr, num_past, num_visit, neighbours, seen_ptr, evidence_ptr, width, stride, WIDTH: tl.constexpr):
    """Add the evidence of the neighbours of the last choices, the newest first."""
    row_ptr, num_ptr, after_ptr, before_ptr, direct_ptr, weight_ptr = neighbours
    place = tl.arange(0, WIDTH)
    for lag in range(tl.minimum(num_past, WIDE_LAGS)):
        row = tl.load(past_ptr + num_past - 1 - lag).to(tl.int64)
        inside = place < tl.load(num_ptr + row)
        at = row * width + place
        other = tl.load(row_ptr + at, mask=inside, other=0)
        after = tl.load(after_ptr + at, mask=inside, other=0.0)
        before = tl.load(before_ptr + at, mask=inside, other=0.0)
        seen = tl.load(seen_ptr + row)
        inverse = tl.where(seen > 0, 1.0 / tl.maximum(seen, TINY), 0.0)
        product = seen * tl.load(seen_ptr + other, mask=inside, other=0.0)
        per_root = tl.where(product > 0, 1.0 / tl.sqrt(tl.maximum(product, TINY)), 0.0)
        both = after + 0.5 * before
        into = evidence_ptr + other
        lags = tl.zeros([], tl.float32) + lag
        add = both * per_root * tl.exp2(lags * WIDE_FADE)
        add_to_each(into + 2 * stride, add, inside)
        if lag < LEARNED_LAGS:
            add = tl.load(weight_ptr + at, mask=inside, other=0.0) * tl.exp2(lags * LEARNED_FADE)
            add_to_each(into + 5 * stride, add, inside)
        if lag < CHAIN_LAGS:
            add = 0.1 * logarithm(both * per_root, SCALE_OF_COSINE) * tl.exp2(lags * CHAIN_FADE)
            add_to_each(into + stride, add, inside)
        if lag < FOLLOWS_LAGS:
            add = both * inverse * tl.exp2(lags * FOLLOWS_FADE)
            add_to_each(into, add, inside)
        if lag < NEAR_LAGS:
            share = per_root * tl.exp2(lags * NEAR_FADE)
            add_to_each(into + 3 * stride, after * share, inside)
            add_to_each(into + 4 * stride, before * share, inside)
        direct = tl.load(direct_ptr + at, mask=inside, other=0.0) * inverse
        if lag < DIRECT_LAGS:
            share = tl.where(lag < num_visit, 1.0, ACROSS) * tl.exp2(lags * DIRECT_FADE)
            add_to_each(into + 6 * stride, direct * share, inside)
        if lag < THREAD_LAGS:
            add_to_each(into + 7 * stride, direct * tl.exp2(lags * THREAD_FADE), inside)
        tl.debug_barrier()  # the next choice may have the same neighbours, in other threads


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


@triton.jit
def num_better(value, own, runs):
    """How many of the rows that compete are better than the target, and how many equal to it."""
    return tl.sum((runs & (value > own)).to(tl.int32), 0), tl.sum((runs & (value == own)).to(tl.int32), 0)


@triton.jit(
    do_not_specialize=["first_event", "first_place", "num_rows", "width", "stride", "logit_stride", "num_events"]
)
def predict_events_kernel(
    event_ptr, past_ptr, met_ptr, shown_ptr, past_ms_ptr, now_ms_ptr, logit_ptr,
    neighbour_row, num_neighbours, after, before, direct, weight, seen, heat, first, last, gain_ptr,
    shortlist_weight, shortlist_norm, clock_ptr,
    evidence_ptr, own_ptr, score_ptr, push_ptr, slope_ptr, list_ptr, shortlist_slope_ptr, moment_ptr, told_ptr,
    rate_ptr, learning_ptr, counting_ptr, rank_ptr, loss_ptr,
    first_event, first_place, num_rows, width, stride, logit_stride, num_events,
    EXCLUDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Event ``first_event`` + program, at place ``first_place`` + program of its group; scratch by program."""
    event = first_event + tl.program_id(0)
    place = first_place + tl.program_id(0)
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
    is_predicted = (target > 0) & (chosen == 1)
    if is_predicted:
        is_predicted = tl.load(first + target) >= 0
    tl.store(learning_ptr + place * ENTRIES + lag, tl.where(only_if(is_predicted, lag < LEARNED_LAGS), other, -1))
    told_ptr += place * 4
    tl.store(told_ptr, is_predicted.to(tl.int32))
    if is_predicted:
        scratch = tl.program_id(0).to(tl.int64) * stride
        evidence_ptr += scratch * GATHERED
        own_ptr += scratch * OWN_COLUMNS
        score_ptr += scratch
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
        note_rows(past_ptr, num_past, own_ptr, own_ptr + stride, WIDTH)
        shown_begin, shown_end = tl.load(event_ptr + SHOWN_BEGIN), tl.load(event_ptr + SHOWN_END)
        note_rows(shown_ptr + shown_begin, shown_end - shown_begin, own_ptr + 2 * stride, own_ptr + 3 * stride, WIDTH)
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
        gather(past_ptr, num_past, num_visit, neighbours, seen, evidence_ptr, width, stride, WIDTH)
        tl.debug_barrier()
        column = tl.arange(0, 32)
        gain = tl.load(gain_ptr + column, mask=column < NUM_FEATURES, other=0.0)
        gain += tl.load(gain_ptr + bucket * NUM_FEATURES + column, mask=column < NUM_FEATURES, other=0.0)
        tl.store(rate_ptr + place, tl.sum(tl.where(column == LEARNED_GAIN, gain, 0.0), 0))
        # The scores of all rows, and the largest.
        standing = seen, heat, first, last
        top = tl.full([BLOCK], OUT, tl.float32)
        for start in range(0, num_rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            inside = row < num_rows
            features, is_known, is_out = features_of(
                row, inside, standing, clock_ptr, evidence_ptr, own_ptr, history, logit_ptr, stride
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
                row, inside, standing, clock_ptr, evidence_ptr, own_ptr, history, logit_ptr, stride
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
            listed, is_listed, standing, clock_ptr, evidence_ptr, own_ptr, history, logit_ptr, stride
        )
        raw = tl.zeros([LIST, 32], tl.float32)
        for f in tl.static_range(NUM_FEATURES):
            raw += tl.where(column[None, :] == f, (used * features[f])[:, None], 0.0)
        lead = used * tl.maximum(score - best, LOWEST_LEAD)
        is_own = used * (features[OWN_GAIN] > 0).to(tl.float32)
        raw += tl.where(column[None, :] == NUM_FEATURES, lead[:, None], 0.0)
        raw += tl.where(column[None, :] == NUM_FEATURES + 1, is_own[:, None], 0.0)
        raw += tl.where(column[None, :] == NUM_FEATURES + 2, (used * PER_LENGTH * bucket)[:, None], 0.0)
        pause = since_of(item * 0, is_listed & (item * 0 + num_past > 0), history)
        pause = used * tl.where(item * 0 + num_past > 0, pause, 0.0)
        raw += tl.where(column[None, :] == NUM_FEATURES + 3, pause[:, None], 0.0)
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
        shortlist_slope_ptr += place * 512
        tl.store(shortlist_slope_ptr + column, tl.sum(sight * push[:, None], 0), mask=of_list)
        slopes = tl.dot(tl.trans(back), sight, input_precision="ieee")
        tl.store(shortlist_slope_ptr + NUM_SEEN + of_unit, slopes, mask=of_list[None, :] & (unit[:, None] >= 0))
        tl.store(shortlist_slope_ptr + NUM_SEEN * (1 + UNITS) + unit, tl.sum(back, 0))
        tl.store(shortlist_slope_ptr + NUM_SEEN * (1 + UNITS) + UNITS + unit, tl.sum(leaked * push[:, None], 0))
        tl.store(told_ptr + 1, (tl.sum(at_target, 0) > 0).to(tl.int32))
        tl.store(told_ptr + 2, is_repeat.to(tl.int32))
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
