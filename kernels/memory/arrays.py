"""The memory's arrays, which grow with the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

STANDING = ("log_seen", "heat_short", "heat_middle", "heat_long", "age", "idle", "rarity", "hourly")
"""Features of an item that are the same for all users; the last one is how much more often than usual it is chosen at
this time of day (`kernels.memory.hours`)."""
OWN = ("own_count", "own_recency", "own_visit", "own_since", "shown_count", "shown_recency", "own_next", "own_hour")
"""Features of the few items that the user has chosen, or was shown and left alone."""
EVIDENCE = ("follows", "chain", "wide", "after", "before", "learned", "direct", "threads", *OWN)
"""Features of an item given the user's history."""
PAIRED = ("pair", "skip")
"""Features of the few items that followed the user's last two choices, or the last but one, before
(`kernels.memory.pairs`)."""
FEATURES = (*STANDING, *EVIDENCE, "model", "lift", *PAIRED)
"""The features of which a score is the weighted sum; the last two are the network's logit, and how much likelier than
usual the item's groups are (`kernels.memory.groups`)."""
SEEN_AGAIN = (*FEATURES, "lead", "is_own", "length", "pause")
"""The shortlist network's inputs for each row: the features, how far its score is below the best, whether the user
chose it before, the length of the user's history, and the time since the user's last choice."""
SILENT = ("hourly", "own_next", "own_hour", "lift", *PAIRED)
"""Inputs of the shortlist's network whose hidden weights start at zero: a stream in which they are always zero is
learned as without them."""
LISTED, HIDDEN = 64, 16
"""How many rows the shortlist has, and the width of its network's hidden layer."""
NUM_HEATS = 3
NUM_HOURS = 6
"""In how many parts of the day choices are counted."""
RECENT, DRAWN = 512, 512
"""When an event is learned from a sample: how many of the latest choices compete, and how many rows are drawn."""
NEXT_GROUPS = 16
"""How many groups are counted that follow a group."""
NEXT_OF_PAIR = 8
"""How many rows are counted that follow two others."""
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
    "newest_ms",
)

FIRST_GAINS = {"follows": 0.3, "chain": 0.3, "wide": 0.3, "learned": 1.0, "heat_middle": 0.2, "model": 0.5, "lift": 0.5}
"""Initial gains: roughly what they become on any stream, so that the first predictions are sensible."""

FIRST_GAIN_SQUARE, FIRST_SQUARE = 1e-3, 1e-2
"""Initial Adagrad states: of the gains, and of the shortlist's network."""
SLOW_GAIN_SQUARE, SLOW_SQUARE = 1e3, 1e2
"""The same where the feature is one of `PAIRED`: those are learned slowly, or where they say nothing their noise would
cost hits."""

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
    ``clock`` float64 by `CLOCK`. ``dirty`` (V,) uint8: `CHANGED` in rows that changed, of which each reader clears a
    bit of its own; ``moved`` (V, N/8 rounded up) uint8: those of their neighbours that are new or whose counts
    changed (little-endian bits), regardless of their ``weight``. ``recent`` (`RECENT`,) int32: the row that event e
    chose, at e modulo `RECENT`.

    Items may belong to groups, such as a category and a brand: ``group`` (V, C) int32, one in each column, 0 for none.
    ``group_key`` (C, G) int64: what each group is, for the caller; ``group_seen`` (C, G): decayed choices of each
    group; ``group_next`` (C, G, `NEXT_GROUPS`) int32 and ``group_count`` (same): the groups that followed it, and
    decayed counts of how often; ``group_total`` (C,): choices of any group. ``group_share`` (C, 3): how often each part
    of a column's prediction was right (`kernels.memory.groups`).

    What follows two choices is counted in S slots, a power of two (`kernels.memory.pairs`): ``pair_row`` (S, 2) int32,
    the pair that a slot has, 0 for none, and as the second for any; ``pair_next`` (S, `NEXT_OF_PAIR`) int32 and
    ``pair_count`` (same): the rows that followed it, and decayed counts of how often; ``pair_dirty`` (S,) and
    ``pair_moved`` (S,) uint8: as for rows.

    ``hour`` (V, `NUM_HOURS` or 0) float32: decayed choices by the time of day, if these are counted.

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
    pair_row: Int32
    pair_next: Int32
    pair_count: Float32
    pair_dirty: NDArray[np.uint8]
    pair_moved: NDArray[np.uint8]
    hour: Float32

    @staticmethod
    def empty(
        capacity: int,
        num_neighbours: int,
        num_buckets: int,
        num_columns: int = 0,
        num_groups: int = 1,
        num_pairs: int = 0,
        num_hours: int = 0,
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
            gain_square=np.tile(first_gain_squares(), (len(gain), 1)),
            shortlist_weight=first_weights(),
            shortlist_square=first_squares(),
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
            pair_row=np.zeros((num_pairs, 2), np.int32),
            pair_next=np.zeros((num_pairs, NEXT_OF_PAIR), np.int32),
            pair_count=np.zeros((num_pairs, NEXT_OF_PAIR), np.float32),
            pair_dirty=np.zeros(num_pairs, np.uint8),
            pair_moved=np.zeros(num_pairs, np.uint8),
            hour=rows(np.float32, num_hours),
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
    def num_pairs(self) -> int:
        """S, how many pairs of rows have room; 0 if none are counted."""
        return len(self.pair_row)

    @property
    def num_hours(self) -> int:
        """`NUM_HOURS`, or 0 if times of day are not counted."""
        return int(self.hour.shape[1])

    @property
    def num_buckets(self) -> int:
        """How many lengths of history have gains of their own."""
        return len(self.gain) - 1

    @property
    def leaves_out_repeats(self) -> bool:
        """Whether hardly any choice so far was of an item that the user had met before."""
        return has_few_repeats(self.clock)

    @property
    def across_visits(self) -> float:
        """The weight of the first choice after a pause as the very next one: 1 where nearly all choices are such, or
        else the few within visits would outweigh them; but little where visits are long, since they begin anew."""
        begun, continued = self.clock[4 + NUM_HEATS : 6 + NUM_HEATS]
        share = float((begun + 0.5 * PRIOR_VISITS) / (begun + continued + PRIOR_VISITS))
        return LEAST_ACROSS + (1.0 - LEAST_ACROSS) * share**4

    def copy(self) -> MemoryArrays:
        """A copy that shares nothing."""
        return MemoryArrays(*(getattr(self, each.name).copy() for each in fields(self)))


def has_few_repeats(clock: Float64) -> bool:
    """Whether hardly any choice so far was of an item that the user had met before."""
    repeats, choices = clock[2 + NUM_HEATS : 4 + NUM_HEATS]
    return bool(repeats < FEW_REPEATS * (choices + PRIOR_CHOICES))


def first_gain_squares() -> Float32:
    """(features,) the initial Adagrad state of the gains."""
    return np.where(np.isin(FEATURES, PAIRED), SLOW_GAIN_SQUARE, FIRST_GAIN_SQUARE).astype(np.float32)


def first_squares() -> Float32:
    """(P,) the initial Adagrad state of `first_weights`."""
    square_F = np.where(np.isin(SEEN_AGAIN, PAIRED), SLOW_SQUARE, FIRST_SQUARE)
    return np.concatenate([np.tile(square_F, 1 + HIDDEN), np.full(2 * HIDDEN, FIRST_SQUARE)]).astype(np.float32)


def first_weights() -> Float32:
    """(P,) concatenated: the linear part (F,), hidden weights (H, F), hidden biases (H,), output weights (H,).

    The linear part and the output weights start at zero, so at first the network changes no score; so do the hidden
    weights of the `SILENT` inputs.
    """
    num, rng = len(SEEN_AGAIN), np.random.Generator(np.random.Philox(key=1))
    drawn = [at for at, name in enumerate(SEEN_AGAIN) if name not in SILENT]
    hidden = np.zeros((HIDDEN, num))
    hidden[:, drawn] = rng.standard_normal((HIDDEN, len(drawn))) / np.sqrt(len(drawn))
    parts = (np.zeros(num), hidden.ravel(), rng.uniform(-1.0, 1.0, HIDDEN), np.zeros(HIDDEN))
    return np.concatenate(parts).astype(np.float32)
