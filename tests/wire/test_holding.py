"""Which partitions a server holds, as its configuration and its reports say it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import ConfigError
from wire.holding import Partitions, as_ranges, beyond, is_holding, partitions_held


@pytest.mark.parametrize(
    ("text", "held"),
    [("all", {0, 1, 2, 3, 4}), ("0", {0}), ("0-2,4", {0, 1, 2, 4}), ("1/2", {0, 2, 4}), ("2/2", {1, 3}),
     ("5/5", {4}), ("6/6", set()), ("none", set()), ("3-999999", {3, 4}), ("1/1", {0, 1, 2, 3, 4})],
)  # fmt: skip
def test_a_text_means_partitions(text: str, held: set[int]) -> None:
    assert partitions_held(text, 5) == held


@pytest.mark.parametrize(
    "text", ["", "none", "0/2", "3/2", "2-1", "-1", "1,", "1;2", "a", "1/2/3", "1 - 2", "٣", "1" * 9]
)
def test_anything_else_is_refused(text: str) -> None:
    assert not is_holding(text)
    assert partitions_held(text, 5) == set()
    with pytest.raises(ConfigError, match=r"serving.partitions: expected all, numbers of partitions"):
        Partitions().check("serving.partitions", text)


@given(st.integers(1, 40), st.integers(0, 200))
def test_shares_are_all_partitions_each_once(num_shares: int, num_partitions: int) -> None:
    shares = [partitions_held(f"{share + 1}/{num_shares}", num_partitions) for share in range(num_shares)]
    assert sorted(number for share in shares for number in share) == list(range(num_partitions))


@given(st.frozensets(st.integers(0, 60)))
def test_ranges_say_which_numbers_there_are(numbers: frozenset[int]) -> None:
    text = as_ranges(numbers)
    assert partitions_held(text, 61) == numbers
    assert is_holding(text) == bool(numbers)


def test_numbers_beyond_the_last_partition_are_noticed() -> None:
    assert beyond("0-4", 4)
    assert not beyond("0-3", 4)
    assert not beyond("7/9", 4), "a share may be empty"
