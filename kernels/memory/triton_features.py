# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""The memory's features on a GPU: of rows, and of rows given a user's past choices.

An event has a slice of scratch memory: evidence for each row. It is added a past choice at a time, whose neighbours are
all different rows: so no atomics on floats, and the same sums in the same order every time.
"""

from __future__ import annotations

from math import log2

import triton
import triton.language as tl

from kernels.memory.arrays import (
    EVIDENCE,
    FEATURES,
    HIDDEN,
    LEAST_ACROSS,
    LISTED,
    NEXT_OF_PAIR,
    OWN,
    PAIRED,
    PRIOR_VISITS,
    SEEN_AGAIN,
    STANDING,
)
from kernels.memory.features import (
    CHAIN,
    COSINE_SCALE,
    COUNTED,
    DIRECT,
    FOLLOWS,
    FOLLOWS_SCALE,
    HEAT_SCALES,
    LEARNED,
    LEAST_SEEN,
    MOST_SHARE,
    NEAR,
    THREADS,
    TIME_SHARE,
    WIDE,
)
from kernels.memory.past import AROUND_MINUTES, MATCHED, MOST_MATCHED, SINCE_SHARE

TARGET, CHOSEN, PAST_BEGIN, PAST_END, MET_BEGIN, MET_END, BUCKET, QUERY, VISIT, SHOWN_BEGIN, SHOWN_END = map(
    tl.constexpr, range(11)
)
EVENT = tl.constexpr(12)
"""The columns of an event."""
GATHERED = tl.constexpr(len(EVIDENCE) - len(OWN))
NUM_STANDING, NUM_FEATURES, NUM_SEEN = map(tl.constexpr, (len(STANDING), len(FEATURES), len(SEEN_AGAIN)))
LEARNED_GAIN, OWN_GAIN = (tl.constexpr(len(STANDING) + EVIDENCE.index(name)) for name in ("learned", "own_count"))
OWN_COLUMNS = tl.constexpr(6)
"""Of a row in scratch memory: how often it was chosen, and when last; how often shown and left alone, and when last;
how much it counts as what the user does next, and as what the user does at this time of day and of the week."""
TINY, SHARE_MOST = tl.constexpr(LEAST_SEEN), tl.constexpr(MOST_SHARE)
LIST, UNITS = tl.constexpr(LISTED), tl.constexpr(HIDDEN)
NUM_WEIGHTS = tl.constexpr(len(SEEN_AGAIN) * (1 + HIDDEN) + 2 * HIDDEN)
SLOPES = tl.constexpr(1 << (NUM_WEIGHTS.value - 1).bit_length())
"""Of the shortlist's network: its weights, and places for an event's slopes."""
MET, MET_LATELY = tl.constexpr(1 << 20), tl.constexpr(1 << 21)
PAIR_BIT, SKIP_BIT = tl.constexpr(22), tl.constexpr(26)
"""The bits in a row's count of own choices that mark it as left out, and as met since the state that is predicted from;
and where its places among what followed the event's two pairs begin, 0 for none, of 4 bits each."""
FOLLOWERS, FOLLOWERS_OF_EACH = tl.constexpr(len(PAIRED) * NEXT_OF_PAIR), tl.constexpr(NEXT_OF_PAIR)
"""How many rows follow an event's pairs."""
ENTRIES = tl.constexpr(64)
"""Places for an event in the list of rows that learn (its past choices), and in that of rows that count (pairs)."""
_WINDOWS = {"follows": FOLLOWS, "chain": CHAIN, "wide": WIDE, "near": NEAR, "learned": LEARNED, "direct": DIRECT,
            "threads": THREADS}  # fmt: skip
FOLLOWS_LAGS, CHAIN_LAGS, WIDE_LAGS, NEAR_LAGS, LEARNED_LAGS, DIRECT_LAGS, THREAD_LAGS = (
    tl.constexpr(lags) for lags, _ in _WINDOWS.values()
)
FOLLOWS_FADE, CHAIN_FADE, WIDE_FADE, NEAR_FADE, LEARNED_FADE, _, THREAD_FADE = (
    tl.constexpr(log2(decay)) for _, decay in _WINDOWS.values()
)
COUNTED_LAGS = tl.constexpr(COUNTED[0])
SCALE_OF_FOLLOWS, SCALE_OF_COSINE = tl.constexpr(FOLLOWS_SCALE), tl.constexpr(COSINE_SCALE)
HEAT_0, HEAT_1, HEAT_2 = (tl.constexpr(each) for each in HEAT_SCALES)
SHARE_OF_TIME, SHARE_OF_SINCE = tl.constexpr(TIME_SHARE), tl.constexpr(SINCE_SHARE)
MATCHES, MATCH_FACTOR = tl.constexpr(MOST_MATCHED), tl.constexpr(MATCHED)
PER_MINUTE = tl.constexpr(1.0 / AROUND_MINUTES)
ACROSS_LEAST, ACROSS_PRIOR = tl.constexpr(LEAST_ACROSS), tl.constexpr(PRIOR_VISITS)


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
    seen_ptr, heat_ptr, first_ptr, last_ptr, hourly_ptr = memory
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
        logarithm(age, 1.0) * SHARE_OF_TIME, logarithm(idle, 1.0) * SHARE_OF_TIME, 1.0 / (1.0 + seen),
        tl.load(hourly_ptr + row, mask=inside, other=0.0), first,
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
def note_next(past_ptr, num, count_ptr, WIDTH: tl.constexpr):
    """Count what came after earlier choices of the last item: see `kernels.memory.past.MemoryPast`."""
    for start in range(0, num, WIDTH):
        place = start + tl.arange(0, WIDTH)
        inside = place < num
        is_same, weight = place > 0, tl.zeros([WIDTH], tl.int32)
        for back in tl.static_range(1, MATCHES + 1):
            before = tl.load(past_ptr + place - back, mask=inside & (place >= back), other=-1)
            is_same = is_same & (before == tl.load(past_ptr + tl.maximum(num - back, 0)))
            weight = tl.where(is_same, MATCH_FACTOR ** (back - 1), weight)
        row = tl.load(past_ptr + place, mask=inside, other=0)
        tl.atomic_add(count_ptr + row, weight, mask=inside & (weight > 0))


@triton.jit
def evidence_of(row, inside, evidence_ptr, own_ptr, history, stride):
    """The features of rows given the user's history; and the count of own choices with its marks."""
    own = tl.load(own_ptr + row, mask=inside, other=0)
    newest = tl.load(own_ptr + stride + row, mask=inside, other=0)
    shown = tl.load(own_ptr + 2 * stride + row, mask=inside, other=0)
    newest_shown = tl.load(own_ptr + 3 * stride + row, mask=inside, other=0)
    coming = tl.load(own_ptr + 4 * stride + row, mask=inside, other=0).to(tl.float32)
    minutes = tl.load(own_ptr + 5 * stride + row, mask=inside, other=0).to(tl.float32)
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
        logarithm(shown.to(tl.float32), 1.0), shown_recency, logarithm(coming, 1.0),
        logarithm(minutes, PER_MINUTE), own,
    )  # fmt: skip


@triton.jit
def paired_of(own, value_ptr):
    """The features of what followed an event's pairs: see `kernels.memory.triton_pairs`."""
    pair, skip = (own >> PAIR_BIT) & 15, own >> SKIP_BIT
    pair_value = tl.load(value_ptr + pair - 1, mask=pair > 0, other=0.0)
    return pair_value, tl.load(value_ptr + FOLLOWERS_OF_EACH + skip - 1, mask=skip > 0, other=0.0)


@triton.jit
def features_of(row, inside, standing, clock_ptr, scratch, history, logit_ptr, lift_ptr, stride):
    """All features of rows, in order; which rows are known, and which are left out. ``scratch``: of evidence, of own
    choices, and of what followed the event's pairs. ``lift_ptr``: of rows, or None."""
    evidence_ptr, own_ptr, value_ptr = scratch
    s0, s1, s2, s3, s4, s5, s6, s7, first = standing_of(row, inside, standing, clock_ptr, stride)
    e0, e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, e11, e12, e13, e14, e15, own = evidence_of(
        row, inside, evidence_ptr, own_ptr, history, stride
    )
    logit = tl.load(logit_ptr + row, mask=inside, other=0.0)
    standing = (s0, s1, s2, s3, s4, s5, s6, s7)
    evidence = (e0, e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, e11, e12, e13, e14, e15)
    lift = tl.zeros_like(logit)
    if lift_ptr is not None:
        lift = tl.load(lift_ptr + row, mask=inside, other=0.0)
    pair, skip = paired_of(own, value_ptr)
    is_known = (first >= 0) | ((own & MET_LATELY) > 0)
    return standing + evidence + (logit, lift, pair, skip), is_known, (own & MET) > 0


@triton.jit
def add_to_each(pointer, value, inside):
    """Add to places of which no two are the same."""
    tl.store(pointer, tl.load(pointer, mask=inside, other=0.0) + value, mask=inside)


@triton.jit
def across_visits(clock_ptr):
    """The weight of the first choice after a pause as the very next one."""
    begun, continued = tl.load(clock_ptr + 7), tl.load(clock_ptr + 8)
    share = (begun + 0.5 * ACROSS_PRIOR) / (begun + continued + ACROSS_PRIOR)
    square = share * share
    return (square * square * (1.0 - ACROSS_LEAST) + ACROSS_LEAST).to(tl.float32)


@triton.jit
def gather(
    past_ptr, num_past, num_visit, neighbours, seen_ptr, clock_ptr, evidence_ptr, width, stride, WIDTH: tl.constexpr
):
    """Add the evidence of the neighbours of the last choices, the newest first."""
    row_ptr, num_ptr, after_ptr, before_ptr, direct_ptr, weight_ptr = neighbours
    place, across = tl.arange(0, WIDTH), across_visits(clock_ptr)
    for lag in range(tl.minimum(num_past, WIDE_LAGS)):
        row = tl.load(past_ptr + num_past - 1 - lag).to(tl.int64)
        inside = place < tl.load(num_ptr + row)
        at = row * width + place
        other = tl.load(row_ptr + at, mask=inside, other=0)
        after = tl.load(after_ptr + at, mask=inside, other=0.0)
        before = tl.load(before_ptr + at, mask=inside, other=0.0)
        seen = tl.load(seen_ptr + row)
        least = tl.maximum(seen, TINY)
        inverse = tl.where(seen > 0, 1.0 / least, 0.0)
        others = tl.load(seen_ptr + other, mask=inside, other=0.0)
        root = tl.sqrt(least) * tl.sqrt(tl.maximum(others, TINY))  # the product of two stale counts would be 0
        per_root = tl.where(seen > 0, tl.where(others > 0, 1.0 / root, 0.0), 0.0)
        most, most_alike = SHARE_MOST * least, SHARE_MOST * root  # of what is divided, so that nothing overflows
        both = after + 0.5 * before
        similar = tl.minimum(both, most_alike) * per_root
        into = evidence_ptr + other
        lags = tl.zeros([], tl.float32) + lag
        add = similar * tl.exp2(lags * WIDE_FADE)
        add_to_each(into + 2 * stride, add, inside)
        if lag < LEARNED_LAGS:
            add = tl.load(weight_ptr + at, mask=inside, other=0.0) * tl.exp2(lags * LEARNED_FADE)
            add_to_each(into + 5 * stride, add, inside)
        if lag < CHAIN_LAGS:
            add = 0.1 * logarithm(similar, SCALE_OF_COSINE) * tl.exp2(lags * CHAIN_FADE)
            add_to_each(into + stride, add, inside)
        if lag < FOLLOWS_LAGS:
            add = tl.minimum(both, most) * inverse * tl.exp2(lags * FOLLOWS_FADE)
            add_to_each(into, add, inside)
        if lag < NEAR_LAGS:
            fade = tl.exp2(lags * NEAR_FADE)
            add_to_each(into + 3 * stride, tl.minimum(after, most_alike) * per_root * fade, inside)
            add_to_each(into + 4 * stride, tl.minimum(before, most_alike) * per_root * fade, inside)
        direct = tl.minimum(tl.load(direct_ptr + at, mask=inside, other=0.0), most) * inverse
        if lag < DIRECT_LAGS:
            add_to_each(into + 6 * stride, direct * tl.where(lag < num_visit, 1.0, across), inside)
        if lag < THREAD_LAGS:
            add_to_each(into + 7 * stride, direct * tl.exp2(lags * THREAD_FADE), inside)
        tl.debug_barrier()  # the next choice may have the same neighbours, in other threads
