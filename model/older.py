"""The memory of older builds, as this one holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.memory import FEATURES
from kernels.memory.arrays import FIRST_GAINS

NEWEST = "direct"
"""The feature that builds before this one do not have."""


def upgraded(state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A memory's state, or what a version carries of it, with this build's features.

    The new feature starts as in an empty memory, and so does the shortlist's network, whose inputs have changed.
    """
    gain = state.get("gain")
    if gain is None or gain.shape[1] != len(FEATURES) - 1:
        return dict(state)
    at, widened = FEATURES.index(NEWEST), {"gain": 0.0, "gain_square": 1e-3}
    kept = {name: array for name, array in state.items() if not name.startswith("shortlist_")}
    for name, value in widened.items():
        if name in kept:
            kept[name] = np.insert(kept[name], at, value, axis=1)
    kept["gain"][0, at] = FIRST_GAINS.get(NEWEST, 0.0)
    return kept
