"""What is known of items: the last domain and features of each, when it was first seen, within a bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serving.users.catalogue import Catalogue, Conditions
from tests.serving.world import interactions, slice_of
from wire.example import Interactions


def rows_of(seed: int, num: int = 200, num_items: int = 30) -> Interactions:
    rng = np.random.default_rng(seed)
    rows = interactions(rng, num, num_items)
    return replace(
        rows, timestamp_ms=rng.permutation(rows.timestamp_ms), domain_hash=rng.integers(0, 4, num),
        feature_hash=rng.integers(0, 3, (num, 2)),
    )  # fmt: skip


def fulfils(rows: Interactions, item: int, asked: Conditions) -> bool:
    """The definition, on all rows of one item."""
    mine = np.flatnonzero(rows.item_hash == item)
    domains = [each for each in rows.domain_hash[mine].tolist() if each]
    features = [each for each in rows.feature_hash[mine].tolist() if any(each)]
    domain, last = domains[-1] if domains else 0, features[-1] if features else [0, 0]
    first = rows.timestamp_ms[mine].min()
    return (
        (asked.domains is None or domain in asked.domains)
        and all(last[column] in hashes for column, hashes in asked.features.items())
        and asked.first_from_ms <= first <= asked.first_until_ms
    )


@pytest.mark.parametrize("seed", range(4))
def test_items_that_fulfil_all_conditions_are_found_however_they_came(seed: int) -> None:
    rows, catalogue = rows_of(seed), Catalogue()
    rng = np.random.default_rng(seed)
    at = 0
    while at < len(rows):
        end = at + int(rng.integers(1, 60))
        catalogue.note(slice_of(rows, at, end))
        at = end
    items, times = np.unique(rows.item_hash), np.sort(rows.timestamp_ms)
    some = rng.choice(items, 10, replace=False)
    for asked in (
        Conditions(), Conditions(domains=(1, 3)), Conditions(domains=()), Conditions(features={1: (2,)}),
        Conditions(features={0: (1, 2), 1: (0, 1)}), Conditions(features={5: (1,)}),
        Conditions(first_from_ms=int(times[20])), Conditions((1, 2), {0: (1,)}, int(times[3]), int(times[40])),
    ):  # fmt: skip
        wanted = [item for item in items.tolist() if 5 not in asked.features and fulfils(rows, item, asked)]
        assert sorted(catalogue.fulfilling(asked).tolist()) == wanted
        among = catalogue.fulfilling(asked, among=np.append(some, 12345))
        assert sorted(among.tolist()) == sorted(set(wanted) & set(some.tolist()))


def test_it_is_bounded_and_the_items_seen_last_stay() -> None:
    catalogue, rows = Catalogue(max_items=20), rows_of(0, 400, num_items=1000)
    catalogue.note(rows)
    assert 10 <= len(catalogue) <= 20
    kept = catalogue.fulfilling(Conditions()).tolist()
    assert set(rows.item_hash[-10:].tolist()) <= set(kept)
    first = {int(item): int(rows.timestamp_ms[rows.item_hash == item].min()) for item in kept}
    for item, first_ms in first.items():  # a place that an item left says nothing of the one that has it now
        found = catalogue.fulfilling(Conditions(first_until_ms=first_ms - 1), np.array([item]))
        assert not len(found)


def test_of_an_item_without_features_and_of_an_unknown_one_zeros_are_said() -> None:
    catalogue, rows = Catalogue(), rows_of(1, 20)
    catalogue.note(replace(rows, feature_hash=np.zeros((20, 0), np.int64)))
    assert catalogue.features_of(rows.item_hash[:2], 2).tolist() == [[0, 0], [0, 0]]
    catalogue.note(replace(slice_of(rows, 0, 1), feature_hash=np.array([[7, 8]])))
    assert catalogue.features_of(np.array([rows.item_hash[0], 5]), 2).tolist() == [[7, 8], [0, 0]]
