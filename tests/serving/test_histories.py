"""Histories: the newest of each user, within a bound, whatever the topic holds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.histories import Histories
from tests.serving.world import example, interactions
from wire.example_codec import encode_example, fence

ROWS = interactions(np.random.default_rng(0), 50)


def record(user: str, length: int, number: int, *, writer_epoch: int = 1) -> bytes:
    rows = type(ROWS)(*(getattr(ROWS, name)[:length] for name in type(ROWS).__slots__))
    return encode_example(example(user, rows, number=number, writer_epoch=writer_epoch))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 50)), max_size=30))
def test_the_newest_of_each_user_is_kept(told: list[tuple[str, int]]) -> None:
    histories, expected = Histories(10**9), {}
    for number, (user, length) in enumerate(told):
        histories.feed(0, record(user, length, number))
        expected[user] = length
    found = {user: histories.get(user) for user in "abcde"}
    assert {user: len(each.interactions) for user, each in found.items() if each} == expected


def test_what_a_fenced_worker_writes_is_not_read() -> None:
    histories = Histories(10**9)
    histories.feed(0, record("a", 5, 0))
    histories.feed(0, encode_example(fence(0, 2)))
    histories.feed(0, record("a", 40, 1))
    histories.feed(1, record("b", 7, 0))
    a, b = histories.get("a"), histories.get("b")
    assert a is not None
    assert b is not None
    assert len(a.interactions) == 5
    assert len(b.interactions) == 7, "other partitions have fences of their own"


def test_repeats_and_holes_and_tombstones_and_damage_are_passed_over() -> None:
    histories = Histories(10**9)
    for value in (record("a", 5, 3), record("a", 9, 8), record("a", 5, 3), None, b"nonsense", record("a", 10, 9)[:-1]):
        histories.feed(0, value)
    kept = histories.get("a")
    assert kept is not None
    assert len(kept.interactions) == 9
    assert histories.num_damaged == 2


def test_memory_is_bounded_and_the_quietest_user_goes_first() -> None:
    histories = Histories(6000)
    for number in range(40):
        histories.feed(0, record(f"u{number}", 20, 2 * number))
        histories.feed(0, record("loud", 20, 2 * number + 1))
        assert histories.num_bytes <= 6000
    assert histories.get("loud") is not None
    assert histories.get("u0") is None
    assert histories.num_forgotten > 30
    assert histories.get("u39") is not None
