"""Upgrades the memory of older builds to this build's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.memory import FEATURES
from kernels.memory.arrays import CLOCK, FIRST_GAIN_SQUARE, FIRST_GAINS

ADDED = (("shown_count", "shown_recency"), ("threads", "own_visit", "own_since"))
"""The features that each build added, the newest build first."""


def upgraded(state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A memory's state, or what a version carries of it, with this build's features.

    Features that it lacks start as in an empty memory, and so does the shortlist's network, whose inputs have changed.
    So do the last counts of the clock, of which older builds have fewer.
    """
    state = dict(state)
    if "clock" in state:
        state["clock"] = np.append(state["clock"], np.zeros(len(CLOCK) - len(state["clock"])))
    gain = state.get("gain")
    missing = _missing(len(FEATURES) - gain.shape[1]) if gain is not None else ()
    if not missing:
        return state
    had, widened = [name not in missing for name in FEATURES], {"gain": 0.0, "gain_square": FIRST_GAIN_SQUARE}
    kept = {name: array for name, array in state.items() if not name.startswith("shortlist_")}
    for name in widened.keys() & kept.keys():
        old, kept[name] = kept[name], np.full((len(kept[name]), len(FEATURES)), widened[name], np.float32)
        kept[name][:, had] = old
    for name in missing:
        kept["gain"][0, FEATURES.index(name)] = FIRST_GAINS.get(name, 0.0)
    return kept


def _missing(num: int) -> tuple[str, ...]:
    """The ``num`` features that were added last; none if no build lacked exactly those."""
    names: tuple[str, ...] = ()
    for added in ADDED:
        if len(names) == num:
            break
        names += added
    return names if len(names) == num else ()
