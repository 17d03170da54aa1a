"""The best items for several users at once: the network's logits and the memory's evidence in one exact pass.

On a CPU that pass is one kernel, which scores the table tile by tile and keeps only the best rows
(`kernels.memory.memory_best`), or scores only the rows that `serving.search.index` proposes. If the tables are on a
GPU, the logits of all rows are computed there, and the memory, which is always on the host, turns them into scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.memory import MemoryAnswers, MemoryCandidates, MemoryEvents
from model.memory_events import events_of
from model.tokens import ITEMS
from serving.search.index import ItemSearch
from serving.versions.manager import HeldVersion

Int64 = NDArray[np.int64]
OUT = np.float32(-1e30)
"""The score of a row that does not compete."""


Best = tuple[Int64, NDArray[np.float32]]
"""Rows of the table and their scores, best first."""


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What to find for one user: ``k`` items. ``past_rows`` (n,), ``bits_n`` and ``time_ms_n``: rows, kinds and times
    of the user's interactions, which are not recommended if ``leaves_out_past``; neither are ``denied_rows``.
    ``allowed_rows``: the only rows to recommend (None: all)."""

    k: int
    past_rows: Int64
    bits_n: NDArray[np.uint32]
    time_ms_n: Int64
    now_ms: int
    leaves_out_past: bool
    denied_rows: Int64
    allowed_rows: Int64 | None


def best_items(
    version: HeldVersion, output_RM: Tensor, wanted: Sequence[Wanted], search: ItemSearch | None = None
) -> list[Best]:
    """For each user the best items, best first; ``output_RM``: the network's outputs at the last token. With ``search``
    those who may be answered with any item are answered from among its candidates, unless that leaves fewer than
    ``k``."""
    query_RD = version.network.model.retrieval_query(output_RM)
    if version.standing is None:
        return _by_scores(version, query_RD, _events(version, wanted), wanted)
    found = {} if search is None else _searched(version, query_RD, wanted, search)
    rest = [r for r in range(len(wanted)) if r not in found]
    exact = _best(version, query_RD[rest], [wanted[r] for r in rest]) if rest else []
    found.update(zip(rest, exact, strict=True))
    return [found[r] for r in range(len(wanted))]


def _best(
    version: HeldVersion, query_RD: Tensor, wanted: Sequence[Wanted], candidates: MemoryCandidates | None = None
) -> list[Best]:
    """The best of the whole table, or among candidates."""
    assert version.standing is not None
    table = version.tables[ITEMS].derived
    answers = MemoryAnswers.of(
        [each.k for each in wanted], [each.denied_rows for each in wanted], [each.allowed_rows for each in wanted]
    )
    row_RK, score_RK = version.memory.best(
        version.standing, _events(version, wanted), query_RD.numpy(), table.numpy(), answers, candidates
    )
    nums = (row_RK >= 0).sum(axis=1).tolist()
    return [(row_RK[r, :num].astype(np.int64), score_RK[r, :num]) for r, num in enumerate(nums)]


def _searched(version: HeldVersion, query_RD: Tensor, wanted: Sequence[Wanted], search: ItemSearch) -> dict[int, Best]:
    """The answers from among the search's candidates that are long enough, by request."""
    free = [r for r, each in enumerate(wanted) if each.allowed_rows is None and each.k > 0]
    query_FD = query_RD[free]
    candidates = search.candidates(version, query_FD) if free else None
    if candidates is None:
        return {}
    best = _best(version, query_FD, [wanted[r] for r in free], candidates)
    found = {r: each for r, each in zip(free, best, strict=True) if len(each[0]) >= wanted[r].k}
    search.num_answers += len(found)
    if found:
        r = next(iter(found))
        search.ask((version.which, partial(_count_hits, query_RD[r : r + 1].clone(), wanted[r], found[r][0])))
    return found


def _count_hits(query_1D: Tensor, wanted: Wanted, rows: Int64, version: HeldVersion) -> tuple[int, int]:
    """How many of the exact answer's items were found, and how many it has."""
    exact, _ = _best(version, query_1D, [wanted])[0]
    return int(np.isin(exact, rows).sum()), len(exact)


def _events(version: HeldVersion, wanted: Sequence[Wanted]) -> MemoryEvents:
    """The memory's events: what follows each history."""
    starts_B1 = np.cumsum([0, *(len(each.past_rows) for each in wanted)], dtype=np.int64)
    events = events_of(
        np.concatenate([each.past_rows for each in wanted]), np.concatenate([each.bits_n for each in wanted]),
        np.concatenate([each.time_ms_n for each in wanted]),
        starts_B1, np.arange(len(wanted)), starts_B1[1:], np.array([each.now_ms for each in wanted], np.int64),
        version.network.config, is_chosen_R=None,
    )  # fmt: skip
    leaves_out = np.array([each.leaves_out_past for each in wanted])
    return replace(events, met_end_R=np.where(leaves_out, events.met_end_R, events.met_begin_R))


def _by_scores(version: HeldVersion, query_RD: Tensor, events: MemoryEvents, wanted: Sequence[Wanted]) -> list[Best]:
    score_RV = torch.matmul(query_RD, version.tables[ITEMS].derived.T).cpu().numpy()
    version.memory.score(events, score_RV)
    found = []
    for each, score_V in zip(wanted, score_RV, strict=True):
        score_V[each.denied_rows] = OUT
        if each.leaves_out_past:
            score_V[each.past_rows] = OUT
        rows = best_rows(score_V, each.k, each.allowed_rows)
        found.append((rows, score_V[rows]))
    return found


def best_rows(score_V: NDArray[np.float32], k: int, allowed: Int64 | None) -> Int64:
    """The ``k`` best competing rows among those allowed (None: all); best first, equal scores by row."""
    rows = np.flatnonzero(score_V > OUT / 2)
    rows = rows if allowed is None else np.intersect1d(rows, allowed)
    k = min(k, len(rows))
    if k == 0:
        return rows[:0]
    least = np.partition(score_V[rows], len(rows) - k)[len(rows) - k]
    rows = rows[score_V[rows] >= least]
    return np.asarray(rows[np.lexsort((rows, -score_V[rows]))][:k])
