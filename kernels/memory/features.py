"""The memory's features in plain NumPy, one at a time: of items, and of items given a user's history."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.memory.arrays import EVIDENCE, NUM_HEATS, Float32, Float64, Int32, Int64, MemoryArrays
from kernels.memory.events import MemoryRules
from kernels.memory.groups import lift_of
from kernels.memory.hours import hourly_of
from kernels.memory.pairs import paired_of
from kernels.memory.past import MemoryPast
from kernels.memory.shortlist import Prediction

# (lags, decay per lag): how many of the user's last choices count, and the factor by which each counts less than the
# one after it.
FOLLOWS, CHAIN, WIDE, NEAR = (10, 0.8), (20, 0.9), (60, 0.98), (6, 0.5)
LEARNED, COUNTED, DIRECT, THREADS = (40, 0.95), (20, 0.9), (1, 1.0), (60, 0.97)
WINDOWS = {"follows": FOLLOWS, "chain": CHAIN, "wide": WIDE, "after": NEAR, "before": NEAR, "learned": LEARNED,
           "direct": DIRECT, "threads": THREADS}  # fmt: skip
"""Those of the features that sum up what is counted beside past choices."""
MOST_SHARE, LEAST_SEEN = 2.0, 1e-37
"""Of a count beside a row's own: the most that it gives as a share, and the least of that row's that it is divided by.
"""
FOLLOWS_SCALE, COSINE_SCALE, HEAT_SCALES, TIME_SHARE = 100.0, 1000.0, (10.0, 10.0, 1.0), 0.3
EVENTS, SEEN, HEAT = 0, 1, 2
REPEATS, CHOICES, BEGUN, CONTINUED = range(HEAT + NUM_HEATS, HEAT + NUM_HEATS + 4)
"""Entries of the clock; those of `SEEN` and `HEAT` say what one sighting is worth in the counts."""


def standing_of(memory: MemoryArrays, rows: slice | Int64) -> Float64:
    """(standing features, rows)."""
    seen = memory.seen[rows] / memory.clock[SEEN]
    heat = memory.heat[:, rows] / memory.clock[HEAT : HEAT + NUM_HEATS, None]
    now, was_chosen = memory.clock[EVENTS], memory.last[rows] >= 0
    since = [np.where(was_chosen, now - when[rows], 0.0) for when in (memory.first, memory.last)]
    return np.stack(
        [
            np.log1p(seen),
            *np.log1p(heat * np.array(HEAT_SCALES)[:, None]),
            *(TIME_SHARE * np.log1p(each) for each in since),
            1.0 / (1.0 + seen),
            hourly_of(memory, rows),
        ]
    )


def shares_of(
    memory: MemoryArrays, row: int, other_N: Int32 | Int64, after_N: Float64, before_N: Float64, direct_N: Float64
) -> dict[str, Float64]:
    """What the counts of other rows beside a past choice say of them: relative to that choice's own count (``follows``,
    ``threads``), and as cosines; nothing without an own count.

    A row's own count is as old as its choices, but what follows one counts from the moment when it does. Where a user
    comes back after many half-lives, such a share would be without bound, so it is at most `MOST_SHARE`.
    """
    root, root_N = (_inverse_root(memory.seen[rows]) for rows in (row, other_N))
    both_N, inverse, cosine_N = after_N + 0.5 * before_N, root * root, root * root_N
    wide_N = np.minimum(both_N * cosine_N, MOST_SHARE)
    return {
        "follows": np.minimum(both_N * inverse, MOST_SHARE),
        "chain": 0.1 * np.log1p(COSINE_SCALE * wide_N),
        "wide": wide_N,
        "after": np.minimum(after_N * cosine_N, MOST_SHARE),
        "before": np.minimum(before_N * cosine_N, MOST_SHARE),
        "threads": np.minimum(direct_N * inverse, MOST_SHARE),
    }


def _inverse_root(seen: Float32) -> Float64:
    """One over the square root of rows' own counts; 0 where nothing is counted."""
    least = np.maximum(seen.astype(float), LEAST_SEEN)
    return np.where(seen > 0, 1.0 / np.sqrt(least), 0.0)


def _evidence(memory: MemoryArrays, num_rows: int, past: MemoryPast) -> Float64:
    """(evidence features, V)."""
    total = dict(zip(EVIDENCE, np.zeros((len(EVIDENCE), num_rows)), strict=True))
    for lag, row in enumerate(past.row_P[::-1].tolist()):
        num = memory.num_neighbours[row]
        ids = memory.neighbour_row[row, :num]
        counts = (getattr(memory, name)[row, :num].astype(float) for name in ("after", "before", "direct"))
        found = shares_of(memory, row, ids, *counts) | {"learned": memory.weight[row, :num].astype(float)}
        found["direct"] = found["threads"] * visit_share(memory, past, lag)
        for name, window in WINDOWS.items():
            _add(total[name], ids, found[name], lag, window)
    for place, row in enumerate(past.row_P.tolist()):
        total["own_count"][row] += 1.0
        total["own_recency"][row] = 1.0 / (1.0 + 0.1 * (len(past.row_P) - 1 - place))
        total["own_visit"][row], total["own_since"][row] = past.in_visit_P[place], past.since_P[place]
    np.add.at(total["own_next"], past.row_P, past.matched)
    np.add.at(total["own_hour"], past.row_P, past.around_P)
    for place, row in enumerate(past.shown_S.tolist()):
        total["shown_count"][row] += 1.0
        total["shown_recency"][row] = 1.0 / (1.0 + 0.1 * (len(past.shown_S) - 1 - place))
    for scale, names in (
        (FOLLOWS_SCALE, ("follows", "direct", "threads")),
        (COSINE_SCALE, ("wide", "after", "before")),
        (1.0, ("own_count", "own_next", "own_hour", "shown_count")),
    ):
        for name in names:
            total[name] = np.log1p(scale * total[name])
    return np.stack(list(total.values()))


def visit_share(memory: MemoryArrays, past: MemoryPast, lag: int) -> float:
    """The weight of a past choice as the one just before: less than 1 if it belongs to an earlier visit."""
    return 1.0 if past.in_visit_P[-1 - lag] else memory.across_visits


def _add(total_V: Float64, ids: Int32, value: NDArray[np.floating], lag: int, window: tuple[int, float]) -> None:
    lags, decay = window
    if lag < lags:
        total_V[ids] += value * decay**lag


def bucket_of(memory: MemoryArrays, num_past: int) -> int:
    """The row of the gains for a user with this many past choices."""
    return 1 + min(memory.num_buckets - 1, int(np.log2(1 + num_past) + 0.5))


def gains_of(memory: MemoryArrays, num_past: int) -> Float64:
    """(features,) the gains for a user with this many past choices."""
    return np.asarray(memory.gain[0].astype(float) + memory.gain[bucket_of(memory, num_past)])


def weighted_sum(memory: MemoryArrays, num_rows: int, past: MemoryPast, logit_V: Float32) -> Prediction:
    """The scores of all rows before the shortlist, for a user with these past choices and nothing left out."""
    return mix(memory, num_rows, standing_of(memory, slice(num_rows)), past, past.row_P[:0], 0, logit_V)


def leaves_out(memory: MemoryArrays, rules: MemoryRules) -> bool:
    """Whether items that a user has met do not compete."""
    return rules.exclude == "always" or (rules.exclude == "auto" and memory.leaves_out_repeats)


def mix(
    memory: MemoryArrays,
    num_rows: int,
    standing_FV: Float64,
    past: MemoryPast,
    left_out: Int32,
    target: int,
    logit: Float32,
    *,
    lifts: bool = True,
) -> Prediction:
    """The scores of all rows before the shortlist; rows of ``left_out`` other than ``target`` do not compete. Unless
    ``lifts``, items are not lifted by their groups."""
    bucket, gain_F = bucket_of(memory, len(past.row_P)), gains_of(memory, len(past.row_P))
    lift_V = lift_of(memory, slice(num_rows), past) if lifts else np.zeros(num_rows)
    paired_2V = paired_of(memory, past, num_rows)
    feature_FV = np.vstack([standing_FV, _evidence(memory, num_rows, past), logit[:num_rows], lift_V, paired_2V])
    competes_V = memory.first[:num_rows] >= 0
    competes_V[left_out] = False
    competes_V[target] |= target > 0
    return Prediction(gain_F @ feature_FV, feature_FV, competes_V, gain_F, bucket, past.pause)
