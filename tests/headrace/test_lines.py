"""When a new line of training is as good as the one that servers follow."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.lines import what_is_missing
from tests.serving.world import World
from wire.weights import Manifest, Quality, decode_manifest

NOW_MS = 1_800_000_000_000


def version(age_s: float = 0.0, **quality: Any) -> Manifest:
    made = decode_manifest(World(num_users=1).records("base", 0)[-1][2])
    good = Quality(**{"num_targets": 5000, "hr10": 0.2, "ne": 0.9, **quality})
    return msgspec.structs.replace(made, newest_record_ms=NOW_MS - round(1000 * age_s), quality=good)


@pytest.mark.parametrize(
    ("new", "missing"),
    [
        (version(), ""),
        (version(hr10=0.197, ne=0.917), ""),
        (version(age_s=50), ""),
        (version(age_s=400), "its newest learned action is 400 s older"),
        (version(num_targets=20), "it is measured on 20 targets of 1,000"),
        (version(num_targets=20, window=30), "it is measured on 20 targets of 30"),
        (version(num_targets=30, window=30), ""),
        (version(hr10=0.19), "HR@10 0.1900, the other's 0.2000"),
        (version(ne=0.93), "normalised entropy 0.9300, the other's 0.9000"),
        (version(hr10=None, ne=None), "HR@10 none, the other's 0.2000; normalised entropy none, the other's 0.9000"),
    ],
)
def test_a_line_is_as_good_once_it_has_caught_up_and_says_so_on_enough_targets(new: Manifest, missing: str) -> None:
    assert what_is_missing(version(), new, 1000, 0.02) == missing


def test_what_the_old_line_does_not_say_is_not_asked_of_the_new_one() -> None:
    assert what_is_missing(version(hr10=None, ne=None), version(hr10=None, ne=None), 1000, 0.02) == ""
