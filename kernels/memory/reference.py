"""The definition of the memory in plain NumPy: one event at a time, one feature at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.memory.arrays import (
    CHANGED,
    EVIDENCE,
    FEATURES,
    NUM_HEATS,
    RECENT,
    STANDING,
    Float32,
    Float64,
    Int32,
    Int64,
    MemoryAnswers,
    MemoryArrays,
    MemoryEvents,
    MemoryOutcome,
    MemoryRules,
    MemoryStanding,
)
from kernels.memory.past import MemoryPast
from kernels.memory.shortlist import Prediction, Shortlist, log_sum

# (lags, decay per lag): how many of the user's last choices count, and by what factor each less than the one after it.
FOLLOWS, CHAIN, WIDE, NEAR = (10, 0.8), (20, 0.9), (60, 0.98), (6, 0.5)
LEARNED, COUNTED, DIRECT, THREADS = (40, 0.95), (20, 0.9), (4, 0.3), (60, 0.97)
DIRECT_COUNT_DECAY = 0.2
ACROSS_VISITS = 0.2
"""What the very next choice counts if it is of a later visit."""
FOLLOWS_SCALE, COSINE_SCALE, HEAT_SCALES, TIME_SHARE = 100.0, 1000.0, (10.0, 10.0, 1.0), 0.3
REFRESH_EVENTS = 16
EVENTS_PER_GROUPED = 64
RESCALE_AT = 1e12
OUT = -1e30
_EVENTS, _SEEN, _HEAT, _REPEATS, _CHOICES = 0, 1, 2, 2 + NUM_HEATS, 3 + NUM_HEATS
SEEN_UNIT = _SEEN
"""Where the clock says what one sighting is worth in the counts."""


def memory_learn(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32, rules: MemoryRules
) -> MemoryOutcome:
    """See `kernels.memory.memory_learn`."""
    num = len(events)
    asked_R = events.chosen_R == 1
    rank_3R, loss_R = np.tile(np.where(asked_R, 0, -1).astype(np.int32), (3, 1)), np.full(num, np.nan, np.float32)
    standing_FV = _standing(memory, num_rows)
    logit_of_R = np.cumsum(asked_R) - 1
    for r in range(num):
        target = int(events.target_R[r])
        if target == 0:
            continue
        past, met = before(events, r)
        if asked_R[r] and memory.first[target] >= 0:
            found = predict(memory, num_rows, standing_FV, target, past, met, logit_AV[logit_of_R[r]], rules)
            rank_3R[:, r], loss_R[r] = found.ranks, found.loss
            learn(memory, found, rules, events.weight(r))
        meet(memory, target, past if events.chosen_R[r] else None, num_rows, rules, events.weight(r))
        fresh = _standing(memory, num_rows)
        if int(memory.clock[_EVENTS]) % REFRESH_EVENTS == 0:
            standing_FV = fresh
        standing_FV[:, target] = fresh[:, target]
    return MemoryOutcome(rank_3R[0], rank_3R[1], rank_3R[2], loss_R)


def memory_learn_grouped(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32, rules: MemoryRules, group: int
) -> MemoryOutcome:
    """The same as `memory_learn`, but for up to ``group`` events predicted from one state.

    A group's events are all predicted; then what each of them asks of the gains, the shortlist and the learned weights
    is done, in order; then all are counted, in order. So they can be computed beside one another (`DeviceMemory`).
    """
    num = len(events)
    asked_R = events.chosen_R == 1
    rank_3R, loss_R = np.tile(np.where(asked_R, 0, -1).astype(np.int32), (3, 1)), np.full(num, np.nan, np.float32)
    logit_of_R = np.cumsum(asked_R) - 1
    start = stop = 0
    while (start := stop) < num:
        stop = min(start + group_size(int(memory.clock[_EVENTS]), group), num)
        together = [r for r in range(start, stop) if events.target_R[r] > 0]
        standing_FV, found = _standing(memory, num_rows), []
        for r in together:
            target = int(events.target_R[r])
            if asked_R[r] and memory.first[target] >= 0:
                logit = logit_AV[logit_of_R[r]]
                found.append(predict(memory, num_rows, standing_FV, target, *before(events, r), logit, rules))
                rank_3R[:, r], loss_R[r] = found[-1].ranks, found[-1].loss
        for each in found:
            learn(memory, each, rules)
        for r in together:
            past, _ = before(events, r)
            meet(memory, int(events.target_R[r]), past if events.chosen_R[r] else None, num_rows, rules)
    return MemoryOutcome(rank_3R[0], rank_3R[1], rank_3R[2], loss_R)


def group_size(num_before: int, most: int) -> int:
    """How many events are predicted together after ``num_before``: few at first, when each one teaches much."""
    return max(1, min(most, num_before // EVENTS_PER_GROUPED))


def before(events: MemoryEvents, r: int) -> tuple[MemoryPast, Int32]:
    """What the user of event r had chosen, and had met, before it."""
    return MemoryPast.of_event(events, r), events.met_rows[events.met_begin_R[r] : events.met_end_R[r]]


def memory_scores(memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32) -> None:
    """See `kernels.memory.memory_scores`."""
    standing_FV = _standing(memory, num_rows)
    for r in range(len(events)):
        past, met = before(events, r)
        done = mix(memory, num_rows, standing_FV, past, met, 0, logit_AV[r])
        score_V = np.where(done.competes_V, done.score_V, OUT)
        Shortlist(memory, done).rescore(score_V)
        logit_AV[r, :num_rows] = score_V


def memory_stand(memory: MemoryArrays, num_rows: int) -> MemoryStanding:
    """See `kernels.memory.memory_stand`."""
    gain_BF = (memory.gain[0].astype(float) + memory.gain[1:])[:, : len(STANDING)]
    base_VB = (gain_BF @ _standing(memory, num_rows)).T
    base_VB[memory.first[:num_rows] < 0] += OUT
    is_seen_V = (memory.first[:num_rows] >= 0) & (memory.seen[:num_rows] > 0)
    root_V = np.where(is_seen_V, 1.0 / np.sqrt(np.where(is_seen_V, memory.seen[:num_rows], 1.0)), 0.0)
    return MemoryStanding(base_VB.astype(np.float32), root_V.astype(np.float32))


def memory_best(
    memory: MemoryArrays,
    standing: MemoryStanding,
    events: MemoryEvents,
    query_RD: Float32,
    table_VD: Float32,
    answers: MemoryAnswers,
) -> tuple[Int32, Float32]:
    """See `kernels.memory.memory_best`."""
    num_rows, most = len(standing.root_V), int(answers.k_R.max(initial=0))
    score_RV = query_RD @ table_VD[:num_rows].T
    memory_scores(memory, num_rows, events, score_RV)
    row_RK = np.full((len(query_RD), most), -1, np.int32)
    score_RK = np.full((len(query_RD), most), -np.inf, np.float32)
    for r, score_V in enumerate(score_RV):
        score_V[answers.out_rows[answers.out_begin_R1[r] : answers.out_begin_R1[r + 1]]] = OUT
        if answers.limited_R[r]:
            allowed = answers.allowed_rows[answers.allowed_begin_R1[r] : answers.allowed_begin_R1[r + 1]]
            score_V[np.setdiff1d(np.arange(num_rows), allowed)] = OUT
        order = np.argsort(-score_V, kind="stable")[: answers.k_R[r]]
        order = order[score_V[order] > OUT / 2]
        row_RK[r, : len(order)], score_RK[r, : len(order)] = order, score_V[order]
    return row_RK, score_RK


def _standing(memory: MemoryArrays, num_rows: int) -> Float64:
    """(standing features, V)."""
    return standing_of(memory, slice(num_rows))


def standing_of(memory: MemoryArrays, rows: slice | Int64) -> Float64:
    """(standing features, rows)."""
    seen = memory.seen[rows] / memory.clock[_SEEN]
    heat = memory.heat[:, rows] / memory.clock[_HEAT : _HEAT + NUM_HEATS, None]
    now, was_chosen = memory.clock[_EVENTS], memory.last[rows] >= 0
    since = [np.where(was_chosen, now - when[rows], 0.0) for when in (memory.first, memory.last)]
    return np.stack(
        [
            np.log1p(seen),
            *np.log1p(heat * np.array(HEAT_SCALES)[:, None]),
            *(TIME_SHARE * np.log1p(each) for each in since),
            1.0 / (1.0 + seen),
        ]
    )


def _evidence(memory: MemoryArrays, num_rows: int, past: MemoryPast) -> Float64:
    """(evidence features, V)."""
    total = dict(zip(EVIDENCE, np.zeros((len(EVIDENCE), num_rows)), strict=True))
    for lag, row in enumerate(past.row_P[::-1].tolist()):
        num = memory.num_neighbours[row]
        ids = memory.neighbour_row[row, :num]
        after, before = memory.after[row, :num].astype(float), memory.before[row, :num].astype(float)
        both, seen = after + 0.5 * before, float(memory.seen[row])
        root = np.sqrt(seen * memory.seen[ids].astype(float))
        _add(total["follows"], ids, both / seen if num else both, lag, FOLLOWS)
        _add(total["chain"], ids, 0.1 * np.log1p(COSINE_SCALE * both / root), lag, CHAIN)
        _add(total["wide"], ids, both / root, lag, WIDE)
        _add(total["after"], ids, after / root, lag, NEAR)
        _add(total["before"], ids, before / root, lag, NEAR)
        _add(total["learned"], ids, memory.weight[row, :num], lag, LEARNED)
        direct = memory.direct[row, :num] / seen if num else both
        _add(total["direct"], ids, direct * _share(past, lag), lag, DIRECT)
        _add(total["threads"], ids, direct, lag, THREADS)
    for place, row in enumerate(past.row_P.tolist()):
        total["own_count"][row] += 1.0
        total["own_recency"][row] = 1.0 / (1.0 + 0.1 * (len(past.row_P) - 1 - place))
        total["own_visit"][row], total["own_since"][row] = past.in_visit_P[place], past.since_P[place]
    logs = (("follows", FOLLOWS_SCALE), ("direct", FOLLOWS_SCALE), ("threads", FOLLOWS_SCALE), ("own_count", 1.0))
    for name, scale in logs:
        total[name] = np.log1p(scale * total[name])
    for name in ("wide", "after", "before"):
        total[name] = np.log1p(COSINE_SCALE * total[name])
    return np.stack(list(total.values()))


def _share(past: MemoryPast, lag: int) -> float:
    return 1.0 if past.in_visit_P[-1 - lag] else ACROSS_VISITS


def _add(total_V: Float64, ids: Int32, value: NDArray[np.floating], lag: int, window: tuple[int, float]) -> None:
    lags, decay = window
    if lag < lags:
        total_V[ids] += value * decay**lag


def _bucket(memory: MemoryArrays, num_past: int) -> int:
    return 1 + min(memory.num_buckets - 1, int(np.log2(1 + num_past) + 0.5))


def gains_of(memory: MemoryArrays, num_past: int) -> Float64:
    """(features,) the gains for a user with this many past choices."""
    return np.asarray(memory.gain[0].astype(float) + memory.gain[_bucket(memory, num_past)])


def weighted_sum(memory: MemoryArrays, num_rows: int, past: MemoryPast, logit_V: Float32) -> Prediction:
    """The scores of all rows before the shortlist, for a user with these past choices and nothing left out."""
    return mix(memory, num_rows, _standing(memory, num_rows), past, past.row_P[:0], 0, logit_V)


def leaves_out(memory: MemoryArrays, rules: MemoryRules) -> bool:
    """Whether what a user has met does not compete."""
    return rules.exclude == "always" or (rules.exclude == "auto" and memory.leaves_out_repeats)


def mix(
    memory: MemoryArrays,
    num_rows: int,
    standing_FV: Float64,
    past: MemoryPast,
    left_out: Int32,
    target: int,
    logit: Float32,
) -> Prediction:
    """The scores of all rows before the shortlist; rows of ``left_out`` other than ``target`` do not compete."""
    bucket, gain_F = _bucket(memory, len(past.row_P)), gains_of(memory, len(past.row_P))
    feature_FV = np.concatenate([standing_FV, _evidence(memory, num_rows, past), logit[None, :num_rows]])
    competes_V = memory.first[:num_rows] >= 0
    competes_V[left_out] = False
    competes_V[target] |= target > 0
    return Prediction(gain_F @ feature_FV, feature_FV, competes_V, gain_F, bucket, past.pause)


@dataclass(slots=True, eq=False)
class Found:
    """An event's prediction, and what is learned from it."""

    ranks: tuple[int, int, int]
    loss: float
    done: Prediction
    shortlist: Shortlist
    push_V: Float64
    target: int
    past: MemoryPast
    is_repeat: bool


def predict(
    memory: MemoryArrays,
    num_rows: int,
    standing_FV: Float64,
    target: int,
    past: MemoryPast,
    met: Int32,
    logit: Float32,
    rules: MemoryRules,
) -> Found:
    """Predict an event of a row that is known; changes nothing."""
    excludes = leaves_out(memory, rules)
    done = mix(memory, num_rows, standing_FV, past, met if excludes else met[:0], target, logit)
    by_counts = done.feature_FV[FEATURES.index("follows")]
    score_V = np.where(done.competes_V, done.score_V, -np.inf)
    mass = log_sum(score_V)
    push_V = np.exp(score_V - mass)
    push_V[target] -= 1.0
    shortlist = Shortlist(memory, done)
    shortlist.rescore(score_V)
    ranks = tuple(rank(score, done.competes_V, target) for score in (score_V, logit[:num_rows], by_counts))
    loss = float(mass - score_V[target])
    return Found((ranks[0], ranks[1], ranks[2]), loss, done, shortlist, push_V, target, past, target in met)


def learn(memory: MemoryArrays, found: Found, rules: MemoryRules, weight: float = 1.0) -> None:
    """One step of the neighbours' weights, the gains and the shortlist, and one more choice, a repeat or not."""
    push_V = weight * found.push_V
    learn_weights(memory, found.past.row_P, push_V, found.done.gain_F, rules)
    learn_gains(memory, found.done.feature_FV @ push_V, found.done.bucket, rules)
    found.shortlist.learn(memory, found.target, rules, weight)
    count_repeat(memory, is_repeat=found.is_repeat, rules=rules)


def rank(score_V: NDArray[np.floating], competes_V: NDArray[np.bool_], target: int) -> int:
    """Of a row among those that compete, 1 is best; of the rows that score the same, half are better."""
    others = competes_V.copy()
    others[target] = False
    better, equal = score_V[others] > score_V[target], score_V[others] == score_V[target]
    return int(1 + better.sum() + (equal.sum() + 1) // 2)


def learn_gains(memory: MemoryArrays, slope_F: Float64, bucket: int, rules: MemoryRules) -> None:
    """One step of the shared gains, and of the bucket's, against their slopes."""
    for part, rate in ((0, rules.gain_rate), (bucket, 0.5 * rules.gain_rate)):
        memory.gain_square[part] = memory.gain_square[part] * rules.gain_decay + slope_F**2
        memory.gain[part] -= rate * slope_F / np.sqrt(memory.gain_square[part])


def count_repeat(memory: MemoryArrays, *, is_repeat: bool, rules: MemoryRules) -> None:
    """Count one more choice, a repeat or not."""
    decay = 0.5 ** (1.0 / rules.repeat_half_life)
    memory.clock[_REPEATS] = memory.clock[_REPEATS] * decay + float(is_repeat)
    memory.clock[_CHOICES] = memory.clock[_CHOICES] * decay + 1.0


def learn_weights(memory: MemoryArrays, past: Int32, push_V: Float64, gain_F: Float64, rules: MemoryRules) -> None:
    """One step of the weights of the last choices' neighbours."""
    lags, decay = LEARNED
    rate = rules.weight_rate * gain_F[len(STANDING) + EVIDENCE.index("learned")]
    for lag, row in enumerate(past[::-1][:lags].tolist()):
        num = memory.num_neighbours[row]
        memory.weight[row, :num] -= rate * decay**lag * push_V[memory.neighbour_row[row, :num]]
        memory.dirty[row] = CHANGED


def meet(
    memory: MemoryArrays, target: int, past: MemoryPast | None, num_rows: int, rules: MemoryRules, weight: float = 1.0
) -> None:
    """Count one more event: a choice after ``past``, or (None) one that was only met."""
    now = int(memory.clock[_EVENTS])
    if memory.first[target] < 0 or (past is not None and memory.last[target] < 0):
        memory.first[target] = now
    if past is not None:
        memory.last[target] = now
        memory.recent[now % RECENT] = target
    memory.dirty[target] = CHANGED
    if past is not None:
        _count(memory, target, past, num_rows, rules, weight)
    memory.clock[_EVENTS] += 1


def _count(
    memory: MemoryArrays, target: int, past: MemoryPast, num_rows: int, rules: MemoryRules, weight: float
) -> None:
    _rescale(memory, num_rows)
    lags, decay = COUNTED
    unit = weight * float(np.float32(memory.clock[_SEEN]))
    for lag, row in enumerate(past.row_P[::-1][:lags].tolist()):
        if row != target:
            direct = unit * DIRECT_COUNT_DECAY**lag * _share(past, lag)
            _sight(memory, row, target, unit * decay**lag, 0.0, direct)
            _sight(memory, target, row, 0.0, unit * decay**lag, 0.0)
    memory.seen[target] += unit
    memory.clock[_SEEN] *= 2.0 ** (1.0 / rules.seen_half_life)
    for heat, half_life in enumerate(rules.heat_half_lives):
        memory.heat[heat, target] += weight * memory.clock[_HEAT + heat]
        memory.clock[_HEAT + heat] *= 2.0 ** (1.0 / half_life)


def _sight(memory: MemoryArrays, row: int, other: int, after: float, before: float, direct: float) -> None:
    """Count one more sighting of ``other`` beside ``row``.

    If the row is full, its weakest neighbour is reduced, and replaced by one that outweighs what is left of it (Misra &
    Gries, 1982, but only for the weakest).
    """
    memory.dirty[row] = CHANGED
    num = int(memory.num_neighbours[row])
    found = np.flatnonzero(memory.neighbour_row[row, :num] == other)
    if len(found):
        memory.after[row, found[0]] += after
        memory.before[row, found[0]] += before
        memory.direct[row, found[0]] += direct
        _mark(memory, row, int(found[0]))
        return
    at = num
    if num == memory.width:
        both = memory.after[row] + memory.before[row]
        at = int(np.argmin(both))
        if after + before < both[at]:
            left = 1.0 - (after + before) / float(both[at])
            memory.after[row, at] *= left
            memory.before[row, at] *= left
            memory.direct[row, at] *= left
            _mark(memory, row, at)
            return
    else:
        memory.num_neighbours[row] += 1
    memory.neighbour_row[row, at] = other
    memory.after[row, at], memory.before[row, at], memory.weight[row, at] = after, before, 0.0
    memory.direct[row, at] = direct
    _mark(memory, row, at)


def _mark(memory: MemoryArrays, row: int, at: int) -> None:
    memory.moved[row, at // 8] |= 1 << at % 8


def _rescale(memory: MemoryArrays, num_rows: int) -> None:
    """Rescale counts before their unit outgrows a float."""
    if memory.clock[_SEEN] > RESCALE_AT:
        for counts in (memory.seen, memory.after, memory.before, memory.direct):
            counts *= 1.0 / memory.clock[_SEEN]
        memory.dirty[:num_rows] = CHANGED
        memory.moved[:num_rows] = 255
        memory.clock[_SEEN] = 1.0
    for heat in range(NUM_HEATS):
        if memory.clock[_HEAT + heat] > RESCALE_AT:
            memory.dirty[(memory.heat[heat] != 0) & (memory.first >= 0)] = CHANGED
            memory.heat[heat] *= 1.0 / memory.clock[_HEAT + heat]
            memory.clock[_HEAT + heat] = 1.0
