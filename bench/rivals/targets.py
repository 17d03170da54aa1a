"""A step's targets one by one, for online learners of ranking, and their features as hashed columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.rivals.counts import Rates
from bench.streams.events import Step
from model.kinds import done_before

Int64 = NDArray[np.int64]
HASH_BITS = 20
MS_PER_HOUR = 3_600_000
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Target(NamedTuple):
    """``at``: its place in the step. ``row``: its item's row. ``kinds_K``: its kinds in this step. ``is_new``: False if
    it is an earlier interaction that got more kinds."""

    at: int
    row: int
    kinds_K: NDArray[np.float32]
    is_new: bool


def in_order(step: Step) -> Int64:
    """(R,) the targets in the order of their times."""
    return np.argsort(step.batch.time_ms_n[step.batch.target_R], kind="stable")


def targets(step: Step) -> Iterator[Target]:
    """Each target, in that order."""
    batch = step.batch
    rows, kinds_RK, is_new = step.row_n[batch.target_R].tolist(), batch.learned_RK, batch.is_new_R.tolist()
    for index in in_order(step).tolist():
        yield Target(index, rows[index], kinds_RK[index], is_new[index])


def told(step: Step, rates: Rates) -> Iterator[tuple[Target, Int64, NDArray[np.float32]]]:
    """Each target in that order, with its (F,) columns and its (P, K) log-odds by ``rates``, which count it after it
    was predicted and learned."""
    batch = step.batch
    place_RF, where = columns(step), batch.target_R
    done_RK, num_R = done_before(batch.bits_n, batch.num_kinds, batch.starts_B1, batch.owner_n[where], where)
    for each in targets(step):
        one, row = slice(each.at, each.at + 1), step.row_n[where[each.at : each.at + 1]]
        yield each, place_RF[each.at], rates.prior(row, done_RK[one], num_R[one])[0]
        rates.learn(row, batch.learned_RK[one], batch.is_new_R[one])


def columns(step: Step) -> Int64:
    """(R, F) hashed features of each target, indices into a table of 2**HASH_BITS: user, item, time, the user's last
    item, and pairs of them."""
    batch = step.batch
    where, before = batch.target_R, np.maximum(batch.previous_R, 0)
    has_before = batch.previous_R >= 0
    user, item = step.user_B[batch.owner_n[where]], batch.item_n[where]
    previous = np.where(has_before, batch.item_n[before], 0)
    done = np.where(has_before, batch.bits_n[before], 0).astype(np.int64)
    hour = batch.time_ms_n[where] // MS_PER_HOUR % 24
    features = list(batch.feature_nF[where].T)
    single = [np.zeros_like(item), user, item, batch.domain_n[where], hour, previous, done, *features]
    pairs = [(who, each) for who in (user, item) for each in features]
    pairs += [(item, previous), (item, hour), (user, done)]
    found = [_hashed(number, each) for number, each in enumerate(single)]
    found += [_hashed(64 + number, *pair) for number, pair in enumerate(pairs)]
    return np.stack(found, axis=1)


def _hashed(number: int, *parts: Int64) -> Int64:
    with np.errstate(over="ignore"):
        key = np.full(len(parts[0]), number + 1, np.uint64)
        for part in parts:
            key = (key ^ part.astype(np.uint64)) * _MIX
            key ^= key >> np.uint64(31)
    return (key >> np.uint64(64 - HASH_BITS)).astype(np.int64)
