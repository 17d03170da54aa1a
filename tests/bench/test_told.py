"""Streams that say more than who chose what: whether it is told, and whether it helps."""

from __future__ import annotations

import numpy as np

from bench.exposure import FREE_SHARE, LISTED, choices, settings_of
from bench.moves import AFTER, moving, ways


def test_a_move_changes_what_is_popular_and_comes_with_an_action() -> None:
    actions = list(moving(3_000))
    assert len({(action["user"], action["item"]) for action in actions}) == len(actions)
    region_of = dict[int, str]()
    for action in actions:
        region = action["user_features"]["region"]
        assert action["since"] == 0 or action["since"] > AFTER or region_of[action["user"]] == region
        region_of[action["user"]] = region
    assert 0.02 < np.mean([action["since"] == 0 for action in actions]) < 0.04


def test_each_way_to_tell_a_move_is_a_configuration_of_its_own() -> None:
    plain, added, tokens = ways(list(moving(100))).values()
    assert (plain.model.num_user_features, added.model.num_user_features) == (0, 1)
    assert (added.model.num_columns, tokens.model.num_columns) == (0, 1)


def test_what_is_clicked_in_a_list_was_mostly_at_its_top_and_says_so() -> None:
    actions = list(choices(4_000))
    given = np.array([action.get("propensity", np.nan) for action in actions])
    free = np.array([action["free"] for action in actions])
    assert np.isnan(given[free]).all()
    assert np.isin(np.round(1 / given[~free]), np.arange(1, LISTED + 1)).all()
    assert given[~free].mean() > 0.5
    assert abs(free.mean() - FREE_SHARE) < 0.05
    assert settings_of(actions, 3.0).trainer.max_exposure_weight == 3.0
