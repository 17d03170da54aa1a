"""The memory: which items follow which, counted event by event, and mixed with the network's logits into one score.

Counting learns from one sighting what gradients learn from hundreds; gradients generalise where there are no counts. A
score is a weighted sum of features: decayed counts of what followed the items that the user chose before (with several
windows and normalisations, and learned weights of the same neighbours, after Ning & Karypis, "SLIM", ICDM 2011), the
item's recent popularity, the user's own repeats, and the network's logit. The weights ("gains") are learned online,
event by event, on the softmax over all items (Adagrad; Duchi et al., JMLR 2011); there is a shared set and one for each
length of the user's history. A feature whose gain is zero does no harm. The best rows of that sum, the shortlist, are
rescored by a small network that sees the same features together.

Scoring all rows for every event is too much for a large catalogue. There an event can be learned from a sample: rows
with evidence and those chosen lately compete for certain, and a few drawn from the rest stand for all of it.

The arrays are NumPy arrays: here the memory is on the host, wherever the network runs. `kernels.memory.device` has it
on a GPU, where events are predicted in groups.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from kernels.dispatch import load
from kernels.memory import reference, sampled
from kernels.memory.arrays import CHANGED, EVIDENCE, FEATURES, STANDING, Float32, Int32, Int64, MemoryArrays
from kernels.memory.check import check_candidates, check_events, check_jagged, check_table
from kernels.memory.events import (
    MemoryAnswers,
    MemoryCandidates,
    MemoryEvents,
    MemoryOutcome,
    MemoryRules,
    MemoryStanding,
)
from kernels.memory.past import MemoryPast
from kernels.memory.shares import MemoryShares, memory_shares
from kernels.row_types import Rows

__all__ = [
    "CHANGED",
    "EVIDENCE",
    "FEATURES",
    "STANDING",
    "MemoryAnswers",
    "MemoryArrays",
    "MemoryCandidates",
    "MemoryEvents",
    "MemoryOutcome",
    "MemoryPast",
    "MemoryRules",
    "MemoryShares",
    "MemoryStanding",
    "memory_best",
    "memory_candidates",
    "memory_forget",
    "memory_learn",
    "memory_learn_given",
    "memory_learn_sampled",
    "memory_logits",
    "memory_logits_of",
    "memory_scores",
    "memory_shares",
    "memory_stand",
]
EXCLUDE = ("never", "always", "auto")


def memory_learn(
    memory: MemoryArrays,
    num_rows: int,
    events: MemoryEvents,
    logit_AV: Float32,
    rules: MemoryRules,
    *,
    backend: str = "auto",
) -> MemoryOutcome:
    """Predict, learn and count each event, in order; changes ``memory``.

    ``num_rows``: rows in use, of which the first belongs to no item. ``logit_AV`` (A, at least ``num_rows``) float32:
    the network's logits, a row for each event to predict (1 in ``events.chosen_R``). Raises ValueError (shapes,
    dtypes), IndexError (a row outside), `KernelUnavailable`.
    """
    check_events(memory, num_rows, events, logit_AV, int((events.chosen_R == 1).sum()))
    if rules.exclude not in EXCLUDE:
        raise ValueError(f"exclude: expected one of {EXCLUDE}, got {rules.exclude!r}")
    outcome: MemoryOutcome = _version(backend).memory_learn(memory, num_rows, events, logit_AV, rules)
    return outcome


def memory_learn_sampled(
    memory: MemoryArrays,
    num_rows: int,
    events: MemoryEvents,
    query_AD: Float32,
    table_VD: Rows,
    unit_width: int,
    rules: MemoryRules,
    *,
    backend: str = "auto",
) -> MemoryOutcome:
    """Learn and count each event, in order, at a cost that does not depend on the number of rows; changes ``memory``.

    Where `memory_learn` compares an event's row with all others, this one compares it with those that have evidence or
    were chosen in the last `RECENT` events, and with `DRAWN` others, drawn with replacement and weighted by how many
    they stand for: the sum over all rows is estimated without bias. Only the certain ones are rescored. Draws depend
    on the event's number alone. Ranks are -1; losses are estimates.

    ``query_AD`` (A, D) float32 and ``table_VD`` (at least ``num_rows``, D) of a type in `kernels.row_types`: their
    products are the network's logits once the first ``unit_width`` columns of each row are divided by their norm.
    Errors as in `memory_learn`.
    """
    check_events(memory, num_rows, events, None)
    check_table(query_AD, table_VD, num_rows, unit_width)
    if len(query_AD) != (num := int((events.chosen_R == 1).sum())):
        raise ValueError(f"query_AD: expected {num} rows, one for each event to predict, got {len(query_AD)}")
    if rules.exclude not in EXCLUDE:
        raise ValueError(f"exclude: expected one of {EXCLUDE}, got {rules.exclude!r}")
    if num_rows < 2:
        raise ValueError(f"num_rows: expected at least 2 to draw from, got {num_rows}")
    version = sampled if _version(backend) is reference else _version(backend)
    outcome: MemoryOutcome = version.memory_learn_sampled(
        memory, num_rows, events, query_AD, table_VD, unit_width, rules
    )
    return outcome


def memory_candidates(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, *, backend: str = "auto"
) -> tuple[Int32, Int64]:
    """The rows whose logits `memory_learn_sampled` may read, for each of the A events to predict.

    (n,) int32 and (A + 1,) int64: event a's are at ``begin_A1[a]:begin_A1[a + 1]``, each once, in any order. Those that
    earlier events of the same call make neighbours of its past are among them. Errors as there.
    """
    check_events(memory, num_rows, events, None)
    if num_rows < 2:
        raise ValueError(f"num_rows: expected at least 2 to draw from, got {num_rows}")
    version = sampled if _version(backend) is reference else _version(backend)
    rows: tuple[Int32, Int64] = version.memory_candidates(memory, num_rows, events)
    return rows


def memory_logits_of(
    query_AD: Float32, table_VD: Rows, row: Int32, begin_A1: Int64, unit_width: int, *, backend: str = "auto"
) -> Float32:
    """(n,) float32: the network's logits of some rows for each query, as `memory_learn_sampled` computes them.

    ``row`` (n,) int32 and ``begin_A1``: as from `memory_candidates`, but rows of ``table_VD``. Raises ValueError,
    IndexError.
    """
    check_table(query_AD, table_VD, 0, unit_width)
    check_jagged(len(query_AD), len(table_VD), row, begin_A1)
    version = sampled if _version(backend) is reference else _version(backend)
    logits: Float32 = version.memory_logits_of(query_AD, table_VD, row, begin_A1, unit_width)
    return logits


def memory_learn_given(
    memory: MemoryArrays,
    num_rows: int,
    events: MemoryEvents,
    row: Int32,
    begin_A1: Int64,
    logit: Float32,
    rules: MemoryRules,
    *,
    backend: str = "auto",
) -> MemoryOutcome:
    """`memory_learn_sampled` where the table is elsewhere: with the logits (n,) of the rows of `memory_candidates`."""
    check_events(memory, num_rows, events, None)
    check_jagged(int((events.chosen_R == 1).sum()), num_rows, row, begin_A1)
    if logit.shape != row.shape or logit.dtype != np.float32:
        raise ValueError(f"logit: expected float32 of shape {row.shape}, got {logit.dtype} {logit.shape}")
    version = sampled if _version(backend) is reference else _version(backend)
    outcome: MemoryOutcome = version.memory_learn_given(memory, num_rows, events, row, begin_A1, logit, rules)
    return outcome


def memory_logits(
    query_AD: Float32, table_VD: Rows, num_rows: int, unit_width: int, *, backend: str = "auto"
) -> Float32:
    """(A, ``num_rows``) float32: the network's logits of a few queries, as `memory_learn_sampled` defines them."""
    check_table(query_AD, table_VD, num_rows, unit_width)
    version = sampled if _version(backend) is reference else _version(backend)
    logits: Float32 = version.memory_logits(query_AD, table_VD, num_rows, unit_width)
    return logits


def memory_scores(
    memory: MemoryArrays, num_rows: int, events: MemoryEvents, logit_AV: Float32, *, backend: str = "auto"
) -> None:
    """Turn the network's logits into scores in place, a row for each event; rows never met score below -1e29.

    Of ``events`` only the past is used, and what was met, whose rows score as low. Changes nothing else. Errors as in
    `memory_learn`.
    """
    check_events(memory, num_rows, events, logit_AV, len(events))
    _version(backend).memory_scores(memory, num_rows, events, logit_AV)


def memory_forget(memory: MemoryArrays, num_rows: int, gone_V: NDArray[np.bool_], *, backend: str = "auto") -> None:
    """Take rows out of the lists of neighbours of the first ``num_rows``; the others keep their order.

    ``gone_V`` (V,): which. Each row that loses a neighbour is marked as changed, with all its neighbours.
    """
    if gone_V.shape != (memory.capacity,) or gone_V.dtype != np.bool_:
        raise ValueError(f"gone_V: expected bool of shape ({memory.capacity},), got {gone_V.dtype} {gone_V.shape}")
    if not 0 <= num_rows <= memory.capacity:
        raise ValueError(f"num_rows: expected 0 to the memory's {memory.capacity}, got {num_rows}")
    _version(backend).memory_forget(memory, num_rows, gone_V)


def memory_stand(memory: MemoryArrays, num_rows: int, *, backend: str = "auto") -> MemoryStanding:
    """What `memory_best` needs of a memory that no longer changes: computed once, for any number of queries."""
    if not 1 <= num_rows <= memory.capacity:
        raise ValueError(f"num_rows: expected 1 to the memory's {memory.capacity}, got {num_rows}; grow it first")
    standing: MemoryStanding = _version(backend).memory_stand(memory, num_rows)
    return standing


def memory_best(
    memory: MemoryArrays,
    standing: MemoryStanding,
    events: MemoryEvents,
    query_RD: Float32,
    table_VD: Float32,
    answers: MemoryAnswers,
    candidates: MemoryCandidates | None = None,
    *,
    backend: str = "auto",
) -> tuple[Int32, Float32]:
    """The rows that `memory_scores` would score best, in one pass over the table that does not store all scores.
    With ``candidates`` only those, and rows with evidence, are looked at and compete; no query may then be limited.

    The products of ``query_RD`` and ``table_VD`` (at least a row for each of the memory's) are the network's logits.
    Returns (R, K) rows, best first, equal scores by row, -1 after the last; and their scores. K: the largest of
    ``answers.k_R``. Rows never met are left out. Errors as in `memory_learn`.
    """
    num, num_rows = len(events), len(standing.root_V)
    check_events(memory, num_rows, events, None)
    for name, matrix, least in (("query_RD", query_RD, num), ("table_VD", table_VD, num_rows)):
        if matrix.dtype != np.float32 or matrix.ndim != 2 or len(matrix) < least or not matrix.flags.c_contiguous:
            raise ValueError(f"{name}: expected contiguous float32 of {least} rows or more, got {matrix.dtype} "
                             f"{matrix.shape}")  # fmt: skip
    if query_RD.shape != (num, table_VD.shape[1]):
        raise ValueError(f"query_RD: expected ({num}, {table_VD.shape[1]}), got {query_RD.shape}")
    if answers.k_R.shape != (num,) or answers.limited_R.shape != (num,):
        raise ValueError(f"k_R, limited_R: expected ({num},), got {answers.k_R.shape}, {answers.limited_R.shape}")
    for name, rows in (("out_rows", answers.out_rows), ("allowed_rows", answers.allowed_rows)):
        if len(rows) and not (rows.min() >= 0 and rows.max() < num_rows):
            raise IndexError(f"{name}: expected rows 0 to {num_rows - 1}, got {rows.min()} to {rows.max()}")
    if candidates is not None:
        check_candidates(candidates, num, num_rows, answers)
    best: tuple[Int32, Float32] = _version(backend).memory_best(
        memory, standing, events, query_RD, table_VD, answers, candidates
    )
    return best


def _version(backend: str) -> ModuleType:
    if backend == "reference":
        return reference
    if backend not in ("auto", "cpp"):
        raise ValueError(f"backend: expected auto, cpp or reference, got {backend!r}; the memory is on the host")
    return load("memory", "cpp")
