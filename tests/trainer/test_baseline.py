"""The baselines against counting again from the start, every time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.trainer.samples import MODEL, TRAINER, World, predictions_of
from trainer.baseline import PopularityBaseline, RateBaseline
from trainer.step import Learner

pytestmark = pytest.mark.usefixtures("one_thread")


def slow_rank(counts: Counter[int], target: int, rivals: set[int]) -> int:
    """1 + those met more often + half of those met as often, rounded up."""
    others = [counts[row] for row in rivals - {target}]
    return 1 + sum(c > counts[target] for c in others) + (sum(c == counts[target] for c in others) + 1) // 2


@pytest.mark.parametrize("seed", range(5))
def test_popularity_ranks_are_those_of_a_recount(seed: int) -> None:
    rng, baseline, history = np.random.default_rng(seed), PopularityBaseline(), Counter[int]()
    for step in range(8):
        num_rows = 10 + 20 * step  # rows come, beyond what there was room for
        live_V = rng.random(num_rows) < 0.8
        live_V[0] = False
        live = set(np.flatnonzero(live_V).tolist())
        targets = rng.integers(1, num_rows, 7)
        excluded = [np.unique(rng.integers(1, num_rows, rng.integers(0, 6))) for _ in targets]
        offsets = np.cumsum([0, *map(len, excluded)])
        among_all, among_unseen = baseline.ranks(targets, live_V, np.concatenate(excluded), offsets)
        for target, seen, ours, unseen in zip(targets.tolist(), excluded, among_all, among_unseen, strict=True):
            if target in live:
                assert ours == slow_rank(history, target, live)
                assert unseen == slow_rank(history, target, live - set(seen.tolist()))
        met = np.minimum(rng.geometric(0.1, 40), num_rows - 1)
        baseline.learn(met)
        history.update(met.tolist())
        gone = rng.integers(1, num_rows, 1)
        baseline.forget(gone)
        history[int(gone[0])] = 0


def test_everything_equally_popular_ranks_in_the_middle() -> None:
    live_V = np.ones(11, np.bool_)
    ranks, _ = PopularityBaseline().ranks(np.array([3]), live_V, np.zeros(0, np.int64), np.array([0, 0]))
    assert ranks.tolist() == [6]


@pytest.mark.parametrize("seed", range(3))
def test_rates_are_those_of_a_recount(seed: int) -> None:
    rng, baseline = np.random.default_rng(seed), RateBaseline(2, strength=4.0)
    shown, done = Counter[int](), dict[int, np.ndarray]()
    for step in range(8):
        rows = rng.integers(0, 20 + 30 * step, 12)
        total = sum(shown.values())
        prior = (sum(done.values(), np.zeros(2)) + 1) / (total + 2)
        expected = [(done.get(row, np.zeros(2)) + 4 * prior) / (shown[row] + 4) for row in rows.tolist()]
        np.testing.assert_allclose(baseline.predict(rows), expected)
        kinds = (rng.random((12, 2)) < 0.4).astype(np.float32)
        baseline.learn(rows, kinds)
        for row, what in zip(rows.tolist(), kinds, strict=True):
            shown[row] += 1
            done[row] = done.get(row, np.zeros(2)) + what
        gone = int(rows[0])
        baseline.forget(np.array([gone]))
        shown[gone], done[gone] = 0, np.zeros(2)


def test_in_the_stream_the_baselines_are_asked_before_they_are_told() -> None:
    learner, world, counts = Learner(MODEL, TRAINER), World(4), Counter[int]()
    total, done = 0, np.zeros(3)
    for _ in range(6):
        examples = world.examples(8)
        said, prior = predictions_of(learner, examples), (done + 1) / (total + 2)
        nth = 0
        told = Counter[int]()
        for each in examples:
            first = max(0, len(each.interactions) - each.num_new - MODEL.max_context)
            items = each.interactions.item_hash.tolist()
            for index in range(len(items) - each.num_new, len(items)):
                known = counts[items[index]] > 0
                everything = {item for item, count in counts.items() if count}
                seen = set(items[first:index])
                expected = [
                    slow_rank(counts, items[index], rivals) * known for rivals in (everything, everything - seen)
                ]
                assert said.rank_KR[1:, nth].tolist() == expected
                if not known:
                    np.testing.assert_allclose(said.baseline_RK[nth], prior)
                told[items[index]] += 1
                total, nth = total + 1, nth + 1
                done += [each.interactions.action_bits[index] >> bit & 1 for bit in range(3)]
        counts += told
