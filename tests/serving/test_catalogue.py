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
    mine = mine[np.argsort(rows.timestamp_ms[mine], kind="stable")]
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
        catalogue.note(0, slice_of(rows, at, end))
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
    catalogue.note(0, rows)
    assert 10 <= len(catalogue) <= 20
    kept = catalogue.fulfilling(Conditions()).tolist()
    assert set(rows.item_hash[-10:].tolist()) <= set(kept)
    first = {int(item): int(rows.timestamp_ms[rows.item_hash == item].min()) for item in kept}
    for item, first_ms in first.items():  # a place that an item left says nothing of the one that has it now
        found = catalogue.fulfilling(Conditions(first_until_ms=first_ms - 1), np.array([item]))
        assert not len(found)


def test_of_an_item_without_features_and_of_an_unknown_one_zeros_are_said() -> None:
    catalogue, rows = Catalogue(), rows_of(1, 20)
    catalogue.note(0, replace(rows, feature_hash=np.zeros((20, 0), np.int64)))
    assert catalogue.features_of(rows.item_hash[:2], 2).tolist() == [[0, 0], [0, 0]]
    catalogue.note(0, replace(slice_of(rows, 0, 1), feature_hash=np.array([[7, 8]])))
    assert catalogue.features_of(np.array([rows.item_hash[0], 5]), 2).tolist() == [[7, 8], [0, 0]]


def met(*seen: tuple[int, int]) -> Interactions:
    """One item, met at these times in these domains, which are its feature too."""
    time_n, domain_n = (np.array(each, np.int64) for each in zip(*seen, strict=True))
    rows = slice_of(rows_of(0), 0, len(seen))
    return replace(rows, item_hash=np.full(len(seen), 5, np.int64), timestamp_ms=time_n, domain_hash=domain_n,
                   feature_hash=domain_n[:, None])  # fmt: skip


def domain_of(catalogue: Catalogue) -> int:
    (domain,) = (each for each in range(1, 10) if len(catalogue.fulfilling(Conditions(domains=(each,)))))
    assert catalogue.features_of(np.array([5]), 1).tolist() == [[domain]]
    return domain


def test_what_was_seen_last_is_not_what_was_written_last() -> None:
    catalogue = Catalogue()
    catalogue.note(0, met((2000, 7), (1000, 3)))
    assert domain_of(catalogue) == 7
    catalogue.note(0, met((1000, 3)))  # an old segment is written again
    assert domain_of(catalogue) == 7
    catalogue.note(0, met((2000, 2)))  # the same interaction has another domain now
    assert domain_of(catalogue) == 2


def test_partitions_may_be_read_in_any_order() -> None:
    for first, second in (((0, 4), (1, 8)), ((0, 8), (1, 4))):
        for time_ms in (2000, 1000):
            of_partition = {first[0]: met((1000, first[1])), second[0]: met((time_ms, second[1]))}
            found = set()
            for order in ((0, 1), (1, 0)):
                catalogue = Catalogue()
                for partition in order:
                    catalogue.note(partition, of_partition[partition])
                found.add(domain_of(catalogue))
            assert found == {second[1]}
