"""Which choices belong to which of the hard tasks, and that noise is learned but not counted."""

from __future__ import annotations

import numpy as np

from bench.hard import NOISE, compare, popularity_groups, with_noise
from tests.bench.samples import chain, settings_of


def test_groups_of_popularity_have_about_a_quarter_of_the_choices_each() -> None:
    item_A = np.repeat(np.arange(1, 9), [1, 1, 2, 4, 8, 8, 8, 8])
    group_A = popularity_groups(item_A)
    assert [int(group_A[item_A == item][0]) for item in range(1, 9)] == [0, 0, 0, 0, 1, 2, 3, 3]
    assert (np.diff(group_A) >= 0).all()


def test_noise_is_between_the_actions_which_stay_as_they_are() -> None:
    actions = chain(num=300)
    noisy = with_noise(actions, 0.2)
    assert [each for each in noisy if not str(each["item"]).startswith(NOISE)] == actions
    assert 0.1 < (len(noisy) - len(actions)) / len(actions) < 0.3
    assert noisy == with_noise(actions, 0.2)


def test_every_task_has_a_row_and_noise_is_not_counted() -> None:
    actions = chain(num=400)
    rows = {row["name"]: row for row in compare(settings_of(actions), actions, "chain")}
    assert rows["chain: all"]["num"] == rows["chain: 20% noise"]["num"] == 400
    assert sum(rows[f"chain: popularity {group} of 4"]["num"] for group in (1, 2, 3, 4)) == 400
    assert sum(row["num"] for name, row in rows.items() if "known" in name) == 400
    assert rows["chain: 20% noise"]["value"] < rows["chain: all"]["value"]
