"""Ranking one choice among all rows in C++, with the same signatures as its definition."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from typing import Any

import numpy as np

from kernels.library import pointer
from kernels.memory.arrays import Int32, MemoryArrays
from kernels.memory.calls import MemoryCall
from kernels.memory.cpp import fill, memory_fields, run, with_rules
from kernels.memory.events import MemoryEvents, MemoryRules
from kernels.memory.ranking_state import MemoryRanking
from kernels.row_types import ARRAY_TYPES, Rows

_KEPT = (
    "score_V", "lift_V", "logit_V", "query_D", "gain", "shortlist_weight", "shortlist_norm", "lift_G", "lift_base",
    "clock", "listed_row", "listed_score", "listed_feature", "number", "amount",
)  # fmt: skip


class RankCall(ctypes.Structure):
    """``RankCall`` of csrc/memory_rank.h."""

    _fields_ = (
        ("memory", MemoryCall),
        ("table", c_void_p),
        ("width", c_int64),
        ("unit_width", c_int64),
        ("table_type", c_int64),
        ("rows", c_void_p),
        ("num", c_int64),
        ("ranks", c_void_p),
        ("loss", c_void_p),
        *((name, c_void_p) for name in _KEPT),
    )


def _call(
    inner: MemoryCall, ranking: MemoryRanking, table_VD: Rows | None = None, unit_width: int = 0, **more: Any
) -> RankCall:
    kept: dict[str, int | None] = {name: pointer(getattr(ranking, name)) for name in _KEPT}
    if not len(ranking.logit_V):
        kept["logit_V"] = None
    if table_VD is not None:
        more |= {"table": pointer(table_VD), "width": table_VD.shape[1], "unit_width": unit_width}
        more["table_type"] = ARRAY_TYPES[table_VD.dtype]
    return RankCall(memory=inner, **kept, **more)


def memory_rank_begin(
    memory: MemoryArrays, ranking: MemoryRanking, event: MemoryEvents, table_VD: Rows | None, unit_width: int,
    rules: MemoryRules,
) -> None:  # fmt: skip
    """See `kernels.memory.ranking`."""
    inner, kept = fill(memory, ranking.num_rows, event, np.zeros((0, ranking.num_rows), np.float32))
    with_rules(inner, rules)
    run(_call(inner, ranking, table_VD, unit_width), ranking.num_rows, "memory_rank_begin")
    del kept


def memory_rank_rows(
    memory: MemoryArrays, ranking: MemoryRanking, row_N: Int32, table_VD: Rows | None, unit_width: int
) -> None:
    """See `kernels.memory.ranking`."""
    inner = MemoryCall(**memory_fields(memory, ranking.num_rows))
    call = _call(inner, ranking, table_VD, unit_width, rows=pointer(row_N), num=len(row_N))
    run(call, ranking.num_rows, "memory_rank_rows")


def memory_rank_next(
    memory: MemoryArrays, ranking: MemoryRanking, num: int, table_VD: Rows | None, unit_width: int
) -> None:
    """See `kernels.memory.ranking`."""
    inner = MemoryCall(**memory_fields(memory, ranking.num_rows))
    run(_call(inner, ranking, table_VD, unit_width, num=num), ranking.num_rows, "memory_rank_next")


def memory_rank_end(memory: MemoryArrays, ranking: MemoryRanking, rules: MemoryRules) -> tuple[int, int, int, float]:
    """See `kernels.memory.ranking`."""
    inner, rank_3, loss = MemoryCall(**memory_fields(memory, ranking.num_rows)), np.zeros(3, np.int32), c_float()
    with_rules(inner, rules)
    call = _call(inner, ranking, ranks=pointer(rank_3), loss=ctypes.addressof(loss))
    run(call, ranking.num_rows, "memory_rank_end")
    rank, model_rank, count_rank = rank_3.tolist()
    return rank, model_rank, count_rank, loss.value
