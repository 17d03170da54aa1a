"""The rank of one choice among all rows, without a long pause: scored in slices while later events are learned.

`memory_rank_begin` keeps what the scores depend on at the moment of the prediction: the gains, the evidence, the clock,
the query. What is left are the rows themselves. A slice of them is scored after each of the next events
(`memory_rank_next`), and each row before it changes (`memory_rank_rows`), so `memory_rank_end` finds the ranks that
`memory_learn` would have found at once. Which rows were scored early makes no difference, to the bit.

The choice is learned by `memory_learn_sampled`. At the end it teaches, in addition, what only a comparison with all
rows can: the gain of ``lift``, and the shortlist's network on the best of all rows.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from kernels.memory import ranking_reference
from kernels.memory.arrays import Float32, Int64, MemoryArrays
from kernels.memory.check import check_events, check_table
from kernels.memory.events import MemoryEvents, MemoryRules, Ranks
from kernels.memory.ranking_state import MemoryRanking
from kernels.row_types import Rows


def memory_rank_begin(
    memory: MemoryArrays,
    num_rows: int,
    event: MemoryEvents,
    query_D: Float32,
    table_VD: Rows | None,
    unit_width: int,
    rules: MemoryRules,
    *,
    logit_V: Float32 | None = None,
    backend: str = "auto",
) -> MemoryRanking:
    """Predict the choice of ``event``, the only one, of a row that was met before. Changes nothing.

    ``query_D``, ``table_VD`` and ``unit_width``: as in `memory_learn_sampled`; ``logit_V`` (V,): instead of the table,
    where that is elsewhere. Raises ValueError, IndexError, MemoryError, `KernelUnavailable`.
    """
    check_events(memory, num_rows, event, None)
    if len(event) != 1 or event.target_R[0] == 0 or memory.first[event.target_R[0]] < 0:
        raise ValueError("event: expected one, of a row that was met before")
    if table_VD is not None:
        check_table(query_D[None], table_VD, num_rows, unit_width)
    elif logit_V is None or logit_V.shape != (num_rows,):
        got = None if logit_V is None else logit_V.shape
        raise ValueError(f"logit_V: expected ({num_rows},) without a table, got {got}")
    ranking = MemoryRanking.empty(memory, num_rows, query_D, np.zeros(0, np.float32) if logit_V is None else logit_V)
    _version(backend).memory_rank_begin(memory, ranking, event, table_VD, unit_width, rules)
    return ranking


def memory_rank_rows(
    memory: MemoryArrays, ranking: MemoryRanking, row_N: Int64, table_VD: Rows | None, unit_width: int, *,
    backend: str = "auto",
) -> None:  # fmt: skip
    """Score these rows, which are about to change in ``memory`` or in the table."""
    _version(backend).memory_rank_rows(memory, ranking, np.ascontiguousarray(row_N, np.int32), table_VD, unit_width)


def memory_rank_next(
    memory: MemoryArrays, ranking: MemoryRanking, num: int, table_VD: Rows | None, unit_width: int, *,
    backend: str = "auto",
) -> None:  # fmt: skip
    """Score the next ``num`` rows, and up to 63 more: how rows are sliced makes no difference to the bit either."""
    _version(backend).memory_rank_next(memory, ranking, num, table_VD, unit_width)


def memory_rank_end(
    memory: MemoryArrays, ranking: MemoryRanking, rules: MemoryRules, *, backend: str = "auto"
) -> Ranks:
    """The ranks, once all rows are scored; teaches ``memory`` what only they teach."""
    if ranking.num_left:
        raise ValueError(
            f"ranking: expected all rows to be scored, {ranking.num_left} are left; memory_rank_next first"
        )
    return Ranks(*_version(backend).memory_rank_end(memory, ranking, rules))


def _version(backend: str) -> ModuleType:
    if backend == "reference":
        return ranking_reference
    from kernels.memory import ranking_cpp

    return ranking_cpp
