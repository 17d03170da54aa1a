"""The odds in C++, with the same signatures as the reference."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.beside import Beside
from kernels.library import function, pointers
from kernels.odds.arrays import Float32, OddsArrays, OddsEvents, OddsKept, OddsRules, check_ranges

OUT_OF_RANGE = 2
_ARRAYS = (
    "item_VC", "domain_VC", "feature_VC", "pause_VC", "pair_VC", "total_C", "gain_FK", "gain_square_FK", "hidden_JH",
    "hidden_square_JH", "out_HK", "out_square_HK", "norm_2I", "clock", "item_dirty_V", "domain_dirty_V",
    "feature_dirty_V", "pair_dirty_V",
)  # fmt: skip
_KEPT = ("log_PI", "bits_P", "count_2", "dirty_P")
_EVENTS = (
    "row_R", "item_R", "attribute_RA", "network_RK", "bits_R", "is_new_R", "order_R", "past_item_n", "past_bits_n",
    "past_begin_R", "past_end_R", "alike_RL", "past_alike_nL", "kept_R",
)  # fmt: skip


_arrays_of, _kept_of, _events_of = (attrgetter(*names) for names in (_ARRAYS, _KEPT, _EVENTS))


class _Call(Structure):
    """``OddsCall`` of csrc/odds_inputs.h."""

    _fields_ = (
        *((name, c_int64) for name in ("num_events", "num_kinds", "num_domains", "num_attributes", "num_alike")),
        *((name, c_int64) for name in ("num_items", "num_domain_rows", "num_feature_rows", "num_pair_rows")),
        *((name, c_int64) for name in ("num_past", "num_kept")),
        *((name, c_void_p) for name in (*_ARRAYS, *_KEPT, *_EVENTS, "logit_RK")),
        *((name, c_float) for name in ("rate", "hidden_rate", "decay")),
        ("learn", c_int32),
        ("horizon", c_int64),
    )


def odds_begin(
    odds: OddsArrays, kept: OddsKept, events: OddsEvents, rules: OddsRules, beside: Beside
) -> Callable[[], Float32]:
    """See `kernels.odds.odds_begin`."""
    call, logit_RK, held = _prepared(odds, kept, events, rules)
    beside.start(function("odds_events"), call, held)

    def waited() -> Float32:
        _check_status(beside.wait(), odds, kept, events)
        return logit_RK

    return waited


def odds_learn(odds: OddsArrays, kept: OddsKept, events: OddsEvents, rules: OddsRules) -> Float32:
    """See `kernels.odds.odds_learn`."""
    return _run(odds, kept, events, rules)


def odds_predict(odds: OddsArrays, events: OddsEvents) -> Float32:
    """See `kernels.odds.odds_predict`."""
    return _run(odds, None, events, OddsRules())


def _run(odds: OddsArrays, kept: OddsKept | None, events: OddsEvents, rules: OddsRules) -> Float32:
    # Held until the call returns: another thread may give the odds longer arrays meanwhile.
    call, logit_RK, held = _prepared(odds, kept, events, rules)
    _check_status(function("odds_events")(byref(call)), odds, kept, events)
    del held
    return logit_RK


def _prepared(
    odds: OddsArrays, kept: OddsKept | None, events: OddsEvents, rules: OddsRules
) -> tuple[_Call, Float32, list[NDArray[Any]]]:
    """The argument of ``odds_events``, the logits that it will write, and all arrays whose addresses it has."""
    logit_RK = np.zeros(events.network_RK.shape, np.float32)
    given = [*map(np.ascontiguousarray, _events_of(events))]
    arrays, ring = [*_arrays_of(odds)], [] if kept is None else [*_kept_of(kept)]
    item_VC, domain_VC, feature_VC, _, pair_VC, *_ = arrays
    call = _Call(
        len(events), odds.num_kinds, odds.num_domains, odds.num_attributes, odds.num_alike,
        len(item_VC), len(domain_VC), len(feature_VC), len(pair_VC),
        len(events.past_item_n), 0 if kept is None else len(kept.bits_P),
        *pointers(*arrays), *(pointers(*ring) if ring else [None] * len(_KEPT)), *pointers(*given, logit_RK),
        rules.rate, rules.hidden_rate, rules.decay, int(kept is not None), rules.horizon,
    )  # fmt: skip
    return call, logit_RK, [*arrays, *ring, *given, logit_RK]


def _check_status(status: int, odds: OddsArrays, kept: OddsKept | None, events: OddsEvents) -> None:
    if status == OUT_OF_RANGE:
        check_ranges(odds, events, kept)
    if status:
        raise MemoryError(f"odds: no room to work with {odds.num_kinds} kinds")
