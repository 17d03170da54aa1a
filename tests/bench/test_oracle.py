"""The chances that made streams tell are those that they draw with, and are evaluated like any recommender's."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from bench.oracle import Oracle
from bench.streams.made import Floats, Ints
from bench.streams.named import STREAMS


@pytest.mark.parametrize("stream", ["news", "shop", "series", "bazaar", "taps"])
def test_the_likeliest_item_is_chosen_as_often_as_it_is_likely(stream: str) -> None:
    likely, chosen = list[float](), list[bool]()

    def note(user: int, item: int, items: Ints, chances: Floats) -> None:
        found, place = np.unique(items, return_inverse=True)
        total = np.bincount(place, chances) / chances.sum()
        likely.append(float(total.max()))
        chosen.append(bool(found[total.argmax()] == item))

    assert sum(1 for _ in islice(STREAMS[stream].open(on_choice=note), 3_000)) == len(chosen)
    error = np.sqrt((np.array(likely) * (1 - np.array(likely))).sum())
    assert abs(np.sum(chosen) - np.sum(likely)) < 4 * error + 0.02 * len(chosen)


def test_items_nobody_has_seen_do_not_compete_and_ties_count_half() -> None:
    oracle, items = Oracle(), np.arange(6)
    for user, item in enumerate([1, 2, 3, 1]):
        oracle(user, item, items, np.array([9.0, 1, 1, 1, 9, 0.5]))
    assert oracle.ranks == [0, 0, 0, 2]


def test_what_a_user_has_met_is_left_out_if_there_are_no_repeats() -> None:
    oracle, items = Oracle(), np.arange(4)
    for user, item in [(0, 1), (0, 2), (1, 3), (0, 3)]:
        oracle(user, item, items, np.array([0.0, 5, 4, 1]))
    assert oracle.ranks == [0, 0, 0, 1]
    oracle(1, 3, items, np.array([0.0, 5, 4, 9]))
    assert oracle.ranks[-1] == 0, "no server recommends it again"
