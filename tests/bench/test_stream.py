"""How `bench.stream` compares a worker with its peers."""

from __future__ import annotations

import pytest

from bench.stream import ACTIONS_PER_USER, SIZES, marginal, simulated


def test_what_is_paid_once_counts_for_nobody() -> None:
    a_second = 10_000.0
    for once_s in (0.0, 3.0):
        small, large = ((num, once_s + num / a_second) for num in (15_000.0, 60_000.0))
        assert marginal(small, large) == pytest.approx(a_second)


def test_what_came_before_the_measurement_counts_for_nobody() -> None:
    assert marginal((11_000.0, 1.1), (58_000.0, 5.8)) == pytest.approx(10_000.0)


def test_a_disturbed_measurement_is_refused() -> None:
    with pytest.raises(
        RuntimeError, match=r"expected 60,000 actions to take longer than 15,000, got 1.100 and 1.200 s"
    ):
        marginal((15_000.0, 1.2), (60_000.0, 1.1))


def test_users_of_a_large_backlog_have_as_many_actions_as_those_of_a_small_one() -> None:
    for size in SIZES["1 a record"][1:]:
        users = [action["user"] for action in simulated(size)]
        assert len(users) == size
        assert 0.9 * ACTIONS_PER_USER < size / len(set(users)) < 1.4 * ACTIONS_PER_USER
