"""The logistic regression that `bench.live_ranking` compares the odds with."""

from __future__ import annotations

import numpy as np
import pytest

from bench.live_ranking import LEARNING_RATES, LogisticRegression
from stream.simulate import KINDS

BY_RATE = np.linspace(0.01, 0.9, len(KINDS))


@pytest.mark.parametrize("rate", LEARNING_RATES)
def test_it_begins_with_the_items_rate_and_learns_what_that_does_not_know(rate: float) -> None:
    regression, user, other = LogisticRegression(rate), np.array([1]), np.array([2])
    np.testing.assert_allclose(regression.predict(user, BY_RATE), BY_RATE)
    for _ in range(500):
        regression.learn(user, BY_RATE, np.ones(len(KINDS)))
        regression.learn(other, BY_RATE, np.zeros(len(KINDS)))
    assert (regression.predict(user, BY_RATE) > BY_RATE).all()
    assert (regression.predict(other, BY_RATE) < BY_RATE).all()


def test_rates_of_nothing_and_of_everything_stay_probabilities() -> None:
    found = LogisticRegression(0.1).predict(np.array([1]), np.array([0.0, 1.0, 0.5, 0.5, 0.5]))
    assert np.isfinite(found).all()
    assert ((found >= 0) & (found <= 1)).all()
