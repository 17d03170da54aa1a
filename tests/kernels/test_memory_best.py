"""The best rows in one pass, against all scores and a sort."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.memory import MemoryAnswers, memory_best, memory_learn, memory_stand
from kernels.memory.past import VISIT_MS
from tests.kernels.test_memory import RULES, Stream, events_at_once
from tests.kernels.yardstick import force, levels


@dataclass
class World:
    """A memory that has learned a stream, and queries for it."""

    num_rows: int = 250
    num_queries: int = 5
    width: int = 17
    k: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        rng, columns = np.random.default_rng(self.seed), self.seed % 3
        stream = Stream(num_rows=self.num_rows, num_events=400, seed=self.seed, num_columns=columns)
        self.memory = stream.memory(12)
        memory_learn(self.memory, self.num_rows, stream.events(), stream.logits(), RULES)
        past = [rng.integers(1, self.num_rows, rng.integers(0, 90)).tolist() for _ in range(self.num_queries)]
        asked = np.zeros(self.num_queries)
        shown = [rng.integers(1, self.num_rows, rng.integers(0, 30)).tolist() for _ in range(self.num_queries)]
        timeless = events_at_once(asked, asked, past, past, shown)
        past_ms = np.concatenate([np.sort(rng.integers(0, 3 * VISIT_MS, len(rows))) for rows in past])
        self.events = replace(timeless, past_ms=past_ms, now_ms_R=rng.integers(VISIT_MS, 4 * VISIT_MS, len(past)))
        self.query_RD = rng.normal(size=(self.num_queries, self.width)).astype(np.float32)
        self.table_VD = rng.normal(size=(self.num_rows + 2, self.width)).astype(np.float32)
        out = [rng.integers(0, self.num_rows, rng.integers(0, 60)) for _ in range(self.num_queries)]
        allowed = [
            None if rng.random() < 0.6 else rng.integers(0, self.num_rows, rng.integers(0, 150))
            for _ in range(self.num_queries)
        ]
        ks = rng.integers(0, self.k + 1, self.num_queries).tolist()
        self.answers = MemoryAnswers.of([*ks[:-1], self.k], out, allowed)

    def best(self, backend: str = "cpp") -> tuple[np.ndarray, np.ndarray]:
        standing = memory_stand(self.memory, self.num_rows, backend=backend)
        return memory_best(
            self.memory, standing, self.events, self.query_RD, self.table_VD, self.answers, backend=backend
        )


def assert_same_answers(world: World) -> None:
    (rows, scores), (expected_rows, expected) = world.best(), world.best("reference")
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)
    with np.errstate(invalid="ignore"):
        gap = np.abs(np.diff(expected, axis=1, prepend=np.inf, append=-np.inf))
    is_clear = ~(np.minimum(gap[:, :-1], gap[:, 1:]) < 2e-3)  # further from its neighbours than rounding errors
    np.testing.assert_array_equal(rows[is_clear], expected_rows[is_clear])


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("num_queries", [1, 7, 16, 70])
def test_the_best_are_those_of_all_scores(monkeypatch: pytest.MonkeyPatch, level: str, num_queries: int) -> None:
    force(monkeypatch, level)
    assert_same_answers(World(num_queries=num_queries, seed=2))


def test_a_table_of_many_tiles_is_answered_as_one_of_a_single_tile_is() -> None:
    assert_same_answers(World(num_rows=20_000, num_queries=30, seed=1))


@given(
    st.builds(
        World, num_rows=st.integers(2, 300), num_queries=st.integers(1, 20), width=st.integers(1, 70),
        k=st.integers(1, 40), seed=st.integers(0, 10_000),
    )
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_queries_are_answered_as_the_definition_does(world: World) -> None:
    assert_same_answers(world)


def test_equal_scores_come_in_the_order_of_rows() -> None:
    world = World(num_queries=1, k=6)
    world.memory.seen[:], world.memory.heat[:], world.memory.hour[:], world.memory.first[1:] = 0, 0, 0, 0
    world.memory.num_neighbours[:] = 0
    world.memory.last[:] = -1
    world.memory.shortlist_weight[:] = 0
    world.table_VD[:] = 0
    none = np.zeros(0, np.int64)
    world.answers = MemoryAnswers.of([6], [np.array([2, 200])], [None])
    world.events = events_at_once([0], [0], [[]], [[]])
    assert world.best()[0].tolist() == [[1, 3, 4, 5, 6, 7]]
    world.answers = MemoryAnswers.of([6], [none], [np.array([9, 3, 9, 0, 8])])
    assert world.best()[0].tolist() == [[3, 8, 9, -1, -1, -1]]


def test_a_call_leaves_nothing_behind_for_the_next() -> None:
    """A thread's scratch memory is blank again after each call, whatever sizes came in between."""
    world = World(seed=3)
    first = world.best()
    World(num_rows=900, num_queries=3, seed=4).best()
    World(num_rows=40, num_queries=9, seed=5).best()
    for ours, theirs in zip(world.best(), first, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_does_not_fit_is_refused() -> None:
    world = World()
    standing = memory_stand(world.memory, world.num_rows)
    short = world.table_VD[: world.num_rows - 1]
    with pytest.raises(ValueError, match="table_VD: expected contiguous float32 of 250 rows or more"):
        memory_best(world.memory, standing, world.events, world.query_RD, short, world.answers)
    with pytest.raises(ValueError, match="query_RD: expected"):
        memory_best(world.memory, standing, world.events, world.query_RD[:, :3].copy(), world.table_VD, world.answers)
    none = [np.zeros(0, np.int64)] * 5
    beyond = MemoryAnswers.of([1] * 5, [np.array([250]), *none[1:]], [None] * 5)
    with pytest.raises(IndexError, match="out_rows: expected rows 0 to 249"):
        memory_best(world.memory, standing, world.events, world.query_RD, world.table_VD, beyond)
    with pytest.raises(ValueError, match="num_rows"):
        memory_stand(world.memory, 0)
