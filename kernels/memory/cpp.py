"""The memory in C++, called as its reference is."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.library import function
from kernels.memory.arrays import Float32, MemoryArrays, MemoryEvents, MemoryOutcome, MemoryRules

_EXCLUDE = {"never": 0, "always": 1, "auto": 2}


class _Call(ctypes.Structure):
    """``MemoryCall`` of csrc/level/memory.cpp."""

    _fields_ = (
        *((name, c_int64) for name in ("stride", "num_rows", "width", "num_buckets")),
        *(
            (name, c_void_p)
            for name in ("neighbour_row", "num_neighbours", "after", "before", "weight", "seen", "heat")
        ),
        *((name, c_void_p) for name in ("first", "last", "gain", "gain_square")),
        *((name, c_void_p) for name in ("shortlist_weight", "shortlist_square", "shortlist_norm", "clock", "dirty")),
        *((name, c_int64) for name in ("num_events", "logit_stride")),
        *((name, c_void_p) for name in ("target", "chosen", "past_rows", "met_rows", "past_begin", "past_end")),
        *((name, c_void_p) for name in ("met_begin", "met_end", "logit", "rank", "model_rank", "count_rank", "loss")),
        ("seen_growth", c_double),
        ("heat_growth", c_double * 3),
        ("repeat_decay", c_double),
        *((name, c_float) for name in ("gain_rate", "gain_decay", "weight_rate", "shortlist_rate", "shortlist_decay")),
        ("exclude", c_int32),
        ("learn", c_int32),
    )


def _fill(memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32) -> tuple[_Call, list[Any]]:
    """The argument, and what must outlive it."""
    kept = [np.ascontiguousarray(getattr(events, name)) for name in MemoryEvents.__slots__]
    target, chosen, past_rows, past_begin, past_end, met_rows, met_begin, met_end = map(_pointer, kept)
    call = _Call(
        stride=memory.capacity,
        num_rows=num_rows,
        width=memory.width,
        num_buckets=memory.num_buckets,
        **{name: _pointer(getattr(memory, name)) for name in MemoryArrays.__slots__},
        num_events=len(events),
        logit_stride=logit_AV.strides[0] // 4,
        target=target,
        chosen=chosen,
        past_rows=past_rows,
        met_rows=met_rows,
        past_begin=past_begin,
        past_end=past_end,
        met_begin=met_begin,
        met_end=met_end,
        logit=logit_AV.ctypes.data,
    )
    return call, kept


def _pointer(array: NDArray[Any]) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data


def _run(call: _Call, num_rows: int) -> None:
    if function("memory_events")(ctypes.byref(call)):
        raise MemoryError(f"memory: no room to work with {num_rows} rows")


def memory_learn(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32, rules: MemoryRules
) -> MemoryOutcome:
    """See `kernels.memory.memory_learn`."""
    call, kept = _fill(memory, num_rows, events, logit_AV)
    num = len(events)
    ranks = [np.zeros(num, np.int32) for _ in range(3)]
    outcome = MemoryOutcome(ranks[0], ranks[1], ranks[2], np.zeros(num, np.float32))
    call.rank, call.model_rank = _pointer(outcome.rank_R), _pointer(outcome.model_rank_R)
    call.count_rank, call.loss = _pointer(outcome.count_rank_R), _pointer(outcome.loss_R)
    call.seen_growth = 2.0 ** (1.0 / rules.seen_half_life)
    call.heat_growth = (c_double * 3)(*(2.0 ** (1.0 / each) for each in rules.heat_half_lives))
    call.repeat_decay = 0.5 ** (1.0 / rules.repeat_half_life)
    for name in ("gain_rate", "gain_decay", "weight_rate", "shortlist_rate", "shortlist_decay"):
        setattr(call, name, getattr(rules, name))
    call.exclude, call.learn = _EXCLUDE[rules.exclude], 1
    _run(call, num_rows)
    del kept
    return outcome


def memory_scores(memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32) -> None:
    """See `kernels.memory.memory_scores`."""
    call, kept = _fill(memory, num_rows, events, logit_AV)
    _run(call, num_rows)
    del kept
