"""The baselines against a full recount each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import trainer.metrics.baseline
from model.distinct import counted
from tests.trainer.samples import MODEL, TRAINER, World, folded, pieces_of, predictions_of, twin
from trainer.learner.step import Learner
from trainer.metrics.baseline import PopularityBaseline, least_count, places_of
from trainer.metrics.evaluator import POPULAR_STEPS, Evaluator, ranks_popular
from trainer.metrics.prequential import UNRANKED, PrequentialMetrics

pytestmark = pytest.mark.usefixtures("one_thread")


def same(count: int) -> int:
    return count


def coarse(count: int) -> int:
    """The first three bits, as if counts from 8 on were large."""
    shift = max(0, count.bit_length() - 3)
    return count >> shift << shift


def slow_rank(counts: Counter[int], target: int, rivals: set[int]) -> int:
    """1 + those seen more often + half of those seen equally often, rounded up."""
    others = [counts[row] for row in rivals - {target}]
    return 1 + sum(c > counts[target] for c in others) + (sum(c == counts[target] for c in others) + 1) // 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("fine_bits", "seen_as"), [(12, same), (2, coarse)])
def test_popularity_ranks_are_those_of_a_recount(
    seed: int, fine_bits: int, seen_as: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly for small counts; the larger ones are equal to those that begin with the same bits."""
    monkeypatch.setattr(trainer.metrics.baseline, "FINE_BITS", fine_bits)
    rng, baseline, history = np.random.default_rng(seed), PopularityBaseline(), Counter[int]()
    for step in range(8):
        num_rows = 10 + 20 * step  # more rows than there was room for
        live = {row for row in range(1, num_rows) if history[row] or rng.random() < 0.8}
        seen = Counter({row: seen_as(history[row]) for row in live})
        rows = np.array(sorted(live))
        targets = rng.choice(rows, 7)
        excluded = [np.append(rng.choice(rows, rng.integers(0, 40)), 0) for _ in targets]  # again and again, and none
        offsets = np.cumsum([0, *map(len, excluded)])
        met = np.concatenate(excluded), offsets[:-1], offsets[1:]
        among_all, among_unseen = baseline.ranks(targets, len(live), *met)
        for target, known, ours, unseen in zip(targets.tolist(), excluded, among_all, among_unseen, strict=True):
            assert ours == slow_rank(seen, target, live)
            assert unseen == slow_rank(seen, target, live - set(known.tolist()))
        ascending = sorted(seen[row] for row in live)
        assert baseline.at_share(0.8, len(live)) == ascending[int(len(live) * 0.8)]
        resumed = PopularityBaseline()
        resumed.load(baseline.count_V)
        baseline = resumed if step % 2 else baseline
        chosen = np.minimum(rng.geometric(0.1, 400 if step > 3 else 40), num_rows - 1)
        baseline.learn(*counted(chosen))
        history.update(chosen.tolist())
        gone = rng.integers(1, num_rows, 1)
        baseline.forget(gone)
        history[int(gone[0])] = 0


def test_what_a_step_costs_does_not_grow_with_the_counts() -> None:
    """A year of 1,000 choices a second of one item; each number is the one of a recount."""
    baseline, rows = PopularityBaseline(), np.arange(1, 51)
    for count in (1, 5_000, 10**7, 31 * 10**9):
        baseline.learn(rows, count * rows)
        ranks, _ = baseline.ranks(rows, 50, np.zeros(0, np.int64), *np.zeros((2, 50), np.int64))
        assert ranks.tolist() == list(range(50, 0, -1)), "counts that differ by 2% are told apart"
    assert baseline._with_BC.nbytes + baseline._block_B.nbytes < 3 << 20
    counts = np.concatenate([np.arange(20_000), 2 ** np.arange(13, 50), 2 ** np.arange(14, 50) - 1])
    places = places_of(np.sort(counts))
    assert (places[:8192] == np.arange(8192)).all()
    assert (np.diff(places) >= 0).all()
    least = least_count(places)
    assert (least <= np.sort(counts)).all()
    assert (np.sort(counts) - least <= np.sort(counts) / 4096).all()
    assert (places_of(least) == places).all()


@pytest.mark.parametrize("period", [1, 2, 3, 4, 7, 24, 60])
def test_the_most_popular_are_ranked_in_an_even_share_of_the_steps_whatever_recurs_among_them(period: int) -> None:
    assert ranks_popular(0)
    shares = [np.mean([ranks_popular(step) for step in range(first, 24_000, period)]) for first in range(period)]
    assert shares == pytest.approx([1 / POPULAR_STEPS] * period, abs=0.01)


def test_everything_equally_popular_ranks_in_the_middle() -> None:
    none = np.zeros(1, np.int64)
    ranks, _ = PopularityBaseline().ranks(np.array([3]), 11, none, none, none)
    assert ranks.tolist() == [6]


def test_in_the_stream_the_baselines_are_asked_before_they_are_told() -> None:
    learner, world = Learner(MODEL, TRAINER), World(4)
    wanted, shown = Counter[int](), Counter[int]()  # by item: as a target of retrieval, and as a new interaction
    done = np.zeros(3)
    for step in range(12):
        examples = world.examples(8)
        histories, pieces = folded(learner, examples).users, pieces_of(examples)
        before = twin(learner)
        said, prior = predictions_of(learner, examples), (done + 1) / (shown.total() + 2)
        ranks, retrieved = said.rank_KS[1:3].T.tolist(), list[int]()
        for nth, piece in enumerate(pieces):
            history = histories[piece.user]
            first_target = min(each.place for each in pieces if each.user == piece.user)
            past = history.rows(max(0, first_target - MODEL.max_context), piece.place)["item"].tolist()
            row = history.rows(piece.place, piece.place + 1)[0]
            item, known = int(row["item"]), {each for each, count in shown.items() if count}
            if not int(row["bits"]) & ~piece.bits and piece.bits:
                rivals = [slow_rank(wanted, item, each) * (item in known) for each in (known, known - set(past))]
                assert ranks[len(retrieved)] == (rivals if ranks_popular(step) else [UNRANKED] * 2)
                retrieved.append(item)
            if item not in known:
                np.testing.assert_allclose(said.baseline_RK[nth], prior)
        for piece in pieces:
            item = int(histories[piece.user].rows(piece.place, piece.place + 1)["item"][0])
            shown[item] += piece.is_new
            done += [piece.bits >> bit & 1 for bit in range(3)]
        wanted.update(retrieved)
        assert before.num_interactions + sum(piece.is_new for piece in pieces) == learner.num_interactions


def test_which_choices_are_ranked_depends_on_seed_and_step_alone() -> None:
    config = replace(TRAINER, metric_share=0.5, seed=7)
    steps = [3, 0, 3, 1 << 40, 1, 3]
    evaluator = Evaluator(config, PopularityBaseline(), PrequentialMetrics(MODEL.kinds, 16))
    for step in steps:
        random = np.random.Generator(np.random.Philox(key=[8, step])).random(99)
        np.testing.assert_array_equal(evaluator._ranked(99, step), random < 0.5)
