"""A short soak: five kills, some during a recovery. `make soak` runs fifty."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.processes import ChildError
from tests.brokers import Broker
from tests.system.soak import VICTIMS, Round, Soak, rounds_of


def test_a_third_of_the_kills_is_planned_for_a_recovery_and_the_seed_says_which() -> None:
    rounds = rounds_of(3, 50)
    num_second = sum(bool(each.second) for each in rounds)
    assert len(rounds) + num_second == 50
    assert num_second >= 17
    assert {each.first for each in rounds} == set(VICTIMS)
    assert rounds == rounds_of(3, 50) != rounds_of(4, 50)


@pytest.mark.slow
def test_the_soak_catches_a_trainer_that_forgets_where_it_was(
    durable_kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    broken = {"trainer": "checkpoints_without_positions"}
    soak = Soak(durable_kafka, topic_prefix, tmp_path, 5, lambda _: None, broken)
    with pytest.raises((AssertionError, ChildError)):
        soak.run([Round("trainer", "trainer", False)] * 3)


@pytest.mark.slow
def test_five_kills_two_of_them_into_a_recovery_and_the_audit_holds_after_each(
    durable_kafka: Broker, topic_prefix: str, tmp_path: Path
) -> None:
    told: list[str] = []
    tally = Soak(durable_kafka, topic_prefix, tmp_path, 5, told.append).run(rounds_of(5, 5))
    assert tally.kills.total() == 5
    assert len(told) == len(rounds_of(5, 5))
    assert tally.num_while_recovering >= 1
