"""Where items that a user has met are left out, no server recommends a repeat: it counts as a miss, for everybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.trainer.samples import MODEL, SAMPLED, TRAINER, World, assert_same_arrays
from tests.trainer.test_choice_ranking import slowed
from trainer.checkpoint.snapshot import learner_arrays
from trainer.config import TrainerConfig
from trainer.examples.batch import JaggedBatch
from trainer.frozen import Frozen
from trainer.learner.step import Learner
from trainer.metrics.prequential import RANKERS

pytestmark = pytest.mark.usefixtures("one_thread")
Ranked = list[tuple[bool, int]]
"""Whether each choice is a repeat, and its rank."""


def repeats_of(batch: JaggedBatch) -> list[bool]:
    """Of each choice of a batch, by the definition."""
    found = []
    for target in batch.choice_S.tolist():
        first, where = batch.starts_B1[batch.owner_R[target]], batch.target_R[target]
        found.append(bool((batch.item_n[first:where] == batch.item_n[where]).any()))
    return found


def ranked_by(learner: Learner, num_steps: int = 25) -> tuple[Ranked, Ranked]:
    """The choices of some steps as the learner ranks them, and as a copy of the moment before each step does."""
    live, frozen, copies, world = Ranked(), Ranked(), list[Frozen](), World(num_users=8, num_items=14)

    def meet(batch: JaggedBatch, rank_S: Any, _: int) -> None:
        repeats = repeats_of(batch)
        live.extend((repeats[at], int(rank_S[at])) for at in np.flatnonzero(rank_S >= 0).tolist())
        frozen.extend(zip(repeats, copies[-1].rank_choices(batch, np.arange(len(repeats))).tolist(), strict=True))

    learner.scoring.evaluator.on_ranked = meet
    for _ in range(num_steps):
        copies.append(Frozen.of(learner))
        learner.step(world.examples(8))
    return live, frozen


@pytest.mark.parametrize(
    ("config", "make"),
    [(TRAINER, Learner), (replace(TRAINER, backend="reference"), Learner),
     (SAMPLED, lambda *given: slowed(Learner(*given)))], ids=["exact", "reference", "sampled"],
)  # fmt: skip
def test_a_repeat_is_a_miss_exactly_where_repeats_are_left_out(
    config: TrainerConfig, make: Callable[..., Learner]
) -> None:
    learner = make(MODEL, replace(config, exclude_seen="always"))
    for ranked in ranked_by(learner):
        assert max(rank for is_repeat, rank in ranked if is_repeat) == 0
        assert max(rank for is_repeat, rank in ranked if not is_repeat) > 0
    for ranked in ranked_by(make(MODEL, replace(config, exclude_seen="never"))):
        assert max(rank for is_repeat, rank in ranked if is_repeat) > 0


def test_what_the_model_cannot_hit_no_baseline_hits() -> None:
    learner = Learner(MODEL, replace(TRAINER, exclude_seen="always"))
    told, add = list[tuple[Any, Any]](), learner.metrics.add_ranks
    learner.metrics.add_ranks = lambda *given: (told.append(given), add(*given))[1]  # type: ignore[method-assign]
    ranked_by(learner)
    rank_KN = np.concatenate([given[0] for given in told], axis=1)
    missed = rank_KN[RANKERS.index("model")] == 0
    assert rank_KN[:, missed].max() == 0
    assert (rank_KN[RANKERS.index("popular")] > 0).any()


def test_how_choices_are_counted_changes_nothing_that_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (Learner(MODEL, replace(TRAINER, exclude_seen="always")) for _ in range(2))
    ranked_by(ours)
    monkeypatch.setattr("kernels.memory.MemoryOutcome.missed", lambda outcome, _: outcome)
    live, _ = ranked_by(theirs)
    assert any(is_repeat and rank > 0 for is_repeat, rank in live), "they counted repeats as hits"
    kept = [{name: each for name, each in learner_arrays(learner).items() if not name.startswith("metrics.")}
            for learner in (ours, theirs)]  # fmt: skip
    assert_same_arrays(*kept)
