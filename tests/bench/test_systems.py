"""Each published system is a configuration that differs from the default, and learns."""

from __future__ import annotations

from bench.systems import SYSTEMS, compare
from tests.bench.samples import chain, settings_of

LEAST = {"HSTU (default)", "HSTU, 200 of context", "FuXi-alpha", "LSRM: Adam, then SGD", "CPRec: WSA"}


def test_every_system_but_the_default_differs_from_it() -> None:
    settings = settings_of(chain())
    made = [system(settings, 10_000) for system in SYSTEMS.values()]
    assert made[0] == settings
    assert all(one != other for index, one in enumerate(made) for other in made[:index])
    assert set(SYSTEMS) > LEAST


def test_the_row_of_a_system_is_of_its_own_pass() -> None:
    actions = chain(num=400)
    rows = compare(settings_of(actions), actions, ["FuXi-alpha", "LSRM: Adam, then SGD"], 1, "chain")
    assert [row["name"] for row in rows] == ["chain: FuXi-alpha", "chain: LSRM: Adam, then SGD"]
    assert rows[0]["value"] != rows[1]["value"]
    assert all(0 < row["value"] < 1 and 0 < row["with_memory"] < 1 for row in rows)
