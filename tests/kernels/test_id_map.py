"""IdMap against plain dicts (its reference), through any sequence of calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kernels import IdMap

EXTREMES = [0, -1, 1, 2**63 - 1, -(2**63), 2**32, -(2**32), 2**31 - 1]
ids = st.one_of(st.sampled_from(EXTREMES), st.integers(-40, 40), st.integers(-(2**63), 2**63 - 1))
batches = st.lists(ids, max_size=150).map(lambda x: np.array(x, dtype=np.int64))


def assert_same_state(left: IdMap, right: IdMap) -> None:
    a, b = left.state_dict(), right.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    assert len(left) == len(right)
    assert left.num_rows == right.num_rows
    assert left.num_pending == right.num_pending


class IdMapModel(RuleBasedStateMachine):
    """Every call goes to the C++ map and to the reference."""

    @initialize(admit_after=st.integers(1, 4), capacity_hint=st.sampled_from([0, 3, 1000]))
    def start(self, admit_after: int, capacity_hint: int) -> None:
        self.fast = IdMap(capacity_hint, admit_after=admit_after)
        self.slow = IdMap(capacity_hint, admit_after=admit_after, backend="reference")
        self.now_ms = 0

    @rule(batch=batches, step_ms=st.integers(-5, 20))
    def insert(self, batch: np.ndarray, step_ms: int) -> None:
        self.now_ms += step_ms
        np.testing.assert_array_equal(self.fast.insert(batch, self.now_ms), self.slow.insert(batch, self.now_ms))

    @rule(start=st.integers(-1000, 1000), size=st.integers(1, 600))
    def insert_a_run(self, start: int, size: int) -> None:
        self.insert(np.arange(start, start + size, dtype=np.int64) * 2**33, 1)

    @rule(batch=batches)
    def lookup(self, batch: np.ndarray) -> None:
        for first in (0, 1):
            np.testing.assert_array_equal(self.fast.lookup(batch, first), first + self.slow.lookup(batch))

    @rule(age_ms=st.integers(-10, 40))
    def evict(self, age_ms: int) -> None:
        for fast, slow in zip(
            self.fast.evict(self.now_ms - age_ms), self.slow.evict(self.now_ms - age_ms), strict=True
        ):
            np.testing.assert_array_equal(fast, slow)

    @rule(batch=batches)
    def remove(self, batch: np.ndarray) -> None:
        for fast, slow in zip(self.fast.remove(batch), self.slow.remove(batch), strict=True):
            np.testing.assert_array_equal(fast, slow)

    @rule(crossed=st.booleans())
    def save_and_load(self, crossed: bool) -> None:
        state = (self.slow if crossed else self.fast).state_dict()
        self.fast = IdMap()
        self.fast.load_state_dict(state)

    @precondition(lambda self: self.slow.num_rows > 0)
    @rule()
    def ids_of_rows(self) -> None:
        np.testing.assert_array_equal(self.fast.ids_of_rows(), self.slow.ids_of_rows())
        rows = self.fast.live_rows()
        np.testing.assert_array_equal(self.fast.lookup(self.fast.ids_of_rows(rows)), rows)

    @invariant()
    def same(self) -> None:
        assert_same_state(self.fast, self.slow)


TestIdMapModel = IdMapModel.TestCase
TestIdMapModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_every_int64_is_an_id() -> None:
    table = IdMap()
    extremes = np.array(EXTREMES, dtype=np.int64)
    assert (table.lookup(extremes) == -1).all()
    np.testing.assert_array_equal(table.insert(extremes, 0), np.arange(len(extremes)))
    np.testing.assert_array_equal(table.lookup(extremes[::-1]), np.arange(len(extremes))[::-1])


def test_no_two_ids_share_a_row_among_a_million() -> None:
    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(-(2**63), 2**63 - 1, 1_000_000))
    rng.shuffle(ids)
    table = IdMap()
    np.testing.assert_array_equal(table.insert(ids, 1), np.arange(len(ids)))
    np.testing.assert_array_equal(table.lookup(ids), np.arange(len(ids)))
    assert (table.lookup(rng.integers(-(2**63), 2**63 - 1, 100_000)) == -1).all()


@pytest.mark.parametrize("stride", [1, 2**20, 2**32, 2**48, -(2**40) + 1])
def test_regular_ids_are_found_again(stride: int) -> None:
    ids = np.arange(100_000, dtype=np.int64) * stride
    ids = np.unique(ids)
    table = IdMap(10)
    rows = table.insert(ids, 1)
    np.testing.assert_array_equal(table.lookup(ids), rows)


def test_freed_rows_are_given_again_lowest_first() -> None:
    table = IdMap()
    table.insert(np.arange(10), 1)
    table.insert(np.array([0, 2, 4, 5, 6, 8, 9]), 2)
    ids, rows = table.evict(2)
    assert ids.tolist() == rows.tolist() == [1, 3, 7]
    assert table.insert(np.array([100, 101, 102, 103]), 3).tolist() == [1, 3, 7, 10]
    assert table.num_rows == 11


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_removed_ids_are_gone_whenever_they_were_seen(backend: str) -> None:
    table = IdMap(admit_after=2, backend=backend)
    table.insert(np.array([5, 5, 6, 6, 7, 7, 8]), 9)
    ids, rows = table.remove(np.array([6, 8, 99]))
    assert (ids.tolist(), rows.tolist()) == ([6], [1])
    assert table.lookup(np.array([5, 6, 7])).tolist() == [0, -1, 2]
    assert (table.num_pending, len(table)) == (0, 2)
    assert table.insert(np.array([8, 10, 10]), 10).tolist() == [-1, -1, 1], "8 begins anew; the row is given again"


def test_an_id_is_admitted_at_its_kth_sighting_even_within_a_batch() -> None:
    table = IdMap(admit_after=3)
    assert table.insert(np.array([7, 7, 8, 7, 8, 7]), 1).tolist() == [-1, -1, -1, 0, -1, 0]
    assert table.lookup(np.array([7, 8])).tolist() == [0, -1]
    assert table.num_pending == 1
    table.evict(2)
    assert table.num_pending == 0
    assert table.insert(np.array([8, 8, 8]), 3).tolist() == [-1, -1, 0]


def test_churn_for_long_keeps_the_table_exact() -> None:
    table = IdMap(admit_after=1)
    for now in range(200):
        ids = np.arange(now * 50, now * 50 + 500, dtype=np.int64)
        rows = table.insert(ids, now)
        assert len(np.unique(rows)) == 500
        table.evict(now)
        np.testing.assert_array_equal(table.lookup(ids), rows)
        assert len(table) == 500
    assert table.num_rows <= 1000


@given(batch=batches, admit_after=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_replay_gives_the_same_rows_however_the_map_began(batch: np.ndarray, admit_after: int) -> None:
    small, large = IdMap(0, admit_after=admit_after), IdMap(100_000, admit_after=admit_after)
    np.testing.assert_array_equal(small.insert(batch, 5), large.insert(batch, 5))
    assert_same_state(small, large)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_calls_say_what_was_expected(backend: str) -> None:
    table = IdMap(backend=backend)
    with pytest.raises(ValueError, match="expected a 1-d int64 array, got int32"):
        table.lookup(np.zeros(3, dtype=np.int32))
    with pytest.raises(ValueError, match="expected a 1-d int64 array"):
        table.insert(np.zeros((3, 1), dtype=np.int64), 0)
    with pytest.raises(ValueError, match="fit in 64 bits"):
        table.insert(np.zeros(3, dtype=np.int64), 2**63)
    with pytest.raises(IndexError, match="expected rows 0 to -1, got 5 to 5"):
        table.ids_of_rows(np.array([5]))
    with pytest.raises(ValueError, match="expected keys"):
        table.load_state_dict({})
    with pytest.raises(ValueError, match="expected at least 0 and 1"):
        IdMap(admit_after=0)


def test_a_state_with_a_repeat_is_refused_and_changes_nothing() -> None:
    table = IdMap()
    table.insert(np.array([1, 2]), 0)
    state = table.state_dict()
    bad = {**state, "ids": np.array([1, 1])}
    with pytest.raises(ValueError, match="every id once"):
        table.load_state_dict(bad)
    assert table.lookup(np.array([1, 2])).tolist() == [0, 1]


@pytest.mark.parametrize("admit_after", [1, 2])
def test_a_large_map_grows_while_ids_come_and_go(admit_after: int) -> None:
    """Beyond a few thousand buckets a table grows gradually: every call finds it half moved."""
    fast, slow = IdMap(admit_after=admit_after), IdMap(admit_after=admit_after, backend="reference")
    generator = np.random.Generator(np.random.Philox(4))
    seen = np.zeros(0, np.int64)
    for now_ms in range(300):
        new = generator.integers(-(2**62), 2**62, generator.integers(1, 800))
        again = generator.choice(seen, min(len(seen), 400)) if len(seen) else seen
        batch = generator.permutation(np.concatenate([new, new[:50], again]))
        np.testing.assert_array_equal(fast.insert(batch, now_ms), slow.insert(batch, now_ms))
        seen = np.concatenate([seen, new])
        asked = np.concatenate([generator.choice(seen, 500), generator.integers(-(2**62), 2**62, 100)])
        np.testing.assert_array_equal(fast.lookup(asked), slow.lookup(asked))
        if now_ms % 29 == 28:
            for ours, theirs in zip(fast.evict(now_ms - 60), slow.evict(now_ms - 60), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert_same_state(fast, slow)
    np.testing.assert_array_equal(fast.lookup(seen), slow.lookup(seen))
    again = IdMap()
    again.load_state_dict(fast.state_dict())
    assert_same_state(again, slow)


def test_ids_that_gather_at_the_end_of_the_table_are_found_while_it_grows() -> None:
    """Long chains wrap around the end of the table, into buckets that have moved already."""
    fast, slow = IdMap(), IdMap(backend="reference")
    generator = np.random.Generator(np.random.Philox(5))
    crowd = np.array([unmixed(2**64 - 1 - each) for each in range(3000)], np.int64)
    for part in np.split(crowd, 30):
        for batch in (generator.integers(-(2**62), 2**62, 1500), part):
            np.testing.assert_array_equal(fast.insert(batch, 0), slow.insert(batch, 0))
            np.testing.assert_array_equal(fast.lookup(crowd), slow.lookup(crowd))
    assert_same_state(fast, slow)


def unmixed(place: int) -> int:
    """The id that the C++ map's hash (`kernels/csrc/id_table.h`) maps to this place."""
    mask = 2**64 - 1
    x = place ^ (place >> 32)
    x = x * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
    x = x ^ (x >> 29) ^ (x >> 58)
    x = x * pow(0x9E3779B97F4A7C15, -1, 2**64) & mask
    x = x ^ (x >> 32)
    return x - 2**64 if x >= 2**63 else x
