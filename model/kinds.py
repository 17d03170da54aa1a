"""Which interactions were choices: what retrieval learns to predict, the memory counts, and HR@K measures.

An interaction holds every kind of action that arrived for it. It is a choice if at least one of them is positive and
none is negative: an item that was only shown was not chosen, let alone one that was hidden.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from kernels.windows import count_kinds
from model.config import ModelConfig

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
NEUTRAL = frozenset({"impression", "impressions", "exposure", "exposed", "show", "shown", "see", "seen", "display"})
"""Kinds that only say that the user was shown the item, by the names that producers give them."""
NEGATIVE = frozenset({"hate", "dislike", "hide", "hidden", "skip", "block", "report", "not_interested", "downvote"})
"""Kinds that say that the user did not want the item."""


@cache
def positive_bits(config: ModelConfig) -> int:
    """The bits of the positive kinds: those configured; else all that are neither neutral nor negative by name; if none
    is left, the neutral ones."""
    if config.positive_kinds:
        return _bits(config, set(config.positive_kinds))
    negative = negative_bits(config)
    return (_bits(config, set(config.kinds) - NEUTRAL) & ~negative) or (_bits(config, set(config.kinds)) & ~negative)


@cache
def negative_bits(config: ModelConfig) -> int:
    """The bits of the negative kinds: those configured, else those known by name."""
    return _bits(config, set(config.negative_kinds) if config.negative_kinds else NEGATIVE - set(config.positive_kinds))


def chosen(bits_n: NDArray[np.uint32], config: ModelConfig) -> NDArray[np.bool_]:
    """(n,) whether each interaction was a choice."""
    positive, negative = np.uint32(positive_bits(config)), np.uint32(negative_bits(config))
    return np.asarray(((bits_n & positive) != 0) & ((bits_n & negative) == 0))


def becomes_chosen(
    previous_n: NDArray[np.uint32], added_n: NDArray[np.uint32], config: ModelConfig
) -> NDArray[np.bool_]:
    """(n,) whether the added kinds turn an interaction without a positive kind into a choice."""
    was_positive = (previous_n & np.uint32(positive_bits(config))) != 0
    return np.asarray(chosen(previous_n | added_n, config) & ~was_positive)


def _bits(config: ModelConfig, names: frozenset[str] | set[str]) -> int:
    return sum(1 << bit for bit, kind in enumerate(config.kinds) if kind.lower() in names or kind in names)


def done_before(
    bits_n: NDArray[np.uint32], num_kinds: int, starts_B1: Int64, owner_R: Int64, target_R: Int64
) -> tuple[Float64, Float64]:
    """For each target, of the interactions before it in its user's sequence: (R, K) how many had each kind; (R,) how
    many there are."""
    first_R = starts_B1[owner_R]
    return count_kinds(bits_n, first_R, target_R, num_kinds), (target_R - first_R).astype(np.float64)
