"""The definition of the memory in plain NumPy: one event at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.memory.arrays import CHANGED, EVIDENCE, FEATURES, STANDING, Float32, Float64, Int32, MemoryArrays
from kernels.memory.counting import count_choice, meet
from kernels.memory.events import (
    MemoryAnswers,
    MemoryCandidates,
    MemoryEvents,
    MemoryOutcome,
    MemoryRules,
    MemoryStanding,
)
from kernels.memory.features import EVENTS, LEARNED, WIDE, leaves_out, mix, standing_of
from kernels.memory.groups import groups_of, learn_groups, parts_of
from kernels.memory.pairs import followers, forget_pairs
from kernels.memory.past import MemoryPast
from kernels.memory.shortlist import Prediction, Shortlist, log_sum

REFRESH_EVENTS = 16
EVENTS_PER_GROUPED = 64
OUT = -1e30


def memory_learn(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32, rules: MemoryRules
) -> MemoryOutcome:
    """See `kernels.memory.memory_learn`."""
    num = len(events)
    asked_R = events.chosen_R == 1
    rank_3R, loss_R = np.tile(np.where(asked_R, 0, -1).astype(np.int32), (3, 1)), np.full(num, np.nan, np.float32)
    standing_FV = standing_of(memory, slice(num_rows))
    logit_of_R = np.cumsum(asked_R) - 1
    for r in range(num):
        target = int(events.target_R[r])
        if target == 0:
            continue
        (past, met), group_C = before(events, r), groups_of(memory, events, r)
        if asked_R[r] and memory.first[target] >= 0:
            found = predict(memory, num_rows, standing_FV, target, past, met, logit_AV[logit_of_R[r]], rules)
            rank_3R[:, r], loss_R[r] = found.ranks, found.loss
            learn(memory, found, rules, events.weight(r))
            learn_groups(memory, parts_of(memory, group_C, past), events.weight(r))
        chosen_after, now_ms = past if events.chosen_R[r] else None, int(events.now_ms_R[r])
        meet(memory, target, group_C, chosen_after, num_rows, rules, now_ms, events.weight(r))
        fresh = standing_of(memory, slice(num_rows))
        if int(memory.clock[EVENTS]) % REFRESH_EVENTS == 0:
            standing_FV = fresh
        standing_FV[:, target] = fresh[:, target]
    return MemoryOutcome(rank_3R[0], rank_3R[1], rank_3R[2], loss_R)


def memory_learn_grouped(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32, rules: MemoryRules, group: int
) -> MemoryOutcome:
    """`memory_learn`, with up to ``group`` events predicted from the same state.

    All events of a group are predicted first; then their updates of gains, shortlist and learned weights are applied,
    in order; then they are counted, in order. So a GPU can compute them in parallel (`DeviceMemory`). The time of day
    is that of the latest event before the group.
    """
    num = len(events)
    asked_R = events.chosen_R == 1
    rank_3R, loss_R = np.tile(np.where(asked_R, 0, -1).astype(np.int32), (3, 1)), np.full(num, np.nan, np.float32)
    logit_of_R = np.cumsum(asked_R) - 1
    start = stop = 0
    while (start := stop) < num:
        stop = min(start + group_size(int(memory.clock[EVENTS]), group), num)
        together = [r for r in range(start, stop) if events.target_R[r] > 0]
        standing_FV, found = standing_of(memory, slice(num_rows)), list[tuple[Found, Float64]]()
        for number, r in enumerate(together):
            target = int(events.target_R[r])
            if asked_R[r] and memory.first[target] >= 0:
                (past, met), logit = before(events, r), logit_AV[logit_of_R[r]]
                each = predict(memory, num_rows, standing_FV, target, past, met, logit, rules)
                found.append((each, parts_of(memory, groups_of(memory, events, r), past)))
                rank_3R[:, r], loss_R[r] = each.ranks, each.loss
            if memory.first[target] < 0:
                memory.first[target] = int(memory.clock[EVENTS]) + number
        for each, part_C3 in found:
            learn(memory, each, rules)
            learn_groups(memory, part_C3, 1.0)
        for r in together:
            (past, _), group_C = before(events, r), groups_of(memory, events, r)
            chosen_after, now_ms = past if events.chosen_R[r] else None, int(events.now_ms_R[r])
            meet(memory, int(events.target_R[r]), group_C, chosen_after, num_rows, rules, now_ms)
    return MemoryOutcome(rank_3R[0], rank_3R[1], rank_3R[2], loss_R)


def group_size(num_before: int, most: int) -> int:
    """How many events are predicted together after ``num_before``: few at first, when each one changes much."""
    return max(1, min(most, num_before // EVENTS_PER_GROUPED))


def before(events: MemoryEvents, r: int) -> tuple[MemoryPast, Int32]:
    """What the user of event r had chosen, and met, before that event."""
    return MemoryPast.of_event(events, r), events.met_rows[events.met_begin_R[r] : events.met_end_R[r]]


def memory_scores(
    memory: MemoryArrays,
    num_rows: int,
    events: MemoryEvents,
    logit_AV: Float32,
    candidates: MemoryCandidates | None = None,
) -> None:
    """See `kernels.memory.memory_scores`. Other rows than the candidates do not compete."""
    standing_FV = standing_of(memory, slice(num_rows))
    for r in range(len(events)):
        past, met = before(events, r)
        done = mix(memory, num_rows, standing_FV, past, met, 0, logit_AV[r])
        if candidates is not None:
            rows = np.concatenate([candidates.of(r), evident(memory, past)])
            done.competes_V[np.setdiff1d(np.arange(num_rows), rows)] = False
        score_V = np.where(done.competes_V, done.score_V, OUT)
        Shortlist(memory, done).rescore(score_V)
        logit_AV[r, :num_rows] = score_V


def evident(memory: MemoryArrays, past: MemoryPast) -> Int32:
    """The rows with evidence: the neighbours of the last choices, what followed these together, and what the user chose
    or was shown."""
    lately = past.row_P[max(0, len(past.row_P) - WIDE[0]) :]
    near = [memory.neighbour_row[row, : memory.num_neighbours[row]] for row in lately.tolist()]
    return np.concatenate([*near, followers(memory, past), past.row_P, past.shown_S])


def memory_stand(memory: MemoryArrays, num_rows: int) -> MemoryStanding:
    """See `kernels.memory.memory_stand`."""
    gain_BF = (memory.gain[0].astype(float) + memory.gain[1:])[:, : len(STANDING)]
    base_VB = (gain_BF @ standing_of(memory, slice(num_rows))).T
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
    candidates: MemoryCandidates | None = None,
) -> tuple[Int32, Float32]:
    """See `kernels.memory.memory_best`."""
    num_rows, most = len(standing.root_V), int(answers.k_R.max(initial=0))
    score_RV = query_RD @ table_VD[:num_rows].T
    memory_scores(memory, num_rows, events, score_RV, candidates)
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
    """One step of the neighbours' weights, the gains and the shortlist, and one more choice."""
    push_V = weight * found.push_V
    learn_weights(memory, found.past.row_P, push_V, found.done.gain_F, rules)
    learn_gains(memory, found.done.feature_FV @ push_V, found.done.bucket, rules)
    found.shortlist.learn(memory, found.target, rules, weight)
    count_choice(memory, found.past, is_repeat=found.is_repeat, rules=rules)


def rank(score_V: NDArray[np.floating], competes_V: NDArray[np.bool_], target: int) -> int:
    """The target's rank among the rows that compete, 1 is best; half of the rows with the same score count as
    better."""
    others = competes_V.copy()
    others[target] = False
    better, equal = score_V[others] > score_V[target], score_V[others] == score_V[target]
    return int(1 + better.sum() + (equal.sum() + 1) // 2)


def learn_gains(memory: MemoryArrays, slope_F: Float64, bucket: int, rules: MemoryRules) -> None:
    """One step of the shared gains, and of the bucket's, against their slopes."""
    for part, rate in ((0, rules.gain_rate), (bucket, 0.5 * rules.gain_rate)):
        memory.gain_square[part] = memory.gain_square[part] * rules.gain_decay + slope_F**2
        memory.gain[part] -= rate * slope_F / np.sqrt(memory.gain_square[part])


def learn_weights(memory: MemoryArrays, past: Int32, push_V: Float64, gain_F: Float64, rules: MemoryRules) -> None:
    """One step of the weights of the last choices' neighbours."""
    lags, decay = LEARNED
    rate = rules.weight_rate * gain_F[len(STANDING) + EVIDENCE.index("learned")]
    for lag, row in enumerate(past[::-1][:lags].tolist()):
        num = memory.num_neighbours[row]
        memory.weight[row, :num] -= rate * decay**lag * push_V[memory.neighbour_row[row, :num]]
        memory.dirty[row] = CHANGED


def memory_forget(memory: MemoryArrays, num_rows: int, gone_V: NDArray[np.bool_]) -> None:
    """See `kernels.memory.memory_forget`."""
    used = np.arange(memory.width) < memory.num_neighbours[:num_rows, None]
    lost = used & gone_V[memory.neighbour_row[:num_rows]]
    for row in np.flatnonzero(lost.any(axis=1)).tolist():
        kept = np.flatnonzero(used[row] & ~lost[row])
        for name in ("neighbour_row", "after", "before", "direct", "weight"):
            values = getattr(memory, name)[row]
            values[: len(kept)] = values[kept]
        memory.num_neighbours[row] = len(kept)
        memory.dirty[row], memory.moved[row] = CHANGED, 255
    forget_pairs(memory, gone_V)
