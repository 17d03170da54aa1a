"""Upgrades the memory and the rates of older builds to this build's form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.memory import FEATURES
from kernels.memory.arrays import (
    CLOCK,
    FIRST_GAINS,
    HIDDEN,
    PAIRED,
    SEEN_AGAIN,
    first_gain_squares,
    first_squares,
)
from kernels.odds.arrays import FIRST_GAIN_SQUARE, FIRST_SQUARE, OddsArrays, num_pairs_of

ADDED = (
    ("hourly",),
    PAIRED,
    ("own_next", "own_hour"),
    ("lift",),
    ("shown_count", "shown_recency"),
    ("threads", "own_visit", "own_since"),
)
"""The features that each build added, the newest build first."""

SQUARES = ("gain_square", "shortlist_square", "shortlist_norm")
"""What has been learned of how much each feature varies, as far as it is a part of a memory's state."""

_WIDENED = (
    ("gain_FK", 0, 0.0), ("gain_square_FK", 0, FIRST_GAIN_SQUARE), ("hidden_JH", 0, 0.0),
    ("hidden_square_JH", 0, FIRST_SQUARE), ("norm_2I", 1, 0.0), ("kept_log", 1, 0.0),
)  # fmt: skip
"""Of the odds' arrays with a part for each log-odds: their axis, and what new ones start as."""


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
    had = [name not in missing for name in FEATURES]
    widened = {"gain": np.zeros(len(FEATURES), np.float32), "gain_square": first_gain_squares()}
    kept = {name: array for name, array in state.items() if not name.startswith("shortlist_")}
    for name in widened.keys() & kept.keys():
        old, kept[name] = kept[name], np.tile(widened[name], (len(kept[name]), 1))
        kept[name][:, had] = old
    for name in missing:
        kept["gain"][0, FEATURES.index(name)] = FIRST_GAINS.get(name, 0.0)
    return kept


def learned_anew(state: Mapping[str, NDArray[Any]], features: Iterable[str]) -> dict[str, NDArray[Any]]:
    """What a memory's state has of `SQUARES`, with these features, which said nothing so far, as in an empty memory:
    each prediction without them has made their Adagrad state, and the shortlist's variance of them, smaller."""
    inputs, num = [SEEN_AGAIN.index(name) for name in features], len(SEEN_AGAIN)
    changed = {name: state[name].copy() for name in SQUARES if name in state}
    if "gain_square" in changed:
        changed["gain_square"][:, inputs] = first_gain_squares()[inputs]
    if "shortlist_square" in changed:
        changed["shortlist_square"][: num * (1 + HIDDEN)].reshape(-1, num)[:, inputs] = first_squares()[inputs]
    if "shortlist_norm" in changed:
        changed["shortlist_norm"][:, inputs] = np.array([0.0, 1.0, 0.0])[:, None]
    return changed


def _missing(num: int) -> tuple[str, ...]:
    """The ``num`` features that were added last; none if no build lacked exactly those."""
    names: tuple[str, ...] = ()
    for added in ADDED:
        if len(names) == num:
            break
        names += added
    return names if len(names) == num else ()


def upgraded_rates(state: Mapping[str, NDArray[Any]], odds: OddsArrays) -> dict[str, NDArray[Any]]:
    """The state of a model's rates, or what a version carries of it, with this build's inputs: an older one had neither
    pauses nor pairs of attributes. ``odds``: this build's, of the same model.

    What it lacks starts as in empty rates, and changes no prediction until it has learned.
    """
    num_kinds, num_new = odds.num_kinds, 1 + num_pairs_of(odds.num_attributes)
    gain = state.get("gain_FK")
    if gain is None or gain.shape != (len(odds.gain_FK) - num_new, num_kinds):
        return dict(state)
    found, at = dict(state), len(gain) - 2  # the network's log-odds and the bias are the last
    for name, axis, value in _WIDENED:
        if name in state:
            each = 1 if name.startswith("gain") else num_kinds
            found[name] = np.insert(state[name], [at * each] * (num_new * each), np.float32(value), axis)
    found["norm_2I"][1, at * num_kinds : (at + num_new) * num_kinds] = 1.0
    found["pause_VC"] = np.zeros_like(odds.pause_VC)
    if "item_index" in state:
        return found | {"pair_index": np.zeros(0, np.int64), "pair_VC": np.zeros_like(odds.pair_VC[:0])}
    return found | {"pair_VC": np.zeros_like(odds.pair_VC), "pair_dirty_V": np.zeros_like(odds.pair_dirty_V)}


def arrivals_of(state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The state of `Rates.arrivals`; earlier builds had the keys beside the kept inputs."""
    if "arrivals_num" in state:
        return {name: state[f"arrivals_{name}"] for name in ("num", "lags", "key")}
    num_1 = state["kept_count"][:1]
    oldest_first = np.roll(state.get("kept_key", np.zeros(0, np.int64)), -int(num_1[0]))
    return {"num": num_1, "lags": state["kept_lags"], "key": oldest_first}
