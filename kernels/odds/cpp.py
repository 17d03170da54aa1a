"""The odds in C++, called as their reference is."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import numpy as np

from kernels.library import function
from kernels.odds.arrays import Float32, OddsArrays, OddsEvents, OddsRules, check_ranges

OUT_OF_RANGE = 2
_FEEDBACK = {"vanilla": 0, "fnw": 1, "reversal": 2}
_ARRAYS = (
    "item_VC", "domain_VC", "feature_VC", "total_C", "gain_FK", "gain_square_FK", "hidden_JH", "hidden_square_JH",
    "out_HK", "out_square_HK", "norm_2I", "clock", "item_dirty_V", "domain_dirty_V", "feature_dirty_V",
)  # fmt: skip
_EVENTS = (
    "row_R", "item_R", "attribute_RA", "network_RK", "bits_R", "is_new_R", "order_R", "past_item_n", "past_bits_n",
    "past_begin_R", "past_end_R",
)  # fmt: skip


class _Call(ctypes.Structure):
    """``OddsCall`` of csrc/level/odds.cpp."""

    _fields_ = (
        *((name, c_int64) for name in ("num_events", "num_kinds", "num_domains", "num_attributes")),
        *((name, c_int64) for name in ("num_items", "num_domain_rows", "num_feature_rows", "num_past")),
        *((name, c_void_p) for name in (*_ARRAYS, *_EVENTS, "logit_RK")),
        *((name, c_float) for name in ("rate", "hidden_rate", "decay")),
        ("feedback", c_int32),
        ("learn", c_int32),
    )


def odds_learn(odds: OddsArrays, events: OddsEvents, rules: OddsRules) -> Float32:
    """See `kernels.odds.odds_learn`."""
    return _run(odds, events, rules, learn=True)


def odds_predict(odds: OddsArrays, events: OddsEvents) -> Float32:
    """See `kernels.odds.odds_predict`."""
    return _run(odds, events, OddsRules(), learn=False)


def _run(odds: OddsArrays, events: OddsEvents, rules: OddsRules, *, learn: bool) -> Float32:
    logit_RK = np.zeros(events.network_RK.shape, np.float32)
    kept = [np.ascontiguousarray(getattr(events, name)) for name in _EVENTS]
    arrays = [getattr(odds, name) for name in _ARRAYS]
    assert all(array.flags.c_contiguous for array in arrays)
    call = _Call(
        len(events), odds.num_kinds, odds.num_domains, odds.num_attributes,
        len(odds.item_VC), len(odds.domain_VC), len(odds.feature_VC), len(events.past_item_n),
        *(array.ctypes.data for array in (*arrays, *kept, logit_RK)),
        rules.rate, rules.hidden_rate, rules.decay, _FEEDBACK[rules.feedback], int(learn),
    )  # fmt: skip
    status = function("odds_events")(ctypes.byref(call))
    if status == OUT_OF_RANGE:
        check_ranges(odds, events)
    if status:
        raise MemoryError(f"odds: no room to work with {odds.num_kinds} kinds")
    return logit_RK
