"""What the memory's operations take and return beside its arrays: events, rules, outcomes, possible answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from kernels.memory.arrays import Float32, Int32, Int64


@dataclass(slots=True, eq=False)
class MemoryEvents:
    """R events in the order in which they happened, and what came before each.

    ``target_R`` (R,) int32: the row met, 0 for an item without one. ``chosen_R`` (R,) uint8: 1 for a choice, which is
    predicted, learned and counted; 2 for one that is only counted; 0 for an item that was only met. ``past_rows``
    int32: what users had chosen, oldest first; for event r it is ``past_rows[past_begin_R[r]:past_end_R[r]]``.
    ``met_rows``: likewise everything that they had met, which is left out if the stream has no repeats. ``shown_rows``:
    likewise what they had met without choosing it. Rows are above 0. ``past_ms`` (as many as ``past_rows``) and
    ``now_ms_R`` (R,) int64: when each was chosen, and when event r is.
    ``weight_R`` (R,) float32: how much a choice counts and teaches; None: 1 each. ``group_RC`` (R, C) int32: the groups
    of the item, 0 where they are not told; None: nowhere.
    """

    target_R: Int32
    chosen_R: NDArray[np.uint8]
    past_rows: Int32
    past_begin_R: Int64
    past_end_R: Int64
    met_rows: Int32
    met_begin_R: Int64
    met_end_R: Int64
    past_ms: Int64
    now_ms_R: Int64
    shown_rows: Int32
    shown_begin_R: Int64
    shown_end_R: Int64
    weight_R: Float32 | None = None
    group_RC: Int32 | None = None

    def __len__(self) -> int:
        return len(self.target_R)

    def __getitem__(self, part: slice) -> MemoryEvents:
        """Some of the events; the rows are shared."""
        shared = ("past_rows", "past_ms", "met_rows", "shown_rows")
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        return MemoryEvents(
            **{name: column if name in shared or column is None else column[part] for name, column in columns.items()}
        )

    @property
    def is_repeat_R(self) -> NDArray[np.bool_]:  # noqa: N802  (shape suffix)
        """(R,) whether the user had met the event's row before."""
        num_R = self.met_end_R - self.met_begin_R
        owner_M = np.repeat(np.arange(len(self)), num_R)
        place_M = np.arange(len(owner_M)) + (self.met_end_R - np.cumsum(num_R))[owner_M]
        same_M = self.met_rows[place_M] == self.target_R[owner_M]
        return np.bincount(owner_M[same_M], minlength=len(self)) > 0

    def weight(self, r: int) -> float:
        """Of event r."""
        return 1.0 if self.weight_R is None else float(self.weight_R[r])


@dataclass(frozen=True, slots=True, eq=False)
class MemoryStanding:
    """The part of the scores that is the same for all users while the memory does not change: ``base_VB`` (V, buckets)
    float32, the standing features weighted by the gains of each length of history (below -1e29 for a row never met),
    and ``root_V`` (V,) float32, one over the square root of ``seen``."""

    base_VB: Float32
    root_V: Float32


@dataclass(frozen=True, slots=True, eq=False)
class MemoryAnswers:
    """What may be answered to each of R queries: ``k_R`` (R,) int64, the most answers; ``out_rows`` int32, rows that
    are left out: for query r ``out_rows[out_begin_R1[r]:out_begin_R1[r + 1]]``; ``limited_R`` (R,) uint8: 1 if only the
    rows of ``allowed_rows`` (laid out likewise, none twice) may be answered."""

    k_R: Int64
    out_rows: Int32
    out_begin_R1: Int64
    allowed_rows: Int32
    allowed_begin_R1: Int64
    limited_R: NDArray[np.uint8]

    @staticmethod
    def of(ks: Sequence[int], out: Sequence[Int64], allowed: Sequence[Int64 | None]) -> MemoryAnswers:
        """From a list of rows for each query; ``allowed``: None for all rows."""
        none = np.zeros(0, np.int64)
        limits = [none if rows is None else _distinct(rows) for rows in allowed]
        return MemoryAnswers(
            np.array(ks, np.int64),
            *_jagged(out),
            *_jagged(limits),
            np.array([a is not None for a in allowed], np.uint8),
        )


@dataclass(frozen=True, slots=True, eq=False)
class MemoryCandidates:
    """Among which rows the best are looked for, beside those with evidence: ``shared_rows`` (n,) int32, those of every
    query, none twice; and the rows of the lists in ``probe_RP`` (R, P) int32, none twice for a query. List l has
    ``list_rows[list_begin_L1[l]:list_begin_L1[l + 1]]`` int32; no row is in two lists, and all are from 0 to below
    ``num_rows``, which would take too long to check for each query."""

    shared_rows: Int32
    list_rows: Int32
    list_begin_L1: Int64
    num_rows: int
    probe_RP: Int32

    def of(self, r: int) -> Int32:
        """The rows of query r, those with evidence aside."""
        lists = [self.list_rows[slice(*self.list_begin_L1[at : at + 2])] for at in self.probe_RP[r]]
        return np.concatenate([self.shared_rows, *lists])


def _distinct(rows: Int64) -> Int64:
    """Each row above 0 once, ascending; on long lists much faster than np.unique."""
    ordered = np.sort(rows)
    return ordered[np.diff(ordered, prepend=0) > 0]


def _jagged(lists: Sequence[Int64]) -> tuple[Int32, Int64]:
    ends = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return np.concatenate([np.zeros(0, np.int64), *lists]).astype(np.int32), ends


@dataclass(frozen=True, slots=True)
class MemoryRules:
    """How fast the memory learns and forgets. Half-lives in events.

    ``exclude``: whether items that a user has met are left out: "never", "always", or "auto": if at most 2% of the
    choices are repeats.
    """

    seen_half_life: float = 1_000_000.0
    heat_half_lives: tuple[float, float, float] = (100.0, 3_000.0, 30_000.0)
    repeat_half_life: float = 10_000.0
    gain_rate: float = 0.1
    gain_decay: float = 0.9999
    weight_rate: float = 0.05
    shortlist_rate: float = 0.05
    shortlist_decay: float = 0.9998
    exclude: str = "auto"


@dataclass(frozen=True, slots=True)
class Ranks:
    """`MemoryOutcome` of one choice."""

    rank: int
    model_rank: int
    count_rank: int
    loss: float


@dataclass(slots=True, eq=False)
class MemoryOutcome:
    """The outcomes of R events. Ranks (R,) int32, 1 is best, 0 for a miss (a choice that was not known), -1 for an
    event that was not predicted: by the whole score, by the network alone, and by counts alone (``follows``).
    ``loss_R``: cross entropy over what competed, NaN if nothing was predicted."""

    rank_R: Int32
    model_rank_R: Int32
    count_rank_R: Int32
    loss_R: Float32

    def missed(self, is_missed_R: NDArray[np.bool_]) -> MemoryOutcome:
        """The same, with some of the choices that were ranked among the misses, by whatever they were ranked."""
        rank_R, model_rank_R, count_rank_R = (
            np.where(is_missed_R, np.minimum(each, 0), each)
            for each in (self.rank_R, self.model_rank_R, self.count_rank_R)
        )
        return MemoryOutcome(rank_R, model_rank_R, count_rank_R, self.loss_R)

    @staticmethod
    def join(parts: Sequence[MemoryOutcome]) -> MemoryOutcome:
        """The outcomes of consecutive parts, joined."""
        if len(parts) == 1:
            return parts[0]
        columns = [[getattr(part, each.name) for part in parts] for each in fields(MemoryOutcome)]
        empty = (np.zeros(0, np.int32),) * 3 + (np.zeros(0, np.float32),)
        return MemoryOutcome(*(np.concatenate([none, *column]) for none, column in zip(empty, columns, strict=True)))

    def put(self, place: int, ranks: Ranks) -> None:
        """Replace one event's."""
        self.rank_R[place], self.model_rank_R[place] = ranks.rank, ranks.model_rank
        self.count_rank_R[place], self.loss_R[place] = ranks.count_rank, ranks.loss

    def ordered(self, index_R: Int64) -> MemoryOutcome:
        """The same outcomes in another order."""
        return MemoryOutcome(
            self.rank_R[index_R], self.model_rank_R[index_R], self.count_rank_R[index_R], self.loss_R[index_R]
        )
