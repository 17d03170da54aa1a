"""Values are predicted beside the kinds, each before it is learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.hstu import from_log_value, log_value
from tests.trainer.samples import MODEL, TRAINER, World, columns, example, twin
from trainer.config import TrainerConfig
from trainer.learner.step import Learner
from trainer.metrics.prequential import PrequentialMetrics
from trainer.metrics.values import ValueMetrics
from trainer.set_aside import pass_over
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


def valued(value: tuple[float, float], num_new: int, feedback: dict[int, int], number: int) -> Example:
    """Two interactions of one user, with these values by now."""
    rows = columns(np.random.default_rng(0), 2, 8)
    rows = replace(rows, value=np.array(value, np.float32), action_bits=np.array([1, 1], np.uint32))
    return example(rows, num_new, user="u", number=number, feedback=feedback)


@pytest.mark.parametrize("trainer", [TRAINER, replace(TRAINER, feedback="wait", feedback_window_s=0.001)])
def test_a_value_that_came_alone_is_learned_with_the_next_kind(trainer: TrainerConfig) -> None:
    learner, nan = Learner(VALUED, trainer), np.nan
    taught = [
        (valued((3.0, nan), 2, {}, 0), 3.0),
        (valued((3.0, 5.0), 0, {}, 1), None),
        (valued((3.0, 5.0), 0, {1: 2}, 2), 5.0),
        (valued((9.0, 5.0), 0, {0: 2}, 3), 9.0),
    ]
    if trainer.feedback == "wait":
        taught = [(taught[0][0], None), (watched(1), 3.0), *taught[1:]]
    for each, value in taught:
        before = learner.metrics.values.sums.copy()
        learner.step([each])
        num, _, total, _ = learner.metrics.values.sums - before
        assert num == (value is not None), each.number
        assert total == pytest.approx(0.0 if value is None else np.log1p(value), rel=1e-6)


def test_a_value_of_a_step_that_is_set_aside_is_learned_with_the_next_kind() -> None:
    learner = Learner(VALUED, TRAINER)
    learner.step([valued((np.nan, np.nan), 2, {}, 0)])
    pass_over(learner, [valued((5.0, np.nan), 0, {0: 2}, 1)])
    learner.step([valued((5.0, np.nan), 0, {0: 4}, 2)])
    assert learner.metrics.values.sums[0] == 1


def test_who_starts_from_a_version_goes_on_with_the_mean_of_its_values() -> None:
    learner, started = Learner(VALUED, TRAINER), ValueMetrics()
    for number in range(3):
        learner.step([watched(number)])
    values = learner.metrics.values
    started.resume(values.report(), float(learner.model.value_mean.detach()))
    np.testing.assert_allclose(started.sums, values.sums, rtol=1e-5)
    started.resume(ValueMetrics().report(), 0.0)
    assert not started.sums.any()


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
