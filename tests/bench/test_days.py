"""A fixed future day: the same choices for every copy, none of them learned."""

from __future__ import annotations

import pytest

from bench.days import DAY_MS, days_of, measure, rows_of
from tests.bench.samples import Actions, chain, settings_of


def _over_days(actions: Actions, num_days: int) -> Actions:
    """The same actions, spread evenly over some days and a bit of the next."""
    step_ms = DAY_MS * num_days // (len(actions) - 10)
    begin_ms = int(actions[0]["timestamp"])
    return [{**action, "timestamp": begin_ms + number * step_ms} for number, action in enumerate(actions)]


def test_all_copies_predict_the_last_day_and_more_days_predict_it_better() -> None:
    actions = _over_days(chain(num=1_200, num_items=30), 4)
    begin_ms, num_days = days_of(actions)
    assert num_days == 4
    copies = measure(settings_of(actions), actions, 3)
    assert [copy.num_days for copy in copies] == [1, 2, 3]
    wanted = sum(begin_ms + 3 * DAY_MS <= action["timestamp"] < begin_ms + 4 * DAY_MS for action in actions)
    rows = list(rows_of("chain", copies))
    assert {row["num"] for row in rows} == {len(copies[0].ranks[0]) + sum(len(part) for part in copies[0].ranks[1:])}
    assert abs(rows[0]["num"] - wanted) <= 64  # a step may reach over midnight
    assert [row["num_learned"] for row in rows] == sorted(row["num_learned"] for row in rows)
    assert all(copy.num_learned <= copy.num_days * 300 for copy in copies)
    assert rows[-1]["value"] >= rows[0]["value"]


def test_a_stream_of_one_day_is_refused() -> None:
    actions = _over_days(chain(num=50), 1)
    with pytest.raises(ValueError, match="two whole days"):
        measure(settings_of(actions), actions, 3)
