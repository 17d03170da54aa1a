"""The definition of the odds in plain NumPy: one event after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.odds.arrays import (
    ATTRIBUTE_STRENGTH,
    BOLD_STRENGTH,
    ITEM_STRENGTH,
    LATE_DECAYS,
    LATE_STRENGTH,
    LEAST_RATE,
    OWN_STRENGTH,
    RECENT_DECAYS,
    RECENT_STRENGTH,
    USER_STRENGTH,
    Float32,
    Float64,
    OddsArrays,
    OddsEvents,
    OddsRules,
    check_ranges,
)

LEAK, FURTHEST, LEAST_VARIANCE, EVENTS_REMEMBERED = 0.1, 4.0, 1e-2, 2000.0
KNOWN_SCALE, KNOWN_OFFSET = 0.3, -1.0


@dataclass(slots=True, eq=False)
class _Prediction:
    """``log_I``: log-odds, feature by feature; ``seen_J``: as the hidden layer sees them."""

    log_I: Float64
    seen_J: Float64
    hidden_H: Float64
    logit_K: Float64


def odds_learn(odds: OddsArrays, events: OddsEvents, rules: OddsRules) -> Float32:
    """See `kernels.odds.odds_learn`."""
    check_ranges(odds, events)
    logit_RK = np.zeros(events.network_RK.shape, np.float32)
    for r in events.order_R.tolist():
        done = _predict(odds, events, r)
        logit_RK[r] = done.logit_K
        came_K = _came(events, r, odds.num_kinds)
        _learn(odds, done, _slope(done.logit_K, came_K, bool(events.is_new_R[r]), rules.feedback), rules)
        _count(odds, events, r, came_K)
    return logit_RK


def odds_predict(odds: OddsArrays, events: OddsEvents) -> Float32:
    """See `kernels.odds.odds_predict`."""
    check_ranges(odds, events)
    logits = [_predict(odds, events, r).logit_K for r in range(len(events))]
    return np.array(logits, np.float32).reshape(events.network_RK.shape)


def _came(events: OddsEvents, r: int, num_kinds: int) -> Float64:
    return np.asarray((int(events.bits_R[r]) >> np.arange(num_kinds)) & 1, np.float64)


def _odds(count_C: Float64, rate_K: Float64, strength: float) -> Float64:
    """(K,) of a rate smoothed by ``strength`` sightings of another."""
    num, done_K = count_C[0], count_C[1:]
    return np.asarray((done_K + strength * rate_K) / (np.maximum(num - done_K, 0.0) + strength * (1.0 - rate_K)))


def _predict(odds: OddsArrays, events: OddsEvents, r: int) -> _Prediction:
    num_kinds, columns = odds.num_kinds, odds.num_kinds + 1
    total_C = odds.total_C
    rate_K = np.clip((total_C[1:] + 1.0) / (total_C[0] + 2.0), LEAST_RATE, 1.0 - LEAST_RATE)
    all_K = rate_K / (1.0 - rate_K)
    blocks = odds.item_VC[events.row_R[r]].astype(float).reshape(-1, columns)
    item_K = _odds(blocks[0], rate_K, ITEM_STRENGTH)
    past_C, late, own_C = _past(events, r, num_kinds)
    user_K = _odds(past_C, rate_K, USER_STRENGTH)
    ratios = [item_K, _odds(blocks[0], rate_K, BOLD_STRENGTH) / all_K]
    ratios += [_odds(block_C, item_K / (1.0 + item_K), RECENT_STRENGTH) / item_K for block_C in blocks[1:]]
    ratios += [user_K / all_K, *(_odds(late_C, rate_K, LATE_STRENGTH) / all_K for late_C in late)]
    ratios += [_odds(own_C, user_K / (1.0 + user_K), OWN_STRENGTH) / user_K]
    for at, row in enumerate(events.attribute_RA[r].tolist()):
        table = odds.domain_VC if at < odds.num_domains else odds.feature_VC
        ratios.append(_odds(table[row].astype(float), rate_K, ATTRIBUTE_STRENGTH) / all_K)
    log_I = np.concatenate([np.log(np.concatenate(ratios)), events.network_RK[r]])
    mean_I, variance_I = odds.norm_2I.astype(float)
    known = KNOWN_SCALE * np.log1p([blocks[0, 0], past_C[0]]) + KNOWN_OFFSET
    seen_I = np.clip((log_I - mean_I) / np.sqrt(variance_I + LEAST_VARIANCE), -FURTHEST, FURTHEST)
    seen_J = np.concatenate([seen_I, known, [np.log1p(own_C[0]), 1.0]])
    hidden_H = seen_J @ odds.hidden_JH.astype(float)
    gain_FK = odds.gain_FK.astype(float)
    logit_K = (gain_FK[:-1] * log_I.reshape(-1, num_kinds)).sum(axis=0) + gain_FK[-1]
    return _Prediction(log_I, seen_J, hidden_H, logit_K + _leaky(hidden_H) @ odds.out_HK.astype(float))


def _leaky(hidden_H: Float64) -> Float64:
    return np.asarray(np.maximum(hidden_H, LEAK * hidden_H))


def _past(events: OddsEvents, r: int, num_kinds: int) -> tuple[Float64, list[Float64], Float64]:
    """Counts (C,) of what the user did before: in all, by each decay, and with this item."""
    begin, end = events.past_begin_R[r], events.past_end_R[r]
    items, bits = events.past_item_n[begin:end], events.past_bits_n[begin:end].astype(np.int64)
    did_nC = np.concatenate([np.ones((len(items), 1)), (bits[:, None] >> np.arange(num_kinds)) & 1], axis=1)
    lag_n = np.arange(len(items))[::-1]
    late = [(decay**lag_n) @ did_nC for decay in LATE_DECAYS]
    return did_nC.sum(axis=0), late, did_nC[items == events.item_R[r]].sum(axis=0)


def _slope(logit_K: Float64, came_K: Float64, is_new: bool, feedback: str) -> Float64:
    """The gradient of `trainer.losses.ranking_loss` by the logits."""
    rate_K = 1.0 / (1.0 + np.exp(-logit_K))
    if not is_new and feedback == "reversal":
        return -came_K
    slope_K = rate_K - came_K
    if feedback == "fnw":
        slope_K = slope_K * np.where(came_K > 0, 1.0, 1.0 - rate_K) * (1.0 + rate_K)
    return np.asarray(slope_K if is_new else slope_K * came_K)


def _learn(odds: OddsArrays, done: _Prediction, slope_K: Float64, rules: OddsRules) -> None:
    leaky_H = _leaky(done.hidden_H)
    back_H = odds.out_HK.astype(float) @ slope_K * np.where(done.hidden_H > 0, 1.0, LEAK)
    slope_FK = np.append(done.log_I.reshape(-1, odds.num_kinds), np.ones((1, odds.num_kinds)), axis=0) * slope_K
    for weights, squares, slope, rate in (
        (odds.gain_FK, odds.gain_square_FK, slope_FK, rules.rate),
        (odds.out_HK, odds.out_square_HK, np.outer(leaky_H, slope_K), rules.hidden_rate),
        (odds.hidden_JH, odds.hidden_square_JH, np.outer(done.seen_J, back_H), rules.hidden_rate),
    ):
        squares[:] = squares * rules.decay + slope**2
        weights -= rate * slope / np.sqrt(squares)
    odds.clock[0] += 1.0
    mean_I, variance_I = odds.norm_2I
    away_I, share = done.log_I - mean_I, 1.0 / min(odds.clock[0] + 1.0, EVENTS_REMEMBERED)
    mean_I += share * away_I
    variance_I += share * (away_I**2 - variance_I)


def _count(odds: OddsArrays, events: OddsEvents, r: int, came_K: Float64) -> None:
    row, is_new = int(events.row_R[r]), float(events.is_new_R[r])
    come_C = np.append(is_new, came_K)
    blocks = odds.item_VC[row].reshape(-1, odds.num_kinds + 1)
    for block_C, decay in zip(blocks, (1.0, *RECENT_DECAYS), strict=True):
        block_C[:] = block_C * (decay if is_new else 1.0) + come_C
    odds.item_dirty_V[row] = 0xFF
    for at, attribute in enumerate(events.attribute_RA[r].tolist()):
        is_domain = at < odds.num_domains
        (odds.domain_VC if is_domain else odds.feature_VC)[attribute] += come_C.astype(np.float32)
        (odds.domain_dirty_V if is_domain else odds.feature_dirty_V)[attribute] = 0xFF
    odds.total_C += come_C
