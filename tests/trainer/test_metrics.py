"""Prequential metrics against the formulas, one target at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.arrivals import Arrivals
from trainer.metrics.kinds import KindMetrics
from trainer.metrics.prequential import RANKERS, SLICES, UNRANKED, Predictions, PrequentialMetrics, rank_gains
from trainer.metrics.ring import Ring

KINDS = ("view", "like")
PARTS = ("probability_RK", "baseline_RK")


def predictions(rng: np.random.Generator, num: int, first: int = 0) -> Predictions:
    """Random predictions of the interactions from number ``first`` on: some misses, some not ranked (by two rankers, or
    any), some unknown items, three domains."""
    log_loss_S = rng.random(num) * 5
    log_loss_S[rng.random(num) < 0.2] = np.nan
    slices = rng.random((len(SLICES), num)) < 0.5
    slices[0] = True
    ranks = np.where(rng.random((len(RANKERS), num)) < 0.2, 0, rng.integers(1, 80, (len(RANKERS), num)))
    ranks[1:3, rng.random(num) < 0.5] = UNRANKED
    return Predictions(
        rank_KS=ranks,
        ranked_S=rng.random(num) < 0.8,
        slice_XS=slices,
        domain_S=rng.integers(0, 4, num),
        log_loss_S=log_loss_S,
        number_R=first + np.arange(num),
        probability_RK=rng.random((num, 2)),
        baseline_RK=rng.random((num, 2)),
        done_RK=rng.random((num, 2)) < (0.3, 0.8),
        is_new_R=np.ones(num, np.bool_),
    )


def slow_ranks(ranks: list[int]) -> dict[str, float | None]:
    ranks = [rank for rank in ranks if rank != UNRANKED]
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
    batches = [predictions(rng, size, sum(sizes[:nth])) for nth, size in enumerate(sizes)]
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
            labels = joined(batches, "done_RK")[-newest:, place].tolist()
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
    metrics, kinds = PrequentialMetrics(("view",), 100), np.arange(40)[:, None] < 10
    flat, some = np.full((40, 1), 0.25), predictions(np.random.default_rng(0), 40)
    metrics.add(replace(some, probability_RK=flat, baseline_RK=flat, done_RK=kinds))
    report = metrics.summary()["ranking"]["view"]
    assert report["ne"] == pytest.approx(1.0)
    assert report["auc"] == 0.5
    assert report["calibration"] == pytest.approx(1.0)


def test_what_is_predicted_twice_as_often_as_it_comes_is_calibrated_as_two() -> None:
    kinds, some = np.arange(40)[:, None] < 10, predictions(np.random.default_rng(0), 40)
    half = np.full((40, 1), 0.5)
    metrics = PrequentialMetrics(("view",), 100)
    metrics.add(replace(some, probability_RK=half, baseline_RK=half, done_RK=kinds))
    summary = metrics.summary()
    assert summary["ranking"]["view"]["calibration"] == summary["ranking_window"]["view"]["calibration"] == 2.0


def test_nothing_counted_is_no_number_at_all() -> None:
    summary = PrequentialMetrics(KINDS, 10).summary()
    assert summary["num_targets"] == 0
    assert summary["log_perplexity"] is None
    assert set(summary["retrieval"]["all"]["model"].values()) == {None}
    assert summary["ranking"]["all"] == {"ne": None, "ne_baseline": None}


@pytest.mark.parametrize("seed", range(4))
def test_kinds_that_come_late_count_as_if_they_had_been_there_at_once(seed: int) -> None:
    """Against the prediction that was made when the interaction was new, not against a later one."""
    rng = np.random.default_rng(seed)
    whole = predictions(rng, 60, 70)
    is_late = whole.done_RK & (rng.random((60, 2)) < 0.5)
    first, late = replace(whole, done_RK=whole.done_RK & ~is_late), rng.permutation(60)
    again = replace(
        predictions(rng, 60), number_R=whole.number_R[late], done_RK=is_late[late], is_new_R=np.zeros(60, np.bool_)
    )
    at_once, in_pieces = PrequentialMetrics(KINDS, 50), PrequentialMetrics(KINDS, 50)
    for metrics in (in_pieces, at_once):
        metrics.add(predictions(np.random.default_rng(seed + 9), 70))
    at_once.add(whole)
    for part in (first, again, again):  # what comes twice counts once
        in_pieces.add(part)
    for kind in (*KINDS, "all"):
        assert_close(in_pieces.summary()["ranking"][kind], at_once.summary()["ranking"][kind])
    assert in_pieces.summary()["num_targets"] == 130


def test_the_window_leaves_out_interactions_whose_kinds_are_still_to_come() -> None:
    """Every kind comes forty interactions later: a window of the newest would see the last forty without any."""
    rng, metrics = np.random.default_rng(0), PrequentialMetrics(("view",), 100)
    keys, coming, half = np.arange(1, 401), rng.random(400) < 0.5, np.full((20, 1), 0.5)
    none, every = np.zeros(20, np.bool_), np.ones(20, np.bool_)
    for start in range(0, 400, 20):
        number_R = metrics.arrivals.number(keys[start : start + 20], every)
        metrics.ranking.add(number_R, half, half, none[:, None], every)
        late = keys[max(0, start - 40) : max(0, start - 20)]
        late = late[coming[late - 1]]
        number_R = metrics.arrivals.number(late, none[: len(late)])
        guess = np.full((len(late), 1), 0.9)
        metrics.ranking.add(number_R, guess, guess, every[: len(late), None], none[: len(late)])
    lag = metrics.arrivals.lag
    assert 55 <= lag <= 60
    expected = 50 / coming[400 - 100 - lag : 400 - lag].sum()
    assert metrics.ranking.window_calibration() == pytest.approx(expected)


def test_no_entropy_is_negative_though_a_model_has_learned_what_came_by_the_time_it_comes() -> None:
    """Each kind comes a batch later, and by then the model is sure of it."""
    rng, metrics = np.random.default_rng(0), PrequentialMetrics(("view",), 1000)
    before, done = np.zeros(0, np.int64), np.zeros((0, 1), np.bool_)
    for nth in range(20):
        numbers, coming = 50 * nth + np.arange(50), rng.random((50, 1)) < 0.3
        probability = np.concatenate([np.full((len(before), 1), 0.99), np.full((50, 1), 0.3)])
        metrics.ranking.add(
            np.concatenate([before, numbers]),
            probability,
            probability,
            np.concatenate([done, np.zeros((50, 1), np.bool_)]),
            np.arange(len(before) + 50) >= len(before),
        )
        before, done = numbers[coming[:, 0]], np.ones((int(coming.sum()), 1), np.bool_)
    for name in ("ranking", "ranking_window"):
        assert metrics.summary()[name]["view"]["ne"] == pytest.approx(1.0, abs=0.02)
        assert metrics.summary()[name]["view"]["calibration"] == pytest.approx(1.0, abs=0.15)


def test_a_kind_of_a_forgotten_interaction_is_counted_as_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.metrics.kinds.MOST_REMEMBERED", 8)
    metrics, half = KindMetrics(("view",), 4, Arrivals()), np.full((1, 1), 0.5)
    for number in range(16):
        metrics.add(np.array([number]), half, half, np.zeros((1, 1), np.bool_), np.ones(1, np.bool_))
    for number in (3, 4):
        metrics.add(np.array([number]), half, half, np.ones((1, 1), np.bool_), np.zeros(1, np.bool_))
    assert metrics.num_too_late == 1
    assert metrics.report()["view"]["rate"] == pytest.approx(1 / 16)
    begun_later = KindMetrics(("view",), 4, Arrivals())
    begun_later.add(np.array([3]), half, half, np.ones((1, 1), np.bool_), np.zeros(1, np.bool_))
    assert begun_later.num_too_late == 1


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
    metrics, batches = fed(1, (30, 20), window=16)
    resumed, before = PrequentialMetrics(KINDS, 16), batches[-1]
    resumed.load_state_dict({name: array.copy() for name, array in metrics.state_dict().items()})
    for more in (5, 40, 3):
        batch = predictions(np.random.default_rng(more), more, metrics.ranking.num)
        late = replace(before, is_new_R=np.zeros_like(before.is_new_R), done_RK=before.done_RK[:, ::-1])
        for each in (batch, late):
            metrics.add(each)
            resumed.add(each)
        before = batch
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
