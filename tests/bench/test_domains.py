"""Hits go to the domain of the item that was chosen, in whatever order the actions of one day are learned."""

from __future__ import annotations

from bench.domains import compare, hits
from tests.bench.samples import START_MS, Actions, settings_of

DAY_MS = 86_400_000


def _days(num_days: int) -> Actions:
    """Each day every user chooses an item of ``old``, the same for all, and one of ``new`` that nobody chose before."""
    made: Actions = []
    for day in range(num_days):
        for user in range(16):
            for domain, item in (("old", f"old {day % 4}"), ("new", f"new {day} {user}")):
                made.append({"user": f"{user} {day}", "item": item, "action": "love", "domain": domain,
                             "timestamp": START_MS + day * DAY_MS})  # fmt: skip
    return sorted(made, key=lambda action: (action["timestamp"], action["domain"]))


def test_hits_are_counted_for_the_domain_of_the_choice() -> None:
    actions = _days(12)
    found = hits(settings_of(actions), actions, seed=1)
    assert {domain: len(hit_A) for domain, hit_A in found.items()} == {"new": 192, "old": 192}
    assert found["old"][64:].all()
    assert not found["new"].any()


def test_the_rows_compare_each_domain_with_itself_alone() -> None:
    actions = _days(6)
    rows = {row["name"]: row for row in compare(settings_of(actions), actions)}
    assert len(rows) == 14
    assert rows["new: both, WSA"]["target"] == rows["new: this domain alone"]["value"] == 0.0
    assert rows["old: both, WSA"]["target"] == rows["old: this domain alone"]["value"] > 0.5
