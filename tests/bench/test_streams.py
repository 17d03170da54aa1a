"""Streams come in the order of time, each as its makers meant it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.single_pass import settings_for
from bench.streams.habits import daytimes, loops, pairs, routine, turns, weekdays
from bench.streams.made import START_MS, bazaar, music, portal, reviews, series
from bench.streams.named import open_stream, synthetic
from headrace.config import load_settings
from model.kinds import chosen
from stream.errors import FileError

pyarrow = pytest.importorskip("pyarrow")


def _kuairand(folder: Path) -> None:
    import pyarrow.parquet as parquet

    row = {"user_id": 1, "item_id": 2, "timestamp": 1_650_812_741_436, "tab": 1, "author_id": 7, "tag": "39",
           "duration_ms": 7000, "is_click": 1, "long_view": 0, "is_like": 0, "is_follow": 0, "is_comment": 0,
           "is_forward": 0, "is_profile_enter": 0, "is_hate": 0}  # fmt: skip
    rows = [row, row, {**row, "timestamp": row["timestamp"] - 5, "is_click": 0}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "kuairand_pure_0425_0508.parquet")


def test_an_impression_without_a_response_stays_one_and_identical_rows_count_once(tmp_path: Path) -> None:
    _kuairand(tmp_path)
    actions = list(open_stream("kuairand", tmp_path))
    assert [action["action"] for action in actions] == [["impression"], ["impression", "click"]]
    settings = settings_for(load_settings(), actions)
    assert settings.action.features == ("tab", "author", "tag", "length")
    assert settings.model.num_features == 4


def test_reviews_of_two_domains_share_one_order(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    rows = [{"user_id": 1, "item_id": n, "timestamp": 1_400_000_000 - n, "domain": "food"} for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "amazon_food_kitchen.parquet")
    actions = list(open_stream("amazon", tmp_path))
    assert [action["item"] for action in actions] == [2, 1, 0]
    assert actions[0]["domain"] == "food"


def test_a_record_of_the_synthetic_stream_repeats_itself_and_items_are_released_over_time() -> None:
    actions = list(synthetic(num_records=60))
    items = [action["item"] for action in actions]
    assert len(actions) == 60 * 128
    of_record = [items[first : first + 128] for first in range(0, len(items), 128)]
    repeats = sum(128 - len(set(record)) for record in of_record) / len(items)
    assert 0.15 < repeats < 0.45  # the mean over alpha of 1 - (new ones expected) / 128 is .28
    assert all(one["timestamp"] < two["timestamp"] for one, two in pairwise(actions))
    early, late = (len(set(part)) for part in (items[: 20 * 128], items[-20 * 128 :]))
    assert late > early


def test_a_stream_whose_file_is_missing_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="--data"):
        open_stream("ml-1m", tmp_path)


def test_made_streams_are_the_same_each_time_and_have_their_shapes() -> None:
    made = {
        "portal": list(portal(600)), "series": list(series(600)), "music": list(music(600, num_users=20)),
        "bazaar": list(bazaar(600, num_items=5_000)), "reviews": list(reviews(200, 500)),
    }  # fmt: skip
    assert made["portal"] == list(portal(600))
    assert all(len(actions) >= 600 or name == "reviews" for name, actions in made.items())
    assert len({action["user"] for action in made["portal"]}) > 80
    for name, least, most in (("series", 0.0, 0.0), ("music", 0.05, 0.9), ("bazaar", 0.1, 0.6), ("reviews", 0.0, 0.0)):
        pairs = [(action["user"], action["item"]) for action in made[name]]
        assert least <= 1 - len(set(pairs)) / len(pairs) <= most, name
    days = [action["timestamp"] for action in made["reviews"]]
    assert days == sorted(days)
    assert all(day % 86_400_000 == days[0] % 86_400_000 for day in days)


def test_demand_follows_the_time_of_day_and_most_users_come_once() -> None:
    views = list(daytimes(6_000, num_items=40))
    assert views == list(daytimes(6_000, num_items=40))
    assert len({action["user"] for action in views}) > 0.6 * len(views)
    hour = np.array([action["timestamp"] / 3_600_000 % 24 for action in views])
    item = np.array([action["item"] for action in views])
    turn = np.abs([np.exp(2j * np.pi * hour[item == each] / 24).mean() for each in np.argsort(-np.bincount(item))[:8]])
    assert turn.min() > 0.5, "an item's choices are near one time of day"


def test_habits_are_at_their_hours_in_their_order_or_after_two_items() -> None:
    orders = list(routine(1_500, num_users=10))
    assert orders == list(routine(1_500, num_users=10))
    times = [action["timestamp"] for action in orders]
    assert len(orders) == 1_500
    assert all(times[place] <= times[place + 300] for place in range(1_200))  # in order but for a day's last minutes
    late = {action["timestamp"] % 86_400_000 // 3_600_000 for action in orders}
    assert len(late) < 24  # nobody orders at night

    def shares(actions: list[dict[str, Any]], first: int, end: int | None = None) -> float:
        """How often what a user did last after the same items, counted from the end, comes again."""
        last, known = dict[Any, list[int]](), dict[Any, int]()
        again = []
        for action in actions:
            mine = last.setdefault(action["user"], [])
            key = (action["user"], *mine[-first:end])
            again += [known[key] == action["item"]] if key in known else []
            known[key] = action["item"]
            mine.append(action["item"])
        return float(np.mean(again))

    assert shares(list(loops(3_000, num_users=20)), 1) > 0.6
    of_pairs = list(pairs(6_000, num_users=1, num_items=20))
    assert shares(of_pairs, 2) > 2 * shares(of_pairs, 1)
    of_turns = list(turns(6_000, num_users=1, num_items=20))
    assert shares(of_turns, 2, -1) > 2 * shares(of_turns, 1)


def test_habits_of_a_weekday_come_again_on_that_day() -> None:
    orders = list(weekdays(3_000, num_users=10))
    assert orders == list(weekdays(3_000, num_users=10))
    known, again = set[tuple[int, int, int]](), np.zeros((len(orders), 7))
    for place, action in enumerate(orders):
        day = (action["timestamp"] - START_MS) // 86_400_000 % 7
        again[place] = [(action["user"], (day + later) % 7, action["item"]) in known for later in range(7)]
        known.add((action["user"], day, action["item"]))
    share = again[1_500:].mean(axis=0)
    assert share[0] > 0.8 > 0.4 > share[1:].max()


def test_music_events_as_published_are_shown_played_or_liked_in_order_of_time(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    columns = {
        "uid": pyarrow.array([10, 10, 20, 20, 20], pyarrow.uint32()),
        "timestamp": pyarrow.array([50, 95, 5, 50, 100], pyarrow.uint32()),
        "item_id": pyarrow.array([7, 8, 7, 9, 9], pyarrow.uint32()),
        "is_organic": pyarrow.array([1, 0, 1, 1, 1], pyarrow.uint8()),
        "played_ratio_pct": pyarrow.array([100, None, 20, 50, None], pyarrow.uint16()),
        "track_length_seconds": pyarrow.array([180, None, 200, 210, None], pyarrow.uint32()),
        "event_type": pyarrow.array(["listen", "like", "listen", "listen", "unlike"]).dictionary_encode(),
    }
    (tmp_path / "flat" / "50m").mkdir(parents=True)
    parquet.write_table(pyarrow.table(columns), tmp_path / "flat" / "50m" / "multi_event.parquet")
    actions = list(open_stream("yambda", tmp_path))
    assert [(action["user"], action["item"]) for action in actions] == [(20, 7), (10, 7), (20, 9), (10, 8)]
    assert [action["action"] for action in actions] == [["shown"], ["shown", "play"], ["shown", "play"], ["like"]]
    assert [action["features"]["organic"] for action in actions] == ["1", "1", "1", "0"]
    settings = settings_for(load_settings(), actions)
    kinds = settings.model.kinds
    is_choice = chosen(1 << np.arange(len(kinds), dtype=np.uint32), settings.model)
    assert [kind for kind, each in zip(kinds, is_choice, strict=True) if each] == ["play", "like"]
