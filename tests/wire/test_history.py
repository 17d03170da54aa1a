"""Histories against dictionaries of places, whatever records come in whatever order."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wire.history
from wire.example import Lesson, Rows, row_type
from wire.history import FARTHEST_BACK, Histories

NUM_FEATURES, MAX_CONTEXT, SEGMENT_LEN = 1, 9, 4
NUM_SLOTS = 4
Record = tuple[int, int, int, int, int]
"""User, segment, the first place in it, how many interactions, and whether the step ends here."""


@dataclass
class SlowHistory:
    """One user's rows by place."""

    start: int = 0
    end: int = 0
    rows: dict[int, bytes] = field(default_factory=dict)
    features: list[int] = field(default_factory=list)

    def fold(self, lesson: Lesson) -> None:
        first, end = lesson.first_index, lesson.first_index + len(lesson.rows)
        is_apart = first - self.end > MAX_CONTEXT + SEGMENT_LEN or self.start - first > FARTHEST_BACK
        if self.start == self.end or is_apart:
            self.start, self.end, self.rows = first, first, {}
        self.start, self.end = min(self.start, first), max(self.end, end)
        self.rows |= {first + at: row.tobytes() for at, row in enumerate(lesson.rows)}
        self.features = lesson.user_feature_hash.tolist()

    def settle(self) -> None:
        last_segment = (self.end - 1) // SEGMENT_LEN
        if last_segment >= self.start // SEGMENT_LEN + NUM_SLOTS:
            self.start = (last_segment - NUM_SLOTS + 1) * SEGMENT_LEN
            self.rows = {place: row for place, row in self.rows.items() if place >= self.start}

    @property
    def held(self) -> bytes:
        nothing = bytes(row_type(NUM_FEATURES).itemsize)
        return b"".join(self.rows.get(place, nothing) for place in range(self.start, self.end))


def rows_of(rng: np.random.Generator, num: int) -> Rows:
    rows = np.zeros(num, row_type(NUM_FEATURES))
    rows["item"], rows["bits"], rows["features"] = rng.integers(1, 99, num), 3, rng.integers(1, 9, (num, 1))
    return rows


def lesson(rng: np.random.Generator, record: Record, number: int) -> Lesson:
    user, segment, first, num, _ = record
    return Lesson(
        f"user {user}", 0, 1, number, segment, SEGMENT_LEN, rows_of(rng, min(num, SEGMENT_LEN - first)), 0,
        np.zeros(0, np.int64), np.zeros(0, np.uint32), np.array([number], np.int64), 0, 0, first=first,
    )  # fmt: skip


def check(histories: Histories, records: list[Record], seed: int) -> None:
    """Fold the records a step at a time, and compare with dictionaries after each step."""
    rng, slow, step = np.random.default_rng(seed), dict[str, SlowHistory](), list[Lesson]()
    for number, record in enumerate(records):
        step.append(lesson(rng, record, number))
        if record[-1] == 0 or number == len(records) - 1:
            touched = histories.gather_all(step)
            assert touched == [histories.users[each.user] for each in step]
            for each in step:
                slow.setdefault(each.user, SlowHistory()).fold(each)
            for user in {each.user for each in step}:
                slow[user].settle()
                histories.settle(histories.users[user])
            same(histories, slow)
            step = []


def same(histories: Histories, slow: dict[str, SlowHistory]) -> None:
    assert list(histories.users) == list(slow)
    for user, expected in slow.items():
        found = histories.users[user]
        assert (found.start, found.end, found.user_features.tolist()) == (
            expected.start,
            expected.end,
            expected.features,
        )
        assert found.window(0, 1 << 60)[1].tobytes() == expected.held
        assert found.buffer.ctypes.data == found.address
    assert histories.num_rows == sum(each.end - each.start for each in slow.values())
    assert histories.num_bytes == sum(each.num_bytes for each in histories.users.values())


near = st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 3), st.integers(1, 4), st.integers(0, 2))
far = st.tuples(st.integers(0, 2), st.sampled_from([30, 1 << 20]), st.integers(0, 3), st.just(4), st.just(1))
usual = st.builds(
    lambda of, num: [(of, at // 4, at % 4, 1, 0) for at in range(num)], st.integers(0, 2), st.integers(1, 40)
)
anything = st.lists(st.one_of(near, far), max_size=40)
everything = st.builds(lambda before, after: before + after, usual, anything)


@settings(max_examples=300, deadline=None)
@given(before=usual, after=anything, seed=st.integers(0, 1000))
def test_histories_are_what_dictionaries_of_places_hold(before: list[Record], after: list[Record], seed: int) -> None:
    check(Histories(MAX_CONTEXT), before + after, seed)


def broken(right: str, wrong: str) -> type[Histories]:
    """A build whose usual case is wrong."""
    source = textwrap.dedent(inspect.getsource(Histories.gather_all))
    assert source.count(right) == 1, right
    made: dict[str, object] = {}
    exec(source.replace(right, wrong), vars(wire.history), made)
    return type("Broken", (Histories,), made)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("at >= 0 and ", ""),
        ("stop <= len(history.raw) and ", ""),
        ("> history.end:", "!= history.end:"),
        ("self.num_rows += end - history.end", "self.num_rows += 1"),
        ("(first - history.start) * size", "first * size"),
        ("history.user_features = lesson.user_feature_hash", "pass"),
    ],
)
def test_the_comparison_finds_a_wrong_usual_case(right: str, wrong: str) -> None:
    kind, rng = broken(right, wrong), np.random.default_rng(0)
    num_wrong = 0
    for seed in range(50):
        start = [(0, at // 4, at % 4, 1, 0) for at in range(int(rng.integers(1, 40)))]
        apart = rng.integers([0, 0, 0, 1, 0], [3, 10, 4, 5, 3], (30, 5)).tolist()
        try:
            check(kind(MAX_CONTEXT), [*start, *map(tuple, apart)], seed)
        except (AssertionError, BufferError, ValueError):
            num_wrong += 1
    assert num_wrong


def test_rows_of_another_width_are_refused() -> None:
    histories, rng = Histories(MAX_CONTEXT), np.random.default_rng(0)
    one = lesson(rng, (0, 0, 0, 2, 0), 7)
    histories.gather(one)
    one.rows = np.ones(2, row_type(NUM_FEATURES + 1))
    with pytest.raises(ValueError, match="example 7: expected rows of 40 bytes, got 48"):
        histories.gather(one)
