"""Rates against a full recount, and as a server gets them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from model.rates import Rates, done_before


@pytest.mark.parametrize("seed", range(3))
def test_rates_are_those_of_a_recount(seed: int) -> None:
    rng, baseline = np.random.default_rng(seed), Rates(2)
    shown, done = Counter[int](), dict[int, np.ndarray]()
    for step in range(8):
        rows = rng.integers(0, 20 + 30 * step, 12)
        total = sum(shown.values())
        prior = (sum(done.values(), np.zeros(2)) + 1) / (total + 2)
        expected = [(done.get(row, np.zeros(2)) + 10 * prior) / (shown[row] + 10) for row in rows.tolist()]
        np.testing.assert_allclose(baseline.predict(rows), expected)
        kinds = (rng.random((12, 2)) < 0.4).astype(np.float32)
        is_new = rng.random(12) < 0.7
        baseline.learn(rows, kinds, is_new)
        for row, what, new in zip(rows.tolist(), kinds, is_new.tolist(), strict=True):
            shown[row] += new
            done[row] = done.get(row, np.zeros(2)) + what
        gone = int(rows[0])
        baseline.forget(np.array([gone]))
        shown[gone], done[gone] = 0, np.zeros(2)


def test_a_users_own_rate_counts_what_he_did_before_the_target() -> None:
    bits = np.array([0b01, 0b11, 0b10, 0b11], np.uint32)
    done, num = done_before(bits, 2, np.array([0, 3, 4]), np.array([0, 0, 1]), np.array([0, 2, 3]))
    assert done.tolist() == [[0, 0], [2, 1], [0, 0]]
    assert num.tolist() == [0, 2, 0]


def test_a_server_has_the_trainers_rates_through_bases_deltas_and_evictions() -> None:
    rng, trainer, server = np.random.default_rng(0), Rates(2), Rates(2)
    for step in range(12):
        rows = rng.integers(0, 20 + 30 * step, 12)
        trainer.learn(rows, (rng.random((12, 2)) < 0.4).astype(np.float32), rng.random(12) < 0.7)
        trainer.forget(rows[:2])
        is_base = step in (0, 7)
        server.apply(trainer.changes(everything=is_base), is_base=is_base)
        trainer.mark_published()
        every = np.arange(400)
        np.testing.assert_array_equal(server.predict(every), trainer.predict(every))
        np.testing.assert_array_equal(server.copy().predict(every), trainer.predict(every))
