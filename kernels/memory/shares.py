"""The parts of a score: for a few rows, the contributions of the features and of each of the user's interactions.

A score is a sum of features times gains (`kernels.memory`), so the parts add up. Features that are logarithms of sums
over past choices (or showings) are divided among them in proportion to the summands. The shortlist's network is not a
sum; its part is the served score minus the total here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.memory.arrays import EVIDENCE, FEATURES, PAIRED, STANDING, Float32, Float64, Int32, Int64, MemoryArrays
from kernels.memory.features import (
    COSINE_SCALE,
    FOLLOWS_SCALE,
    SEEN,
    WINDOWS,
    gains_of,
    shares_of,
    standing_of,
    visit_share,
)
from kernels.memory.groups import lift_of
from kernels.memory.pairs import paired_of
from kernels.memory.past import MemoryPast

_LOG_SCALES = {"follows": FOLLOWS_SCALE, "wide": COSINE_SCALE, "after": COSINE_SCALE, "before": COSINE_SCALE,
               "direct": FOLLOWS_SCALE, "threads": FOLLOWS_SCALE, "own_count": 1.0, "shown_count": 1.0,
               "own_next": 1.0, "own_hour": 1.0}  # fmt: skip
"""Features that are log(1 + scale x sum)."""
SHOWN = ("shown_count", "shown_recency")


@dataclass(frozen=True, slots=True, eq=False)
class MemoryShares:
    """The parts of C rows' scores, for a user with P past choices who was also shown S rows.

    ``standing_C``: the part that is the same for all users (popularity, age). ``past_PC``: each past choice, oldest
    first; ``shown_SC``: each time that a row was only shown. ``group_C``: that its groups are likelier after this past
    than usual. ``model_C``: the network's logit. They add up to the score before the shortlist, ``total`` (C,).
    ``model_gain``: the contribution of one unit of logit. ``after_PC`` and ``before_PC``: decayed counts of how often
    users chose the row after that past choice, and before it.
    """

    standing_C: Float64
    past_PC: Float64
    shown_SC: Float64
    group_C: Float64
    model_C: Float64
    model_gain: float
    after_PC: Float64
    before_PC: Float64

    @property
    def total(self) -> Float64:
        """The sum of all parts."""
        of_history_C = self.past_PC.sum(axis=0) + self.shown_SC.sum(axis=0) + self.group_C
        return np.asarray(self.standing_C + of_history_C + self.model_C)


def memory_shares(
    memory: MemoryArrays, past: MemoryPast, row_C: Int64, logit_C: Float32 | NDArray[np.float64]
) -> MemoryShares:
    """``past``: the user's P choices; ``row_C``: the rows to explain, none twice."""
    past_P, matched_P = past.row_P, past.matched
    gain_F = gains_of(memory, len(past_P))
    num_standing, (gain_model, gain_lift) = len(STANDING), gain_F[[FEATURES.index(each) for each in ("model", "lift")]]
    pairs = [_pair(memory, int(row), row_C) for row in past_P[::-1].tolist()]  # the newest first: by lag
    shape = (len(past_P), len(row_C))
    raw = {name: np.zeros(shape) for name in EVIDENCE if name not in SHOWN}
    after_LC, before_LC = np.zeros(shape), np.zeros(shape)
    for lag, ((after_C, before_C, direct_C, weight_C), row) in enumerate(
        zip(pairs, past_P[::-1].tolist(), strict=True)
    ):
        after_LC[lag], before_LC[lag] = after_C, before_C
        found = shares_of(memory, row, row_C, after_C, before_C, direct_C) | {"learned": weight_C}
        found["direct"] = found["threads"] * visit_share(memory, past, lag)
        for name, (lags, decay) in WINDOWS.items():
            if lag < lags:
                raw[name][lag] = found[name] * decay**lag
        is_own_C = (row_C == row).astype(float)
        raw["own_count"][lag] = is_own_C
        raw["own_next"][lag], raw["own_hour"][lag] = is_own_C * matched_P[-1 - lag], is_own_C * past.around_P[-1 - lag]
        is_newest_C = is_own_C * (raw["own_count"][:lag].sum(axis=0) == 0)
        raw["own_recency"][lag] = is_newest_C / (1.0 + 0.1 * lag)
        raw["own_visit"][lag], raw["own_since"][lag] = (
            is_newest_C * of_choice[-1 - lag] for of_choice in (past.in_visit_P, past.since_P)
        )
    share_LC = np.zeros(shape)
    for name, raw_LC in raw.items():
        share_LC += gain_F[num_standing + EVIDENCE.index(name)] * _shared(name, raw_LC)
    _add_pairs(share_LC, gain_F, paired_of(memory, past, memory.capacity)[:, row_C])
    shown_SC = np.zeros((len(past.shown_S), len(row_C)))
    for name, raw_SC in _of_showings(past.shown_S, row_C).items():
        shown_SC += gain_F[num_standing + EVIDENCE.index(name)] * _shared(name, raw_SC)
    standing_C = gain_F[:num_standing] @ standing_of(memory, row_C)
    unit = float(memory.clock[SEEN])
    return MemoryShares(
        standing_C, share_LC[::-1], shown_SC, gain_lift * lift_of(memory, row_C, past),
        gain_model * np.asarray(logit_C, float), float(gain_model),
        after_LC[::-1] / unit, before_LC[::-1] / unit,
    )  # fmt: skip


def _add_pairs(share_LC: Float64, gain_F: Float64, paired_2C: Float64) -> None:
    """What followed the last two choices is due to both of them, and what followed the last but one to that."""
    if len(share_LC) < 2:
        return
    pair_C, skip_C = (gain_F[FEATURES.index(name)] * part_C for name, part_C in zip(PAIRED, paired_2C, strict=True))
    share_LC[0] += 0.5 * pair_C
    share_LC[1] += 0.5 * pair_C + skip_C


def _of_showings(shown_S: Int32, row_C: Int64) -> dict[str, Float64]:
    """The summands of what depends on showings, (S, C), oldest first."""
    is_it_SC = (shown_S[:, None] == row_C).astype(float)
    is_newest_SC = is_it_SC * (is_it_SC[::-1].cumsum(axis=0)[::-1] == 1)
    recency_S1 = 1.0 / (1.0 + 0.1 * np.arange(len(shown_S))[::-1, None])
    return {"shown_count": is_it_SC, "shown_recency": is_newest_SC * recency_S1}


def _pair(memory: MemoryArrays, row: int, row_C: Int64) -> tuple[Float64, Float64, Float64, Float64]:
    """A row's counts after, before and directly after, and learned weights, for the given other rows."""
    num = int(memory.num_neighbours[row])
    is_it_NC = memory.neighbour_row[row, :num, None] == row_C
    after_C, before_C, direct_C, weight_C = (
        getattr(memory, name)[row, :num].astype(float) @ is_it_NC for name in ("after", "before", "direct", "weight")
    )
    return after_C, before_C, direct_C, weight_C


def _shared(name: str, raw_LC: Float64) -> Float64:
    """A feature's value, divided among the choices that it comes from."""
    if name not in _LOG_SCALES:
        return raw_LC
    total_C = raw_LC.sum(axis=0)
    value_C = np.log1p(_LOG_SCALES[name] * total_C)
    return np.asarray(raw_LC * np.divide(value_C, total_C, out=np.zeros_like(total_C), where=total_C > 0))
