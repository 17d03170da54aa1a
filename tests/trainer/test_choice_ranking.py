"""Choices of a large catalogue are ranked among all rows over several steps, as they were when they were predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernels.memory import FEATURES, MemoryEvents, Ranks, memory_learn, memory_logits
from model import memory_groups
from tests.trainer.samples import MODEL, SAMPLED, World, assert_same_arrays, taught, twin
from tests.trainer.stage import RANKED_SO_FAR
from trainer.checkpoint.snapshot import learner_arrays
from trainer.examples.batch import JaggedBatch
from trainer.learner.memory_pass import MemoryPass
from trainer.learner.step import Learner
from wire.example import Example

pytestmark = pytest.mark.usefixtures("one_thread")
EVICTING = replace(SAMPLED, max_items=20, evict_every_steps=3)


def slowed(learner: Learner, rows_per_share: int = 1) -> Learner:
    """Such that a choice's ranks take several steps."""
    learner.memory_pass = MemoryPass(
        learner.memory, learner.items, learner.model, exact_rows=4, rows_per_share=rows_per_share
    )
    return learner


def slow_twin(learner: Learner) -> Learner:
    return twin(learner, lambda *given: slowed(Learner(*given)))


def at_once(learner: Learner, event: MemoryEvents, query_D: np.ndarray) -> Ranks:
    """The ranks by a comparison with all rows that is not spread over steps; changes nothing."""
    memory, width = learner.memory, learner.model_config.item_width - 1
    logit_AV = memory_logits(query_D[None], learner.items.weight.numpy(), memory.num_rows, width)
    done = memory_learn(memory.arrays.copy(), memory.num_rows, event, logit_AV, memory.rules)
    return Ranks(int(done.rank_R[0]), int(done.model_rank_R[0]), int(done.count_rank_R[0]), float(done.loss_R[0]))


def watched(learner: Learner) -> tuple[list[Ranks], list[Ranks], list[int]]:
    """What is expected of each choice that is begun, what comes of it, and in how many steps later."""
    ranking, expected, found, steps = learner.memory_pass.ranking, list[Ranks](), list[Ranks](), list[int]()
    begin, end = ranking.begin, ranking.end

    def begun(event: MemoryEvents, query_D: Any, logit_V: Any) -> None:
        expected.append(at_once(learner, event, query_D))
        steps.append(-learner.num_steps)
        begin(event, query_D, logit_V)

    def ended() -> Ranks:
        found.append(end())
        steps[len(found) - 1] += learner.num_steps
        return found[-1]

    ranking.begin, ranking.end = begun, ended  # type: ignore[method-assign]
    return expected, found, steps


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of features has room for so few values that it gives some back all the time."""
    monkeypatch.setattr(memory_groups, "MOST_GROUPS", 4)
    monkeypatch.setattr(memory_groups, "GIVEN_BACK", 2)


@pytest.mark.parametrize("config", [SAMPLED, EVICTING], ids=["all stay", "some are evicted"])
def test_a_choice_has_the_ranks_of_its_moment_steps_later(config: Any) -> None:
    learner, world = taught(config)
    expected, found, steps = watched(slowed(learner))
    for _ in range(60):
        learner.step(world.examples(3))
    assert len(found) > 3
    assert max(steps) > 3
    assert config is SAMPLED or learner.items.num_dropped > 0
    assert_same_ranks(found, expected)


@pytest.mark.usefixtures("crowded")
def test_values_that_give_their_numbers_back_change_no_ranks_that_are_under_way() -> None:
    world, learner = World(num_items=300), Learner(MODEL, SAMPLED)
    for _ in range(4):
        learner.step(world.examples(60))
    learner.memory.arrays.gain[:, FEATURES.index("lift")] = 2.0
    slowed(learner, 8)
    while not learner.memory_pass.ranking.is_begun:
        learner.step(world.examples(3))
    other, before = slow_twin(learner), learner.memory.arrays.group.copy()
    other.memory.give_back_groups(other.items.before_change)
    assert (other.memory.arrays.group != before)[100:].sum() > 20
    assert other.memory_pass.ranking.end() == learner.memory_pass.ranking.end()


def assert_same_ranks(found: list[Ranks], expected: list[Ranks]) -> None:
    for ours, theirs in zip(found, expected[: len(found)], strict=True):
        assert (ours.rank, ours.model_rank, ours.count_rank) == (theirs.rank, theirs.model_rank, theirs.count_rank)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)


def test_metrics_have_each_ranked_choice_once_with_what_was_known_of_it() -> None:
    learner, world = taught(SAMPLED)
    _, found, _ = watched(slowed(learner))
    before, met = learner.metrics.ranks[0, 0].copy(), list[tuple[JaggedBatch, int, int]]()

    def meet(batch: JaggedBatch, rank_S: Any, step: int) -> None:
        met.extend((batch, int(rank_S[at]), step) for at in np.flatnonzero(rank_S >= 0).tolist())

    learner.scoring.evaluator.on_ranked, batches = meet, dict[int, Sequence[Example]]()
    for _ in range(40):
        batches[learner.num_steps] = world.examples(3)
        learner.step(batches[learner.num_steps])
    ranks = [rank for _, rank, _ in met]
    assert [rank for rank in ranks if rank] == [each.rank for each in found]  # an item that was never met is a miss
    assert all(len(batch.starts_B1) - 1 == len({each.user for each in batches[step]}) for batch, _, step in met)
    sums = learner.metrics.ranks[0, 0] - before
    assert sums[0] == len(ranks)
    assert sums[2] == sum(0 < rank <= 10 for rank in ranks)


@pytest.mark.usefixtures("crowded")
def test_a_trainer_that_resumes_in_between_goes_on_to_the_bit() -> None:
    learner, world = taught(replace(SAMPLED, evict_every_steps=3))
    slowed(learner)
    while not learner.memory_pass.ranking.is_begun or learner.memory_pass.ranking.is_scored:
        learner.step(world.examples(3))
    assert learner.ranking_state()
    resumed = slow_twin(learner)
    assert_same_arrays(learner_arrays(resumed), learner_arrays(learner))
    for _ in range(30):
        examples = world.examples(3)
        learner.step(examples)
        resumed.step(examples)
    assert_same_arrays(learner_arrays(resumed), learner_arrays(learner))


def test_a_choice_that_a_build_with_fewer_features_began_gets_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, world = taught(SAMPLED)
    slowed(learner)
    while not learner.memory_pass.ranking.is_begun or learner.memory_pass.ranking.is_scored:
        learner.step(world.examples(3))
    kept = learner.ranking_state()
    for name, shape in (("gain", (23,)), ("listed_feature", (64, 23)), ("shortlist_norm", (3, 27))):
        with monkeypatch.context() as patched:
            patched.setattr(learner, "ranking_state", lambda: kept | {name: np.zeros(shape, np.float32)})  # noqa: B023
            resumed = slow_twin(learner)
        assert not resumed.memory_pass.ranking.is_begun
        for _ in range(20):
            resumed.step(world.examples(3))
        assert resumed.memory_pass.ranking.is_begun


def test_a_table_that_is_divided_while_a_choice_is_ranked_changes_nothing() -> None:
    """All rows that are left are scored then, but the ranks come, and are learned from, when they would have come."""
    learner, world = taught(SAMPLED)
    slowed(learner)
    while not learner.memory_pass.ranking.is_begun or learner.memory_pass.ranking.is_scored:
        learner.step(world.examples(3))
    divided = slow_twin(learner)
    divided.items.before_change(None)
    assert not divided.memory_pass.ranking.is_scored
    for _ in range(30):
        examples = world.examples(3)
        learner.step(examples)
        divided.step(examples)
    arrays = [
        {name: array for name, array in learner_arrays(each).items() if name not in RANKED_SO_FAR}
        for each in (divided, learner)
    ]
    assert_same_arrays(*arrays)
