"""Values are predicted beside the kinds, each before it is learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.hstu import from_log_value, log_value
from tests.trainer.samples import MODEL, TRAINER, World, columns, example, twin
from trainer.learner.step import Learner
from trainer.metrics.prequential import PrequentialMetrics
from trainer.metrics.values import ValueMetrics
from wire.example import Example

VALUED = replace(MODEL, predict_value=True)


def watched(number: int) -> Example:
    """A user's interactions; items of even number are worth a minute, the others a second."""
    rows = columns(np.random.default_rng(number), 6, 8)
    seconds = np.where(rows.item_hash // 7919 % 2 == 0, 60.0, 1.0).astype(np.float32)
    return example(replace(rows, value=np.where(np.arange(6) % 3 == 0, np.nan, seconds).astype(np.float32)), 6)


def test_values_are_learned_and_better_than_their_mean() -> None:
    learner = Learner(replace(VALUED, use_value=False), TRAINER)
    for number in range(60):
        learner.step([watched(4 * number + each) for each in range(4)])
    report = learner.metrics.summary()["values"]
    assert report["num"] == 60 * 4 * 4
    assert report["nse"] < 0.7


def test_a_value_counts_as_it_was_predicted_before() -> None:
    learner = Learner(VALUED, TRAINER)
    learner.step([watched(1)])
    before, example_2 = learner.metrics.values.sums.copy(), watched(2)
    twice = twin(learner)
    learner.step([example_2])
    first = learner.metrics.values.sums - before
    twice.step([example_2])
    np.testing.assert_array_equal(twice.metrics.values.sums - before, first)
    assert first[1] > 0


def test_without_it_no_weight_is_for_values_and_none_is_counted() -> None:
    learner, world = Learner(MODEL, TRAINER), World()
    learner.step(world.examples(8))
    assert not any("value_out" in name or "value_mean" in name for name, _ in learner.model.named_parameters())
    assert learner.metrics.summary()["values"] == {"num": 0, "mse": None, "nse": None}


def test_the_error_of_the_mean_over_the_variance_is_one() -> None:
    metrics, given = ValueMetrics(), np.array([1.0, 2.0, 6.0])
    metrics.add(given)
    metrics.add_errors(np.full(3, 3.0), given)
    assert metrics.report() == {"num": 3, "mse": pytest.approx(14 / 3), "nse": pytest.approx(1.0)}
    resumed = PrequentialMetrics(("view",), 10)
    kept = PrequentialMetrics(("view",), 10)
    kept.values.add(given[:2])
    kept.values.add_errors(np.zeros(2), given[:2])
    resumed.load_state_dict(kept.state_dict())
    assert resumed.values.report() == kept.values.report()


def test_the_scale_of_values_has_an_inverse() -> None:
    value = torch.tensor([-3.5, 0.0, 0.25, 1e6], dtype=torch.float64)
    torch.testing.assert_close(from_log_value(log_value(value)), value)
