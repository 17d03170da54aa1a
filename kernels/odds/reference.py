"""The definition of the odds in plain NumPy: one event at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.odds.arrays import (
    ALIKE_DECAYS,
    ALIKE_STRENGTH,
    ATTRIBUTE_STRENGTH,
    ATTRIBUTE_TABLES,
    BOLD_STRENGTH,
    ITEM_STRENGTH,
    LATE_DECAYS,
    LATE_STRENGTH,
    LEAST_COME,
    LEAST_RATE,
    MOST_COUNTED,
    NUM_CONFIDENCES,
    OWN_STRENGTH,
    PAIR_STRENGTH,
    RECENT_DECAYS,
    RECENT_STRENGTH,
    USER_STRENGTH,
    Float32,
    Float64,
    OddsArrays,
    OddsEvents,
    OddsKept,
    OddsRules,
    check_ranges,
    pair_rows,
    pairs_of,
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


def odds_learn(odds: OddsArrays, kept: OddsKept, events: OddsEvents, rules: OddsRules) -> Float32:
    """See `kernels.odds.odds_learn`."""
    check_ranges(odds, events, kept)
    logit_RK = np.zeros(events.network_RK.shape, np.float32)
    for r in events.order_R.tolist():
        log_I = _gather(odds, events, r)
        logit_RK[r] = _predict(odds, log_I).logit_K
        if events.is_new_R[r]:
            _keep(odds, kept, events, r, log_I, rules)
        elif events.kept_R[r] >= 0:
            _amend(odds, kept, events, r, rules)
        _count(odds, events, r, _kinds(events.bits_R[r], odds.num_kinds))
    return logit_RK


def odds_predict(odds: OddsArrays, events: OddsEvents) -> Float32:
    """See `kernels.odds.odds_predict`."""
    check_ranges(odds, events)
    logits = [_predict(odds, _gather(odds, events, r)).logit_K for r in range(len(events))]
    return np.array(logits, np.float32).reshape(events.network_RK.shape)


def _kinds(bits: int, num_kinds: int) -> Float64:
    return np.asarray((int(bits) >> np.arange(num_kinds)) & 1, np.float64)


def _odds(count_C: Float64, rate_K: Float64, strength: float | Float64) -> Float64:
    """(K,) of a rate smoothed by ``strength`` sightings of another."""
    num, done_K = count_C[0], count_C[1:]
    return np.asarray((done_K + strength * rate_K) / (np.maximum(num - done_K, 0.0) + strength * (1.0 - rate_K)))


def _gather(odds: OddsArrays, events: OddsEvents, r: int) -> Float64:
    """The log-odds of an event, and how much is known of it."""
    num_kinds, columns = odds.num_kinds, odds.num_kinds + 1
    total_C = odds.total_C
    rate_K = np.clip((total_C[1:] + 1.0) / (total_C[0] + 2.0), LEAST_RATE, 1.0 - LEAST_RATE)
    all_K = rate_K / (1.0 - rate_K)
    blocks = odds.item_VC[events.row_R[r]].astype(float).reshape(-1, columns)
    item_K = _odds(blocks[0], rate_K, np.maximum(ITEM_STRENGTH, LEAST_COME / np.minimum(rate_K, 1.0 - rate_K)))
    past_C, late, own_C, alike = _past(events, r, num_kinds)
    user_K = _odds(past_C, rate_K, USER_STRENGTH)
    ratios = [item_K, _odds(blocks[0], rate_K, BOLD_STRENGTH) / all_K]
    ratios += [_odds(block_C, item_K / (1.0 + item_K), RECENT_STRENGTH) / item_K for block_C in blocks[1:]]
    ratios += [user_K / all_K, *(_odds(late_C, rate_K, LATE_STRENGTH) / all_K for late_C in late)]
    ratios += [_odds(own_C, user_K / (1.0 + user_K), OWN_STRENGTH) / user_K]
    ratios += [_odds(like_C, user_K / (1.0 + user_K), ALIKE_STRENGTH) / user_K for like_C in alike]
    row_A = events.attribute_RA[r].tolist()
    counts = [getattr(odds, f"{name}_VC")[row].astype(float) for name, row in _tables(odds, row_A)]
    attributes = [_odds(count_C, rate_K, ATTRIBUTE_STRENGTH) / all_K for count_C in counts]
    ratios += attributes
    for (a, b), row in zip(pairs_of(len(row_A)), pair_rows(row_A, len(odds.pair_VC)), strict=True):
        both_K = attributes[a] * attributes[b] * all_K
        ratios.append(_odds(odds.pair_VC[row].astype(float), both_K / (1.0 + both_K), PAIR_STRENGTH) / both_K)
    known = [*(KNOWN_SCALE * np.log1p([blocks[0, 0], past_C[0]]) + KNOWN_OFFSET), np.log1p(own_C[0])]
    return np.concatenate([np.log(np.concatenate(ratios)), events.network_RK[r], known])


def _tables(odds: OddsArrays, row_A: list[int]) -> list[tuple[str, int]]:
    """The table of each attribute, and its row there."""
    num_features = odds.num_attributes - 1 - odds.num_domains
    names = np.repeat(ATTRIBUTE_TABLES, [odds.num_domains, num_features, 1]).tolist()
    return list(zip(names, row_A, strict=True))


def _predict(odds: OddsArrays, kept_I: Float64) -> _Prediction:
    log_I, known = kept_I[:-NUM_CONFIDENCES].astype(float), kept_I[-NUM_CONFIDENCES:].astype(float)
    mean_I, variance_I = odds.norm_2I.astype(float)
    seen_I = np.clip((log_I - mean_I) / np.sqrt(variance_I + LEAST_VARIANCE), -FURTHEST, FURTHEST)
    seen_J = np.concatenate([seen_I, known, [1.0]])
    hidden_H = seen_J @ odds.hidden_JH.astype(float)
    gain_FK = odds.gain_FK.astype(float)
    logit_K = (gain_FK[:-1] * log_I.reshape(-1, odds.num_kinds)).sum(axis=0) + gain_FK[-1]
    return _Prediction(log_I, seen_J, hidden_H, logit_K + _leaky(hidden_H) @ odds.out_HK.astype(float))


def _leaky(hidden_H: Float64) -> Float64:
    return np.asarray(np.maximum(hidden_H, LEAK * hidden_H))


def _past(events: OddsEvents, r: int, num_kinds: int) -> tuple[Float64, list[Float64], Float64, list[Float64]]:
    """Counts (C,) of what the user did before: in all, by each decay, with this item, and with those like it."""
    begin, end = events.past_begin_R[r], events.past_end_R[r]
    items, bits = events.past_item_n[begin:end], events.past_bits_n[begin:end].astype(np.int64)
    did_nC = np.concatenate([np.ones((len(items), 1)), (bits[:, None] >> np.arange(num_kinds)) & 1], axis=1)
    lag_n = np.arange(len(items))[::-1]
    late = [(decay**lag_n) @ did_nC for decay in LATE_DECAYS]
    alike = [
        (decay**lag_n * ((like_n == key) & (key != 0))) @ did_nC
        for like_n, key in zip(events.past_alike_nL[begin:end].T, events.alike_RL[r], strict=True)
        for decay in ALIKE_DECAYS
    ]
    return did_nC.sum(axis=0), late, did_nC[items == events.item_R[r]].sum(axis=0), alike


def _keep(odds: OddsArrays, kept: OddsKept, events: OddsEvents, r: int, log_I: Float64, rules: OddsRules) -> None:
    """Keep a new interaction, and learn those that are old enough."""
    most, place = len(kept.bits_P), int(kept.count_2[0]) % len(kept.bits_P)
    kept.log_PI[place, : len(log_I)], kept.bits_P[place], kept.dirty_P[place] = log_I, events.bits_R[r], 0xFF
    kept.count_2[0] += 1
    while kept.count_2[1] + rules.horizon < kept.count_2[0]:
        at = int(kept.count_2[1]) % most
        done = _predict(odds, kept.log_PI[at, : len(log_I)].astype(np.float64))
        kept.log_PI[at, len(log_I) :] = _probability(done.logit_K)
        _learn(odds, done, _probability(done.logit_K) - _kinds(kept.bits_P[at], odds.num_kinds), rules)
        kept.dirty_P[at] = 0xFF
        kept.count_2[1] += 1
    _gauge(odds, log_I[:-NUM_CONFIDENCES])


def _amend(odds: OddsArrays, kept: OddsKept, events: OddsEvents, r: int, rules: OddsRules) -> None:
    """Kinds that arrived for an earlier interaction. If the weights have learned their absence, that is reversed: they
    were moved by the slope `taught`, and should have been moved by that of a 1."""
    place = int(events.kept_R[r])
    more = int(events.bits_R[r]) & ~int(kept.bits_P[place])
    kept.bits_P[place] |= np.uint32(more)
    kept.dirty_P[place] = 0xFF
    num_newer = (int(kept.count_2[0]) - 1 - place) % len(kept.bits_P)
    if num_newer >= kept.count_2[0] - kept.count_2[1]:
        kept_I, taught_K = np.split(kept.log_PI[place], [-odds.num_kinds])
        done = _predict(odds, kept_I)
        _learn(odds, done, _kinds(more, odds.num_kinds) * (_probability(done.logit_K) - 1.0 - taught_K), rules)


def _probability(logit_K: Float64) -> Float64:
    return np.asarray(1.0 / (1.0 + np.exp(-logit_K)))


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


def _gauge(odds: OddsArrays, log_I: Float64) -> None:
    """Update the means and variances of new interactions' inputs."""
    odds.clock[0] += 1.0
    mean_I, variance_I = odds.norm_2I
    away_I, share = log_I - mean_I, 1.0 / min(odds.clock[0] + 1.0, EVENTS_REMEMBERED)
    mean_I += share * away_I
    variance_I += share * (away_I**2 - variance_I)


def _count(odds: OddsArrays, events: OddsEvents, r: int, came_K: Float64) -> None:
    row, is_new = int(events.row_R[r]), float(events.is_new_R[r])
    come_C = np.append(is_new, came_K)
    blocks = odds.item_VC[row].reshape(-1, odds.num_kinds + 1)
    for block_C, decay in zip(blocks, (1.0, *RECENT_DECAYS), strict=True):
        block_C[:] = _counted(block_C * np.float32(decay if is_new else 1.0), come_C)
    odds.item_dirty_V[row] = 0xFF
    row_A = events.attribute_RA[r].tolist()
    for name, at in [*_tables(odds, row_A), *(("pair", at) for at in pair_rows(row_A, len(odds.pair_VC)))]:
        counts_VC = getattr(odds, f"{name}_VC")
        counts_VC[at] = _counted(counts_VC[at], come_C)
        if name != "pause":
            getattr(odds, f"{name}_dirty_V")[at] = 0xFF
    odds.total_C += come_C


def _counted(count_C: Float32, come_C: Float64) -> Float32:
    """Counts (C,) with one more interaction, or with kinds of an earlier one: each at most as often as interactions,
    since the earlier one may have been counted in another row, which is gone by now."""
    more_C = count_C + come_C.astype(np.float32)
    more_C[1:] = np.maximum(count_C[1:], np.minimum(more_C[1:], more_C[0]))
    return more_C * np.float32(0.5) if more_C[0] >= MOST_COUNTED else more_C
