"""The definition of learning from a sample of the rows, in plain NumPy: features of all rows, of which few compete.

Items are not lifted by their groups here. Of a group that is likely now hardly any items are in the sample, and the one
that is drawn stands for many: the sum would be right on average, but far off for each event, and the shortlist would
not meet the group's items that compete for the best places when all rows are scored. What they are lifted by is learned
from the events that are compared with all rows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kernels.memory.arrays import DRAWN, Float32, Float64, Int32, Int64, MemoryArrays
from kernels.memory.counting import count_choice, meet
from kernels.memory.events import MemoryEvents, MemoryOutcome, MemoryRules
from kernels.memory.features import COUNTED, WIDE, leaves_out, mix, standing_of
from kernels.memory.groups import groups_of, learn_groups, parts_of
from kernels.memory.pairs import followers
from kernels.memory.past import MemoryPast
from kernels.memory.reference import learn_gains, learn_weights
from kernels.memory.shortlist import Shortlist
from kernels.row_types import Rows, as_float32

LEAST_NORM = 1e-6
_UINT64 = 0xFFFF_FFFF_FFFF_FFFF


def memory_logits(query_AD: Float32, table_VD: Rows, num_rows: int, unit_width: int) -> Float32:
    """See `kernels.memory.memory_logits`."""
    rows = as_float32(table_VD[:num_rows]).astype(float)
    norm_V1 = np.linalg.norm(rows[:, :unit_width], axis=1, keepdims=True)
    rows[:, :unit_width] /= np.maximum(norm_V1, LEAST_NORM)
    return np.asarray(query_AD @ rows.T, np.float32)


def memory_learn_sampled(
    memory: MemoryArrays,
    num_rows: int,
    events: MemoryEvents,
    query_AD: Float32,
    table_VD: Rows,
    unit_width: int,
    rules: MemoryRules,
) -> MemoryOutcome:
    """See `kernels.memory.memory_learn_sampled`."""
    return _learn_all(memory, num_rows, events, memory_logits(query_AD, table_VD, num_rows, unit_width), rules)


def memory_learn_given(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, row: Int32, begin_A1: Int64, logit: Float32,
    rules: MemoryRules,
) -> MemoryOutcome:  # fmt: skip
    """See `kernels.memory.memory_learn_given`."""
    logit_AV = np.zeros((len(begin_A1) - 1, num_rows), np.float32)
    logit_AV[np.repeat(np.arange(len(logit_AV)), np.diff(begin_A1)), row] = logit
    return _learn_all(memory, num_rows, events, logit_AV, rules)


def memory_logits_of(query_AD: Float32, table_VD: Rows, row: Int32, begin_A1: Int64, unit_width: int) -> Float32:
    """See `kernels.memory.memory_logits_of`."""
    logit_AV = memory_logits(query_AD, table_VD, len(table_VD), unit_width)
    return np.asarray(logit_AV[np.repeat(np.arange(len(query_AD)), np.diff(begin_A1)), row])


def memory_candidates(memory: MemoryArrays, num_rows: int, events: MemoryEvents) -> tuple[Int32, Int64]:
    """See `kernels.memory.memory_candidates`."""
    recent = memory.recent[(memory.recent > 0) & (memory.recent < num_rows)].tolist()
    event, found, added = int(memory.clock[0]), list[list[int]](), dict[int, set[int]]()
    for r in range(len(events)):
        target, history = int(events.target_R[r]), MemoryPast.of_event(events, r)
        past = history.row_P[::-1].tolist()
        if events.chosen_R[r] == 1:
            certain = [target, *history.shown_S.tolist(), *followers(memory, history).tolist(), *recent]
            found.append(_rows_asked(memory, num_rows, past, certain, added, event) if target else [])
        if target == 0:
            continue
        event += 1
        if events.chosen_R[r]:
            recent.append(target)
            for row in set(past[: COUNTED[0]]) - {target}:
                added.setdefault(row, set()).add(target)
                added.setdefault(target, set()).add(row)
    begin_A1 = np.cumsum([0, *map(len, found)], dtype=np.int64)
    return np.array([row for rows in found for row in rows], np.int32), begin_A1


def _rows_asked(
    memory: MemoryArrays, num_rows: int, past: list[int], certain: list[int], added: dict[int, set[int]], event: int
) -> list[int]:  # fmt: skip
    rows = {*certain, *past, *drawn_rows(event, num_rows)}
    for row in past[: WIDE[0]]:
        rows |= {*memory.neighbour_row[row, : memory.num_neighbours[row]].tolist(), *added.get(row, ())}
    return sorted(rows)


def _learn_all(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32, rules: MemoryRules
) -> MemoryOutcome:
    num = len(events)
    query_of_R, loss_R = np.cumsum(events.chosen_R == 1) - 1, np.full(num, np.nan, np.float32)
    for r in range(num):
        target = int(events.target_R[r])
        if target == 0:
            continue
        past, met = MemoryPast.of_event(events, r), events.met_rows[events.met_begin_R[r] : events.met_end_R[r]]
        group_C = groups_of(memory, events, r)
        if events.chosen_R[r] == 1 and memory.first[target] >= 0:
            loss_R[r] = _learn(memory, num_rows, target, past, met, logit_AV[query_of_R[r]], rules, events.weight(r))
            learn_groups(memory, parts_of(memory, group_C, past), events.weight(r))
        chosen_after, now_ms = past if events.chosen_R[r] else None, int(events.now_ms_R[r])
        meet(memory, target, group_C, chosen_after, num_rows, rules, now_ms, events.weight(r))
    none_R = np.full(num, -1, np.int32)
    return MemoryOutcome(none_R, none_R.copy(), none_R.copy(), loss_R)


def drawn_rows(event: int, num_rows: int) -> list[int]:
    """The rows that are drawn for an event: from splitmix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    rows = []
    for draw in range(DRAWN):
        x = (event * DRAWN + draw + 1) * 0x9E3779B97F4A7C15 & _UINT64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _UINT64
        x = (x ^ x >> 27) * 0x94D049BB133111EB & _UINT64
        rows.append(1 + (x ^ x >> 31) % (num_rows - 1))
    return rows


def _shares(memory: MemoryArrays, num_rows: int, target: int, past: MemoryPast) -> tuple[Float64, Float64]:
    """(V,) 1 for each row that competes for certain; (V,) for how many rows each drawn one stands."""
    certain_V, drawn_V = np.zeros(num_rows), np.zeros(num_rows)
    for row in past.row_P[::-1][: WIDE[0]].tolist():
        certain_V[memory.neighbour_row[row, : memory.num_neighbours[row]]] = 1.0
    certain_V[followers(memory, past)] = certain_V[past.row_P] = certain_V[past.shown_S] = certain_V[target] = 1.0
    certain_V[memory.recent[(memory.recent > 0) & (memory.recent < num_rows)]] = 1.0
    np.add.at(drawn_V, drawn_rows(int(memory.clock[0]), num_rows), (num_rows - 1) / DRAWN)
    return certain_V, np.where(certain_V > 0, 0.0, drawn_V)


def _learn(
    memory: MemoryArrays, num_rows: int, target: int, past: MemoryPast, met: Int32, logit: Float32, rules: MemoryRules,
    weight: float,
) -> float:  # fmt: skip
    excludes = leaves_out(memory, rules)
    standing_FV = standing_of(memory, slice(num_rows))
    done = mix(memory, num_rows, standing_FV, past, met if excludes else met[:0], target, logit, lifts=False)
    certain_V, drawn_V = _shares(memory, num_rows, target, past)
    share_V = np.where(done.competes_V, certain_V + drawn_V, 0.0)
    score_V = np.where(share_V > 0, done.score_V, -np.inf)
    best = score_V.max()
    push_V = np.exp(score_V - best) * share_V
    mass = float(np.log(push_V.sum()) + best)
    push_V /= push_V.sum()
    push_V[target] -= 1.0
    push_V *= weight
    competes_V = done.competes_V & (certain_V > 0)
    shortlist = Shortlist(memory, replace(done, competes_V=competes_V))
    shortlist.rescore(score_V)
    learn_weights(memory, past.row_P, push_V, done.gain_F, rules)
    learn_gains(memory, done.feature_FV @ push_V, done.bucket, rules)
    shortlist.learn(memory, target, rules, weight)
    count_choice(memory, past, is_repeat=target in met, rules=rules)
    return mass - float(score_V[target])
