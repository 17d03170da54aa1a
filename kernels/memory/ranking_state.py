"""What is kept of a choice on its way to its ranks among all rows (`kernels.memory.ranking`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.memory.arrays import FEATURES, LISTED, NUM_HEATS, Float32, Float64, Int32, Int64, MemoryArrays
from kernels.memory.events import MemoryRules
from kernels.memory.features import HEAT, SEEN

NUMBERS = (
    "num_rows", "target", "bucket", "next_row", "num_groups", "num_listed", "least_listed", "competing", "more_logit",
    "same_logit", "touched", "touched_more", "touched_same",
)  # fmt: skip
"""Of a ranking: ``more_…`` and ``same_…`` count the competing rows that are better than the target and as good, itself
included; ``touched…`` those with evidence, by what followed."""
AMOUNTS = ("best", "mass", "lift_mass", "logit", "count", "pause", "weight")
"""Of a ranking: the best score, the sums of e^(score - best) and of the lifts weighted by that; of the target, the
logit, what followed, and how much it counts; and the pause before it."""
HALF = 0.5
"""A unit that is less than so much of what it has grown to is another one: they are replaced at 1e12."""


@dataclass(frozen=True, slots=True, eq=False)
class MemoryRanking:
    """One choice on its way to its ranks among V rows.

    ``score_V`` and, if items have groups, ``lift_V`` (V,) float32: what is known so far. ``logit_V`` (V,) float32: the
    network's logits if they were given, otherwise empty, and ``query_D`` is not. As they were when the choice was
    predicted: ``gain``, ``shortlist_weight``, ``shortlist_norm``, ``clock``, and the lifts of groups, ``lift_G`` and
    ``lift_base``. ``listed_row``, ``listed_score`` and ``listed_feature``: the best rows so far. ``number`` int64 and
    ``amount`` float64: by `NUMBERS` and `AMOUNTS`.
    """

    score_V: Float32
    lift_V: Float32
    logit_V: Float32
    query_D: Float32
    gain: Float32
    shortlist_weight: Float32
    shortlist_norm: Float32
    lift_G: Float32
    lift_base: Float32
    clock: Float64
    listed_row: Int32
    listed_score: Float32
    listed_feature: Float32
    number: Int64
    amount: Float64

    @staticmethod
    def empty(memory: MemoryArrays, num_rows: int, query_D: Float32, logit_V: Float32) -> MemoryRanking:
        """Before anything is scored."""
        num_groups = memory.num_columns * memory.num_groups
        return MemoryRanking(
            score_V=np.empty(num_rows, np.float32),
            lift_V=np.zeros(num_rows if memory.num_columns else 0, np.float32),
            logit_V=logit_V,
            query_D=query_D,
            gain=np.zeros(len(FEATURES), np.float32),
            shortlist_weight=memory.shortlist_weight.copy(),
            shortlist_norm=memory.shortlist_norm.copy(),
            lift_G=np.zeros(num_groups, np.float32),
            lift_base=np.zeros(memory.num_columns, np.float32),
            clock=memory.clock.copy(),
            listed_row=np.zeros(LISTED, np.int32),
            listed_score=np.zeros(LISTED, np.float32),
            listed_feature=np.zeros((LISTED, len(FEATURES)), np.float32),
            number=np.zeros(len(NUMBERS), np.int64),
            amount=np.zeros(len(AMOUNTS), np.float64),
        )

    @property
    def num_rows(self) -> int:
        """V: later rows do not compete."""
        return len(self.score_V)

    @property
    def num_left(self) -> int:
        """How many rows `memory_rank_next` has yet to score."""
        return self.num_rows - int(self.number[NUMBERS.index("next_row")])

    def follow_units(self, before: Float64, memory: MemoryArrays, num_counted: int, rules: MemoryRules) -> None:
        """Take over that counts have got another unit (`kernels.memory.arrays.CLOCK`), which happens before they
        overflow. ``before``: the clock that many counted choices ago."""
        half_lives = np.array([rules.seen_half_life, *rules.heat_half_lives])
        units = slice(SEEN, HEAT + NUM_HEATS)
        share = memory.clock[units] / (before[units] * 2.0 ** (num_counted / half_lives))
        self.clock[units] *= np.where(share < HALF, share, 1.0)

    @staticmethod
    def is_kept(state: Mapping[str, NDArray[Any]], memory: MemoryArrays) -> bool:
        """Whether a state is of a choice that this build can go on with: an earlier one had fewer features."""
        shapes = {
            "gain": (len(FEATURES),),
            "listed_feature": (LISTED, len(FEATURES)),
            "shortlist_weight": memory.shortlist_weight.shape,
            "shortlist_norm": memory.shortlist_norm.shape,
            "clock": memory.clock.shape,
        }
        return all(name in state and state[name].shape == shape for name, shape in shapes.items())

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays for a checkpoint."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @staticmethod
    def from_state(state: Mapping[str, NDArray[Any]]) -> MemoryRanking:
        """The inverse of `state_dict`; other arrays are ignored."""
        return MemoryRanking(**{each.name: state[each.name].copy() for each in fields(MemoryRanking)})
