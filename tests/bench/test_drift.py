"""A planted drift changes what items' names mean, from a moment on, and nothing else."""

from __future__ import annotations

from bench.drift import NUM_ITEMS, drifting, recovery
from bench.single_pass import OURS


def test_items_change_places_at_the_drift_and_users_go_on() -> None:
    late, early = list(drifting(2.0, 300, 5)), list(drifting(1.0, 300, 5))
    assert len(late) == 900
    assert late[:300] == early[:300]
    later, moved = late[300:600], early[300:]
    assert [each["user"] for each in later] == [each["user"] for each in moved]
    places = {(before["item"], after["item"]) for before, after in zip(later, moved, strict=True)}
    assert len({before for before, _ in places}) == len(places) == len({after for _, after in places})
    assert sum(before != after for before, after in places) > len(places) / 2
    assert all(0 <= after < NUM_ITEMS for _, after in places)


def test_each_ranker_is_measured_before_and_after() -> None:
    found = recovery(2.0, 300, 5)
    assert found.keys() == set(OURS)
    assert all(0 < each <= 1 for who in OURS[:2] for each in found[who])
