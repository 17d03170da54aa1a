"""The memory's arrays, which grow with the catalogue, and the types that its operations take and return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

STANDING = ("log_seen", "heat_short", "heat_middle", "heat_long", "age", "idle", "rarity")
"""Features of an item that are the same for all users."""
OWN = ("own_count", "own_recency", "own_visit", "own_since", "shown_count", "shown_recency")
"""Features of the few items that the user has chosen, or was shown and left alone."""
EVIDENCE = ("follows", "chain", "wide", "after", "before", "learned", "direct", "threads", *OWN)
"""Features of an item given the user's history."""
FEATURES = (*STANDING, *EVIDENCE, "model", "lift")
"""The features of which a score is the weighted sum; the last two are the network's logit, and how much likelier than
usual the item's groups are (`kernels.memory.groups`)."""
SEEN_AGAIN = (*FEATURES, "lead", "is_own", "length", "pause")
"""The shortlist network's inputs for each row: the features, how far its score is below the best, whether the user
chose it before, the length of the user's history, and the time since the user's last choice."""
LISTED, HIDDEN = 64, 16
"""How many rows the shortlist has, and the width of its network's hidden layer."""
NUM_HEATS = 3
RECENT, DRAWN = 512, 512
"""When an event is learned from a sample: how many of the latest choices compete, and how many rows are drawn."""
NEXT_GROUPS = 16
"""How many groups are counted that follow a group."""
FIRST_SHARES = (10.0, 2.0, 2.0)
"""Initially, how often each part of the prediction of a group counts as having been right."""
CHANGED = 0xFF
"""Marks a row as changed: one bit for each reader that copies changed rows."""
CLOCK = (
    "events",
    "seen_scale",
    "heat_scale_0",
    "heat_scale_1",
    "heat_scale_2",
    "repeats",
    "choices",
    "begun",
    "continued",
)

FIRST_GAINS = {"follows": 0.3, "chain": 0.3, "wide": 0.3, "learned": 1.0, "heat_middle": 0.2, "model": 0.5, "lift": 0.5}
"""Initial gains: roughly what they become on any stream, so that the first predictions are sensible."""

FIRST_GAIN_SQUARE, FIRST_SQUARE = 1e-3, 1e-2
"""Initial Adagrad states: of the gains, and of the shortlist's network."""

LEAST_ACROSS, PRIOR_VISITS = 0.2, 20.0
"""The least weight of the first choice after a pause as the very next one; and the choices, half of them after a pause,
with which the share of such choices begins."""

FEW_REPEATS, PRIOR_CHOICES = 0.02, 20.0
"""A stream has repeats if at least this share of the choices are; the prior is this many choices without any."""


@dataclass(slots=True, eq=False)
class MemoryArrays:
    """``V`` rows (a capacity) of ``N`` neighbours each; row numbers are those of the item table, row 0 is unused.

    ``neighbour_row`` (V, N) int32 and ``num_neighbours`` (V,) int32: the rows chosen shortly before or after this one;
    ``after`` and ``before`` (V, N): decayed counts of how often each came after this one, and before; ``direct`` (V,
    N): of how often it was the very next choice; ``weight`` (V, N): learned weights. ``seen`` (V,): decayed choices.
    ``heat`` (3, V): the same with shorter half-lives. ``first`` and ``last`` (V,) int64: the events of the first and of
    the newest choice; without a choice, the first meeting and -1; both -1 for a row never met. ``gain`` and
    ``gain_square`` (1 + buckets, features): weights of the features, shared and by length of the history, and their
    Adagrad state. ``shortlist_weight`` and ``shortlist_square`` (P,): the shortlist's network (`first_weights`) and its
    Adagrad state; ``shortlist_norm`` (3, `SEEN_AGAIN`): mean and variance of its inputs, and how many lists they cover.
    ``clock`` (9,) float64 by `CLOCK`. ``dirty`` (V,) uint8: `CHANGED` in rows that changed, of which each reader clears
    a bit of its own; ``moved`` (V, N/8 rounded up) uint8: those of their neighbours that are new or whose counts
    changed (little-endian bits), regardless of their ``weight``. ``recent`` (`RECENT`,) int32: the row that event e
    chose, at e modulo `RECENT`.

    Items may belong to groups, such as a category and a brand: ``group`` (V, C) int32, one in each column, 0 for none.
    ``group_key`` (C, G) int64: what each group is, for the caller; ``group_seen`` (C, G): decayed choices of each
    group; ``group_next`` (C, G, `NEXT_GROUPS`) int32 and ``group_count`` (same): the groups that followed it, and
    decayed counts of how often; ``group_total`` (C,): choices of any group. ``group_share`` (C, 3): how often each part
    of a column's prediction was right (`kernels.memory.groups`).

    Counts are in a unit that grows with every event, which makes them decay: the scales in `CLOCK` are its value.
    """

    neighbour_row: Int32
    num_neighbours: Int32
    after: Float32
    before: Float32
    direct: Float32
    weight: Float32
    seen: Float32
    heat: Float32
    first: Int64
    last: Int64
    gain: Float32
    gain_square: Float32
    shortlist_weight: Float32
    shortlist_square: Float32
    shortlist_norm: Float32
    clock: Float64
    dirty: NDArray[np.uint8]
    moved: NDArray[np.uint8]
    recent: Int32
    group: Int32
    group_key: Int64
    group_seen: Float32
    group_next: Int32
    group_count: Float32
    group_total: Float32
    group_share: Float32

    @staticmethod
    def empty(
        capacity: int, num_neighbours: int, num_buckets: int, num_columns: int = 0, num_groups: int = 1
    ) -> MemoryArrays:
        """An empty memory."""

        def rows(kind: type, width: int | None = None) -> NDArray[Any]:
            return np.zeros(capacity if width is None else (capacity, width), kind)

        gain = np.zeros((1 + num_buckets, len(FEATURES)), np.float32)
        for name, value in FIRST_GAINS.items():
            gain[0, FEATURES.index(name)] = value
        clock = np.zeros(len(CLOCK), np.float64)
        clock[1 : 2 + NUM_HEATS] = 1.0
        return MemoryArrays(
            neighbour_row=rows(np.int32, num_neighbours),
            num_neighbours=rows(np.int32),
            after=rows(np.float32, num_neighbours),
            before=rows(np.float32, num_neighbours),
            direct=rows(np.float32, num_neighbours),
            weight=rows(np.float32, num_neighbours),
            seen=rows(np.float32),
            heat=np.zeros((NUM_HEATS, capacity), np.float32),
            first=np.full(capacity, -1, np.int64),
            last=np.full(capacity, -1, np.int64),
            gain=gain,
            gain_square=np.full_like(gain, FIRST_GAIN_SQUARE),
            shortlist_weight=first_weights(),
            shortlist_square=np.full_like(first_weights(), FIRST_SQUARE),
            shortlist_norm=np.repeat(np.array([0, 1, 0], np.float32)[:, None], len(SEEN_AGAIN), axis=1),
            clock=clock,
            dirty=rows(np.uint8),
            moved=rows(np.uint8, -(-num_neighbours // 8)),
            recent=np.zeros(RECENT, np.int32),
            group=rows(np.int32, num_columns),
            group_key=np.zeros((num_columns, num_groups), np.int64),
            group_seen=np.zeros((num_columns, num_groups), np.float32),
            group_next=np.zeros((num_columns, num_groups, NEXT_GROUPS), np.int32),
            group_count=np.zeros((num_columns, num_groups, NEXT_GROUPS), np.float32),
            group_total=np.zeros(num_columns, np.float32),
            group_share=np.tile(np.array(FIRST_SHARES, np.float32), (num_columns, 1)),
        )

    @property
    def capacity(self) -> int:
        """V."""
        return len(self.seen)

    @property
    def width(self) -> int:
        """N."""
        return int(self.neighbour_row.shape[1])

    @property
    def num_columns(self) -> int:
        """C."""
        return int(self.group.shape[1])

    @property
    def num_groups(self) -> int:
        """G, with the one that stands for none."""
        return int(self.group_seen.shape[1])

    @property
    def num_buckets(self) -> int:
        """How many lengths of history have gains of their own."""
        return len(self.gain) - 1

    @property
    def leaves_out_repeats(self) -> bool:
        """Whether hardly any choice so far was of an item that the user had met before."""
        repeats, choices = self.clock[2 + NUM_HEATS : 4 + NUM_HEATS]
        return bool(repeats < FEW_REPEATS * (choices + PRIOR_CHOICES))

    @property
    def across_visits(self) -> float:
        """The weight of the first choice after a pause as the very next one: 1 where nearly all choices are such, or
        else the few within visits would outweigh them; but little where visits are long, since they begin anew."""
        begun, continued = self.clock[4 + NUM_HEATS :]
        share = float((begun + 0.5 * PRIOR_VISITS) / (begun + continued + PRIOR_VISITS))
        return LEAST_ACROSS + (1.0 - LEAST_ACROSS) * share**4

    def copy(self) -> MemoryArrays:
        """A copy that shares nothing."""
        return MemoryArrays(*(getattr(self, each.name).copy() for each in fields(self)))


def first_weights() -> Float32:
    """(P,) concatenated: the linear part (F,), hidden weights (H, F), hidden biases (H,), output weights (H,).

    The linear part and the output weights start at zero, so at first the network changes no score. So do the hidden
    weights of `lift`, which is zero where items have no groups: such a stream is learned as without it.
    """
    num, rng = len(SEEN_AGAIN), np.random.Generator(np.random.Philox(key=1))
    hidden = np.insert(rng.standard_normal((HIDDEN, num - 1)), FEATURES.index("lift"), 0.0, axis=1) / np.sqrt(num - 1)
    parts = (np.zeros(num), hidden.ravel(), rng.uniform(-1.0, 1.0, HIDDEN), np.zeros(HIDDEN))
    return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
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


@dataclass(frozen=True, slots=True, eq=False)
class MemoryOutcome:
    """The outcomes of R events. Ranks (R,) int32, 1 is best, 0 for a choice that was not known, -1 for an event that
    was not predicted: by the whole score, by the network alone, and by counts alone (``follows``). ``loss_R``: cross
    entropy over what competed, NaN if nothing was predicted."""

    rank_R: Int32
    model_rank_R: Int32
    count_rank_R: Int32
    loss_R: Float32

    @staticmethod
    def join(parts: Sequence[MemoryOutcome]) -> MemoryOutcome:
        """The outcomes of consecutive parts, joined."""
        columns = [[getattr(part, each.name) for part in parts] for each in fields(MemoryOutcome)]
        empty = (np.zeros(0, np.int32),) * 3 + (np.zeros(0, np.float32),)
        return MemoryOutcome(*(np.concatenate([none, *column]) for none, column in zip(empty, columns, strict=True)))

    def ordered(self, index_R: Int64) -> MemoryOutcome:
        """The same outcomes in another order."""
        return MemoryOutcome(*(getattr(self, each.name)[index_R] for each in fields(self)))
