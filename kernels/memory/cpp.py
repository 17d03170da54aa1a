"""The memory in C++, with the same signatures as its reference."""

from __future__ import annotations

import ctypes
from ctypes import c_double
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.library import baseline, function, num_threads, pointer
from kernels.memory.arrays import DRAWN, NEXT_OF_PAIR, PAIRED, RECENT, Float32, Int32, Int64, MemoryArrays
from kernels.memory.calls import (
    AmongCall,
    BestCall,
    CandidatesCall,
    ForgetCall,
    LogitsCall,
    MemoryCall,
    RowLogitsCall,
    SampledCall,
    StandCall,
)
from kernels.memory.events import (
    MemoryAnswers,
    MemoryCandidates,
    MemoryEvents,
    MemoryOutcome,
    MemoryRules,
    MemoryStanding,
)
from kernels.memory.features import COUNTED, WIDE
from kernels.row_types import ARRAY_TYPES, Rows

_EXCLUDE = {"never": 0, "always": 1, "auto": 2}


def fill(memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32) -> tuple[MemoryCall, list[Any]]:
    """The argument, and the arrays that must outlive it."""
    names = [name for name in MemoryEvents.__slots__ if name not in ("weight_R", "group_RC")]
    kept = [np.ascontiguousarray(getattr(events, name)) for name in names]
    (target, chosen, past_rows, past_begin, past_end, met_rows, met_begin, met_end, past_ms, now_ms, shown_rows,
     shown_begin, shown_end) = map(pointer, kept)  # fmt: skip
    weight_R, group_RC = (
        None if column is None else np.ascontiguousarray(column) for column in (events.weight_R, events.group_RC)
    )
    kept += [column for column in (weight_R, group_RC) if column is not None]
    call = MemoryCall(
        **memory_fields(memory, num_rows),
        num_events=len(events),
        logit_stride=logit_AV.strides[0] // 4,
        target=target,
        chosen=chosen,
        weight_of=None if weight_R is None else pointer(weight_R),
        past_rows=past_rows,
        met_rows=met_rows,
        past_begin=past_begin,
        past_end=past_end,
        met_begin=met_begin,
        met_end=met_end,
        past_ms=past_ms,
        now_ms=now_ms,
        shown_rows=shown_rows,
        shown_begin=shown_begin,
        shown_end=shown_end,
        group_of=None if group_RC is None else pointer(group_RC),
        logit=pointer(logit_AV),
    )
    return call, kept


def memory_fields(memory: MemoryArrays, num_rows: int) -> dict[str, int]:
    """What a call says of the memory itself."""
    arrays = {name: pointer(getattr(memory, name)) for name in MemoryArrays.__slots__}
    sizes = {
        "stride": memory.capacity, "width": memory.width, "num_buckets": memory.num_buckets,
        "num_columns": memory.num_columns, "num_groups": memory.num_groups,
        "num_pairs": memory.num_pairs, "num_hours": memory.num_hours,
    }  # fmt: skip
    return {**sizes, "num_rows": num_rows, **arrays}


def run(call: ctypes.Structure, num_rows: int, name: str = "memory_events") -> None:
    """Call a function of the library. Raises MemoryError."""
    if function(name)(ctypes.byref(call)):
        raise MemoryError(f"{name}: no memory for temporary buffers of {num_rows} rows; evict items, or add memory")


def memory_learn(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32, rules: MemoryRules
) -> MemoryOutcome:
    """See `kernels.memory.memory_learn`."""
    call, kept = fill(memory, num_rows, events, logit_AV)
    outcome = _learning(call, len(events), rules)
    run(call, num_rows)
    del kept
    return outcome


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
    inner, kept = fill(memory, num_rows, events, query_AD)
    outcome = _learning(inner, len(events), rules)
    call = SampledCall(
        inner, pointer(query_AD), pointer(table_VD), table_VD.shape[1], unit_width, ARRAY_TYPES[table_VD.dtype]
    )  # fmt: skip
    run(call, num_rows, "memory_sampled")
    del kept
    return outcome


def memory_candidates(memory: MemoryArrays, num_rows: int, events: MemoryEvents) -> tuple[Int32, Int64]:
    """See `kernels.memory.memory_candidates`."""
    inner, kept = fill(memory, num_rows, events, np.zeros((0, num_rows), np.float32))
    asked = np.flatnonzero(events.chosen_R == 1)
    num_past_A = events.past_end_R[asked] - events.past_begin_R[asked]
    neighbours_A = np.minimum(num_past_A, WIDE[0]) * memory.width
    num_shown_A = events.shown_end_R[asked] - events.shown_begin_R[asked]
    known_A = num_past_A + num_shown_A + len(PAIRED) * NEXT_OF_PAIR
    most_A = neighbours_A + known_A + RECENT + DRAWN + (1 + 2 * COUNTED[0]) * (1 + asked)
    row, begin_A1 = np.empty(int(np.minimum(most_A, num_rows).sum()), np.int32), np.zeros(len(asked) + 1, np.int64)
    call = CandidatesCall(inner, pointer(row), pointer(begin_A1), len(row))
    run(call, num_rows, "memory_candidates")
    del kept
    return row[: begin_A1[-1]].copy(), begin_A1


def memory_learn_given(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, row: Int32, begin_A1: Int64, logit: Float32,
    rules: MemoryRules,
) -> MemoryOutcome:  # fmt: skip
    """See `kernels.memory.memory_learn_given`."""
    inner, kept = fill(memory, num_rows, events, np.zeros((0, num_rows), np.float32))
    outcome = _learning(inner, len(events), rules)
    call = SampledCall(inner, None, None, 0, 0, 0, pointer(row), pointer(begin_A1), pointer(logit))
    run(call, num_rows, "memory_sampled")
    del kept
    return outcome


def memory_logits_of(query_AD: Float32, table_VD: Rows, row: Int32, begin_A1: Int64, unit_width: int) -> Float32:
    """See `kernels.memory.memory_logits_of`."""
    logit = np.empty(len(row), np.float32)
    call = RowLogitsCall(
        pointer(query_AD), pointer(table_VD), len(query_AD), table_VD.shape[1], unit_width,
        ARRAY_TYPES[table_VD.dtype], pointer(row), pointer(begin_A1), pointer(logit),
    )  # fmt: skip
    run(call, len(table_VD), "memory_row_logits")
    return logit


def memory_logits(query_AD: Float32, table_VD: Rows, num_rows: int, unit_width: int) -> Float32:
    """See `kernels.memory.memory_logits`."""
    logit_AV = np.empty((len(query_AD), num_rows), np.float32)
    call = LogitsCall(
        pointer(query_AD), pointer(table_VD), len(query_AD), num_rows, table_VD.shape[1], unit_width, num_rows,
        ARRAY_TYPES[table_VD.dtype], pointer(logit_AV),
    )  # fmt: skip
    run(call, num_rows, "memory_logits")
    return logit_AV


def _learning(call: MemoryCall, num: int, rules: MemoryRules) -> MemoryOutcome:
    """Where the outcomes go, and the rules."""
    ranks = [np.zeros(num, np.int32) for _ in range(3)]
    outcome = MemoryOutcome(ranks[0], ranks[1], ranks[2], np.zeros(num, np.float32))
    call.rank, call.model_rank = pointer(outcome.rank_R), pointer(outcome.model_rank_R)
    call.count_rank, call.loss = pointer(outcome.count_rank_R), pointer(outcome.loss_R)
    with_rules(call, rules)
    call.learn = 1
    return outcome


def with_rules(call: MemoryCall, rules: MemoryRules) -> None:
    """Fill in how fast the memory learns and forgets."""
    call.seen_growth = 2.0 ** (1.0 / rules.seen_half_life)
    call.heat_growth = (c_double * 3)(*(2.0 ** (1.0 / each) for each in rules.heat_half_lives))
    call.repeat_decay = 0.5 ** (1.0 / rules.repeat_half_life)
    for name in ("gain_rate", "gain_decay", "weight_rate", "shortlist_rate", "shortlist_decay"):
        setattr(call, name, getattr(rules, name))
    call.exclude = _EXCLUDE[rules.exclude]


def memory_scores(memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32) -> None:
    """See `kernels.memory.memory_scores`."""
    call, kept = fill(memory, num_rows, events, logit_AV)
    run(call, num_rows)
    del kept


def memory_forget(memory: MemoryArrays, num_rows: int, gone_V: NDArray[np.bool_]) -> None:
    """See `kernels.memory.memory_forget`."""
    names = (
        "neighbour_row", "num_neighbours", "after", "before", "direct", "weight", "dirty", "moved",
        "pair_row", "pair_next", "pair_count", "pair_dirty", "pair_moved",
    )  # fmt: skip
    call = ForgetCall(
        num_rows, memory.width, memory.moved.shape[1], memory.num_pairs,
        *(pointer(getattr(memory, name)) for name in names), pointer(gone_V), len(gone_V), num_threads(),
    )  # fmt: skip
    if baseline("memory_forget")(ctypes.byref(call)):
        raise MemoryError(f"memory_forget: no memory for a bit of each of {len(gone_V)} rows; add memory")


def memory_stand(memory: MemoryArrays, num_rows: int) -> MemoryStanding:
    """See `kernels.memory.memory_stand`."""
    standing = MemoryStanding(np.empty((num_rows, memory.num_buckets), np.float32), np.empty(num_rows, np.float32))
    call = StandCall(MemoryCall(**memory_fields(memory, num_rows)), pointer(standing.base_VB), pointer(standing.root_V))
    run(call, num_rows, "memory_stand")
    return standing


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
    row_RK = np.empty((len(events), most), np.int32)
    score_RK = np.empty((len(events), most), np.float32)
    kept = [np.ascontiguousarray(getattr(answers, name)) for name in MemoryAnswers.__slots__]
    inner, more = fill(memory, num_rows, events, query_RD)
    call = BestCall(
        inner, pointer(standing.base_VB), pointer(standing.root_V), pointer(query_RD), pointer(table_VD),
        query_RD.shape[1], most, *map(pointer, kept), pointer(row_RK), pointer(score_RK),
    )  # fmt: skip
    if candidates is None:
        run(call, num_rows, "memory_best")
    else:
        run(_among(call, candidates), num_rows, "memory_among")
    del kept, more
    return row_RK, score_RK


def _among(call: BestCall, candidates: MemoryCandidates) -> AmongCall:
    return AmongCall(
        call, pointer(candidates.shared_rows), len(candidates.shared_rows), pointer(candidates.list_rows),
        pointer(candidates.list_begin_L1), pointer(candidates.probe_RP), candidates.probe_RP.shape[1],
    )  # fmt: skip
