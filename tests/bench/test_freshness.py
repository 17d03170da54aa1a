"""A copy predicts what the learner would have predicted when it was made, and nothing that came later."""

from __future__ import annotations

import dataclasses

import numpy as np

from bench.freshness import AGES, measure, rows_of
from bench.streams.events import arrivals
from headrace.config import Settings
from headrace.file_training import file_configs
from kernels.memory import MemoryOutcome
from tests.bench.samples import Actions, chain, settings_of
from trainer.examples.batch import build_batch
from trainer.frozen import Frozen
from trainer.learner.step import Learner
from wire.history import Histories


def _one_a_step(actions: Actions) -> Settings:
    settings = settings_of(actions)
    trainer = dataclasses.replace(settings.trainer, max_step_targets=1, file_take=1)
    return settings.model_copy(update={"trainer": trainer})


def test_a_copy_that_is_renewed_for_every_choice_ranks_as_the_learner_does() -> None:
    actions = chain(num=200, num_items=30)
    settings = _one_a_step(actions)
    model = file_configs(settings, actions[0])[2]
    learner, histories = Learner(model, settings.trainer), Histories(model.max_context)
    made: list[MemoryOutcome] = []
    learn = learner.memory.learn
    learner.memory.learn = lambda events, logits: made.append(learn(events, logits)) or made[-1]  # type: ignore[method-assign]
    copies = []
    for examples in arrivals(settings, actions):
        batch = build_batch(examples, histories, model)
        if learner.num_steps:
            copies.append(Frozen.of(learner).predict(batch)[0])
        learner.step(examples)
    live = MemoryOutcome.join(made[1:]).rank_R
    np.testing.assert_array_equal(np.concatenate(copies), live)
    assert (live > 0).sum() > 100


def test_a_copy_does_not_change_with_the_learner_nor_by_predicting() -> None:
    actions = chain(num=200)
    settings = settings_of(actions)
    model = file_configs(settings, actions[0])[2]
    learner, histories = Learner(model, settings.trainer), Histories(model.max_context)
    steps = list(arrivals(settings, actions))
    for examples in steps[:6]:
        build_batch(examples, histories, model)
        learner.step(examples)
    copy = Frozen.of(learner)
    batch = build_batch(steps[6], histories, model)
    before = copy.predict(batch)
    for examples in steps[6:]:
        learner.step(examples)
    for one, two in zip(before, copy.predict(batch), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_seldomer_weights_are_renewed_the_worse_they_know_what_is_new() -> None:
    """Items that live for an hour are unknown to weights of yesterday."""
    actions = chain(num=600, num_items=10)
    for number, action in enumerate(actions):
        action["item"] = f"{number // 60}/{action['item']}"
        action["timestamp"] += 60_000 * number
    found, probe = measure(settings_of(actions), actions)
    assert found["every step"]["hr10"] > found["an hour"]["hr10"] > found["a week"]["hr10"]
    assert found["every step"]["num"] == found["a week"]["num"]
    assert len(probe.found) == len(AGES)
    assert len(rows_of("s", found, probe)) == len(found) + len(AGES)
