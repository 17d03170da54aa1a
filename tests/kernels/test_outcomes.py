"""What is counted of predictions in C++ against the formulas, one interaction at a time."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest

from kernels.outcomes import KindCounts, count_came, score_kinds, score_ranks, smoothed_rates

NUM_BINS, UNRANKED = 64, -1


def loss(probability: float, happened: bool) -> float:
    return -math.log(min(max(probability if happened else 1.0 - probability, 1e-7), 1.0 - 1e-7))


class Recount:
    """The definition: all interactions that have come, with the kinds that they have now, counted again."""

    def __init__(self, num_kinds: int, most: int) -> None:
        self.num_kinds, self.most, self.num_too_late = num_kinds, most, 0
        self.came = dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]()

    def add(self, number_R: np.ndarray, model_RK: np.ndarray, base_RK: np.ndarray, done_RK: np.ndarray,
            is_new_R: np.ndarray) -> None:  # fmt: skip
        for r in np.flatnonzero(is_new_R).tolist():
            self.came[int(number_R[r])] = np.float32(model_RK[r]), np.float32(base_RK[r]), done_RK[r].copy()
        for r in np.flatnonzero(~is_new_R).tolist():
            number = int(number_R[r])
            if len(self.came) - self.most <= number < len(self.came) and number >= 0:
                self.came[number][2][:] |= done_RK[r]
            else:
                self.num_too_late += 1

    def counts(self) -> KindCounts:
        counts = KindCounts.empty(self.num_kinds, NUM_BINS, self.most)
        counts.span_3[:] = len(self.came), min(self.most, len(self.came)), self.num_too_late
        for number, (model_K, base_K, done_K) in sorted(self.came.items()):
            place = number % self.most
            counts.model_PK[place], counts.baseline_PK[place], counts.done_PK[place] = model_K, base_K, done_K
            for k in range(self.num_kinds):
                model, base, done = float(model_K[k]), float(base_K[k]), bool(done_K[k])
                counts.entropy_K4[k] += (1, done, loss(model, done), loss(base, done))
                counts.calibration_K2[k] += (model, done)
                counts.bins_K2B[k, int(done), min(int(model * NUM_BINS), NUM_BINS - 1)] += 1
        return counts


def assert_same(ours: KindCounts, theirs: KindCounts) -> None:
    for each in fields(KindCounts):
        found, expected = getattr(ours, each.name), getattr(theirs, each.name)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-9, err_msg=each.name)


@pytest.mark.parametrize("num_kinds", [1, 3, 32])
@pytest.mark.parametrize("most", [5, 40])
def test_kinds_count_as_if_all_had_come_at_once(num_kinds: int, most: int) -> None:
    """Predictions of 0 and 1 and a rate above 1 among them; kinds that come again, too late, and within their own step;
    steps longer than the ring."""
    rng, counts = np.random.default_rng(num_kinds), KindCounts.empty(num_kinds, NUM_BINS, most)
    recount, num = Recount(num_kinds, most), 0
    for size in (0, 3, 60, 1, 17, 0, 30, 200):
        is_new_R = rng.random(size) < 0.6
        number_R = rng.integers(max(-1, num - most - 3), num + 1, size)
        number_R[is_new_R] = num + rng.permutation(int(is_new_R.sum()))
        num += int(is_new_R.sum())
        model_RK, base_RK = rng.random((size, num_kinds)), 1.2 * rng.random((size, num_kinds))
        model_RK[rng.random(model_RK.shape) < 0.2] = rng.integers(0, 2)
        done_RK = rng.random((size, num_kinds)) < 0.4
        given = number_R, model_RK, base_RK, done_RK, is_new_R
        score_kinds(counts, *given)
        recount.add(*given)
        assert_same(counts, recount.counts())


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.1])
def test_what_is_no_probability_is_refused_and_nothing_counted(wrong: float) -> None:
    counts, half = KindCounts.empty(2, NUM_BINS, 10), np.full((3, 2), 0.5)
    model_RK, done_RK, every = half.copy(), np.ones((3, 2), np.bool_), np.ones(3, np.bool_)
    model_RK[2, 1] = wrong
    with pytest.raises(ValueError, match="expected probabilities"):
        score_kinds(counts, np.arange(3), model_RK, half, done_RK, every)
    with pytest.raises(ValueError, match="numbers from 0"):
        score_kinds(counts, np.array([0, -1, 1]), half, half, done_RK, every)
    assert_same(counts, KindCounts.empty(2, NUM_BINS, 10))
    is_new = np.array([True, True, False])  # of an earlier interaction the first prediction counts
    score_kinds(counts, np.array([0, 1, 0]), model_RK, half, done_RK, is_new)
    assert counts.entropy_K4[0, 0] == 2


@pytest.mark.parametrize("num", [0, 1, 50])
def test_ranks_are_worth_the_gains_of_the_formulas(num: int) -> None:
    rng = np.random.default_rng(num)
    rank_KS, slice_XS = rng.integers(UNRANKED, 80, (3, num)), rng.random((4, num)) < 0.5
    sums, expected = np.ones((3, 4, 6)), np.ones((3, 4, 6))
    for ranker, place, s in np.ndindex(3, 4, num):
        rank = int(rank_KS[ranker, s])
        if slice_XS[place, s] and rank != UNRANKED:
            hits = [float(0 < rank <= k) for k in (1, 10, 50)]
            gains = [1.0, *hits, hits[1] / math.log2(1 + max(rank, 1)), 1 / rank if rank else 0.0]
            expected[ranker, place] += gains
    score_ranks(sums, rank_KS, slice_XS, UNRANKED)
    np.testing.assert_allclose(sums, expected, rtol=1e-13)


def test_smoothed_rates_are_those_of_the_formula_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    count_VC, rows_R = rng.integers(0, 90, (20, 9)).astype(np.float32), rng.integers(0, 20, 30)
    overall_K = rng.random(2)
    count_RC = count_VC[rows_R].astype(np.float64)
    expected = (count_RC[:, 1:3] + 10.0 * overall_K) / (count_RC[:, :1] + 10.0)
    np.testing.assert_array_equal(smoothed_rates(count_VC, rows_R, overall_K, 10.0), expected)


def test_kinds_that_came_at_once_and_late_are_counted_apart() -> None:
    bits_R, is_new_R = np.array([0b101, 0b1, 0b110, 0b1000], np.uint32), np.array([1, 1, 0, 0], np.uint8)
    assert count_came(bits_R, is_new_R, 3).tolist() == [2, 0, 1, 0, 1, 1]
    assert count_came(bits_R[:0], is_new_R[:0], 3).tolist() == [0] * 6
