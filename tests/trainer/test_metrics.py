"""Prequential metrics against the formulas, one target at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.metrics import LATER, RANKERS, SLICES, Predictions, PrequentialMetrics, Ring, outcomes, rank_gains

KINDS = ("view", "like")
PARTS = ("probability_RK", "baseline_RK")


def predictions(rng: np.random.Generator, num: int) -> Predictions:
    """Random ones; some misses, some not ranked, some unknown, three domains."""
    log_loss_S = rng.random(num) * 5
    log_loss_S[rng.random(num) < 0.2] = np.nan
    slices = rng.random((len(SLICES), num)) < 0.5
    slices[0] = True
    return Predictions(
        rank_KS=np.where(rng.random((len(RANKERS), num)) < 0.2, 0, rng.integers(1, 80, (len(RANKERS), num))),
        ranked_S=rng.random(num) < 0.8,
        slice_XS=slices,
        domain_S=rng.integers(0, 4, num),
        log_loss_S=log_loss_S,
        probability_RK=rng.random((num, 2)),
        baseline_RK=rng.random((num, 2)),
        outcome_RK=(rng.random((num, 2)) < (0.3, 0.8)).astype(np.float32),
    )


def slow_ranks(ranks: list[int]) -> dict[str, float | None]:
    if not ranks:
        return dict.fromkeys(("hr1", "hr10", "hr50", "ndcg10", "mrr"))
    hit = [rank for rank in ranks if rank > 0]
    return {
        **{f"hr{k}": sum(rank <= k for rank in hit) / len(ranks) for k in (1, 10, 50)},
        "ndcg10": sum(1 / math.log2(1 + rank) for rank in hit if rank <= 10) / len(ranks),
        "mrr": sum(1 / rank for rank in hit) / len(ranks),
    }


def slow_auc(scores: list[float], labels: list[bool]) -> float | None:
    pairs = [(p > n) + (p == n) / 2 for p, lp in zip(scores, labels, strict=True) if lp
             for n, ln in zip(scores, labels, strict=True) if not ln]  # fmt: skip
    return sum(pairs) / len(pairs) if pairs else None


def slow_entropy(scores: list[float], labels: list[bool]) -> tuple[float, float]:
    """(log loss, entropy of the average rate), summed."""
    loss = -sum(math.log(score if label else 1 - score) for score, label in zip(scores, labels, strict=True))
    rate = sum(labels) / len(labels)
    entropy = 0.0 if rate in (0, 1) else -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    return loss, entropy * len(labels)


def assert_close(ours: dict[str, Any], theirs: dict[str, Any], abs_: float = 1e-9) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == (None if value is None else pytest.approx(value, abs=abs_)), name


def fed(seed: int, sizes: tuple[int, ...], window: int) -> tuple[PrequentialMetrics, list[Predictions]]:
    rng, metrics = np.random.default_rng(seed), PrequentialMetrics(KINDS, window)
    batches = [predictions(rng, size) for size in sizes]
    for batch in batches:
        metrics.add(batch)
    return metrics, batches


def joined(batches: list[Predictions], name: str) -> Any:
    axis = 1 if name in ("rank_KS", "slice_XS") else 0
    return np.concatenate([getattr(batch, name) for batch in batches], axis=axis)


@pytest.mark.parametrize("seed", range(4))
def test_hit_rates_ndcg_and_reciprocal_ranks_are_those_of_the_formulas(seed: int) -> None:
    metrics, batches = fed(seed, (30, 1, 0, 60), window=40)
    summary, ranked = metrics.summary(), joined(batches, "ranked_S")
    ranks, slices, domain = (joined(batches, name) for name in ("rank_KS", "slice_XS", "domain_S"))
    for which, ranker in enumerate(RANKERS):
        for place, name in enumerate(SLICES):
            chosen = ranks[which][ranked & slices[place]].tolist()
            assert_close(summary["retrieval"][name][ranker], slow_ranks(chosen))
            assert summary["retrieval"][name]["num"] == len(chosen)
        for each in (1, 2, 3):
            chosen = ranks[which][ranked & (domain == each)].tolist()
            assert_close(summary["domains"][str(each)][ranker], slow_ranks(chosen))
        assert_close(summary["retrieval_window"][ranker], slow_ranks(ranks[which][ranked][-40:].tolist()))
    assert "0" not in summary["domains"]
    assert summary["num_targets"] == 91


@pytest.mark.parametrize("seed", range(4))
def test_normalised_entropy_and_auc_are_those_of_the_formulas(seed: int) -> None:
    metrics, batches = fed(seed, (30, 1, 0, 60), window=50)
    summary = metrics.summary()
    for name, newest in (("ranking", 91), ("ranking_window", 50)):
        totals = np.zeros(3)
        for place, kind in enumerate(KINDS):
            labels = (joined(batches, "outcome_RK")[-newest:, place] > 0.5).tolist()
            model, base = (
                joined(batches, part)[-newest:, place].tolist() for part in ("probability_RK", "baseline_RK")
            )
            (loss, entropy), (base_loss, _) = slow_entropy(model, labels), slow_entropy(base, labels)
            expected = {
                "rate": sum(labels) / newest,
                "ne": loss / entropy,
                "ne_baseline": base_loss / entropy,
                "auc": slow_auc(model, labels),
                "calibration": sum(model) / sum(labels),
            }
            assert_close(summary[name][kind], expected, abs_=2e-3)
            totals += (loss, base_loss, entropy)
        expected = {"ne": totals[0] / totals[2], "ne_baseline": totals[1] / totals[2]}
        assert_close(summary[name]["all"], expected, abs_=1e-5)


def test_the_log_perplexity_is_the_mean_over_known_items() -> None:
    metrics, batches = fed(0, (20, 30), window=10)
    losses = joined(batches, "log_loss_S")
    assert metrics.summary()["log_perplexity"] == pytest.approx(np.nanmean(losses))


def test_predicting_the_average_rate_has_a_normalised_entropy_of_one() -> None:
    metrics, kinds = PrequentialMetrics(("view",), 100), np.zeros((40, 1), np.float32)
    kinds[:10] = 1
    rng = np.random.default_rng(0)
    flat = np.full((40, 1), 0.25)
    some = predictions(rng, 40)
    metrics.add(
        Predictions(some.rank_KS, some.ranked_S, some.slice_XS, some.domain_S, some.log_loss_S, flat, flat, kinds)
    )
    report = metrics.summary()["ranking"]["view"]
    assert report["ne"] == pytest.approx(1.0)
    assert report["auc"] == 0.5
    assert report["calibration"] == pytest.approx(1.0)


def test_what_is_predicted_twice_as_often_as_it_comes_is_calibrated_as_two() -> None:
    kinds, some = np.zeros((40, 1), np.float32), predictions(np.random.default_rng(0), 40)
    kinds[:10] = 1
    half = np.full((40, 1), 0.5)
    metrics = PrequentialMetrics(("view",), 100)
    metrics.add(replace(some, probability_RK=half, baseline_RK=half, outcome_RK=kinds))
    summary = metrics.summary()
    assert summary["ranking"]["view"]["calibration"] == summary["ranking_window"]["view"]["calibration"] == 2.0


def test_nothing_counted_is_no_number_at_all() -> None:
    summary = PrequentialMetrics(KINDS, 10).summary()
    assert summary["num_targets"] == 0
    assert summary["log_perplexity"] is None
    assert set(summary["retrieval"]["all"]["model"].values()) == {None}
    assert summary["ranking"]["all"] == {"ne": None, "ne_baseline": None}


def test_an_outcome_says_what_came_and_what_is_still_to_come() -> None:
    learned = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    found = outcomes(learned, np.array([True, False, False]))
    np.testing.assert_array_equal(found, [[1, 0], [LATER, np.nan], [np.nan, LATER]])


@pytest.mark.parametrize("seed", range(4))
def test_kinds_that_come_late_count_as_if_they_had_been_there_at_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = predictions(rng, 60)
    is_late = (whole.outcome_RK > 0.5) & (rng.random((60, 2)) < 0.5)
    first = replace(whole, outcome_RK=np.where(is_late, 0, whole.outcome_RK))
    again = replace(predictions(rng, 60), probability_RK=whole.probability_RK, baseline_RK=whole.baseline_RK)
    later = replace(again, outcome_RK=np.where(is_late, LATER, np.nan).astype(np.float32))
    at_once, in_pieces = PrequentialMetrics(KINDS, 1000), PrequentialMetrics(KINDS, 1000)
    at_once.add(whole)
    for part in (first, later):
        in_pieces.add(part)
    for name in ("ranking", "ranking_window"):
        for kind in KINDS:
            assert_close(in_pieces.summary()[name][kind], at_once.summary()[name][kind], abs_=1e-5)
    assert in_pieces.summary()["num_targets"] == 60


def test_a_miss_gains_nothing() -> None:
    np.testing.assert_allclose(rank_gains(np.array([0])), [[1], [0], [0], [0], [0], [0]])
    np.testing.assert_allclose(rank_gains(np.array([1])), np.ones((6, 1)))
    np.testing.assert_allclose(rank_gains(np.array([10, 11]))[4], [1 / math.log2(11), 0])


@given(size=st.integers(1, 9), batches=st.lists(st.integers(0, 20), max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_ring_keeps_the_newest_rows(size: int, batches: list[int]) -> None:
    ring, everything, start = Ring(size, 1), list[int](), 0
    for num in batches:
        ring.extend(np.arange(start, start + num)[:, None])
        everything += range(start, start + num)
        start += num
    assert sorted(ring.view()[:, 0].tolist()) == everything[-size:]


def test_metrics_go_on_where_they_were_saved() -> None:
    metrics, _ = fed(1, (30, 20), window=16)
    resumed = PrequentialMetrics(KINDS, 16)
    resumed.load_state_dict({name: array.copy() for name, array in metrics.state_dict().items()})
    for more in (5, 40, 3):
        batch = predictions(np.random.default_rng(more), more)
        metrics.add(batch)
        resumed.add(batch)
        assert metrics.summary() == resumed.summary()


def test_a_window_of_another_size_starts_anew_and_the_sums_stay() -> None:
    metrics, _ = fed(1, (30, 20), window=16)
    resumed = PrequentialMetrics(KINDS, 8)
    resumed.load_state_dict(metrics.state_dict())
    ours, theirs = resumed.summary(), metrics.summary()
    assert ours["retrieval"] == theirs["retrieval"]
    assert ours["ranking"] == theirs["ranking"]
    assert ours["retrieval_window"]["num"] == 0


def test_domains_beyond_what_is_kept_are_left_out_and_counted_in_all() -> None:
    metrics, rng = PrequentialMetrics(KINDS, 10), np.random.default_rng(0)
    batch = predictions(rng, 100)
    batch.domain_S[:], batch.ranked_S[:] = np.arange(1, 101), True
    metrics.add(batch)
    summary = metrics.summary()
    assert len(summary["domains"]) == 32
    assert summary["retrieval"]["all"]["num"] == 100
