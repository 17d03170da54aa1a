"""The best rows among candidates: like those of all rows, as far as the candidates go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.memory import MemoryAnswers, MemoryCandidates, memory_best, memory_stand
from tests.kernels.test_memory_best import World
from tests.kernels.yardstick import force, levels

Answer = tuple[np.ndarray, np.ndarray]


def answer(world: World, candidates: MemoryCandidates | None, backend: str = "cpp") -> Answer:
    standing = memory_stand(world.memory, world.num_rows, backend=backend)
    return memory_best(
        world.memory, standing, world.events, world.query_RD, world.table_VD, unlimited(world), candidates,
        backend=backend,
    )  # fmt: skip


def unlimited(world: World) -> MemoryAnswers:
    begin = world.answers.out_begin_R1
    out = [world.answers.out_rows[begin[r] : begin[r + 1]].astype(np.int64) for r in range(world.num_queries)]
    return MemoryAnswers.of(world.answers.k_R.tolist(), out, [None] * world.num_queries)


def candidates_of(world: World, num_lists: int, num_probes: int, num_shared: int) -> MemoryCandidates:
    """Rows in lists at random, and some that all queries share, of which some are in lists as well."""
    rng = np.random.default_rng(world.seed)
    list_V = rng.integers(num_lists, size=world.num_rows)
    probe = [rng.permutation(num_lists)[:num_probes] for _ in range(world.num_queries)]
    return MemoryCandidates(
        shared_rows=rng.permutation(world.num_rows)[:num_shared].astype(np.int32),
        list_rows=np.argsort(list_V, kind="stable").astype(np.int32),
        list_begin_L1=np.searchsorted(np.sort(list_V), np.arange(num_lists + 1)),
        num_rows=world.num_rows,
        probe_RP=np.array(probe, np.int32).reshape(world.num_queries, -1),
    )


def assert_equal(ours: Answer, theirs: Answer) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("num_queries", [1, 7, 70])
@pytest.mark.parametrize("num_rows", [250, 40_000])  # in one tile, and in many
def test_with_all_lists_the_answer_is_that_of_the_whole_table(
    monkeypatch: pytest.MonkeyPatch, level: str, num_queries: int, num_rows: int
) -> None:
    force(monkeypatch, level)
    world = World(num_rows=num_rows, num_queries=num_queries, width=64, seed=2)
    assert_equal(answer(world, candidates_of(world, 9, 9, 40)), answer(world, None))


def test_sharing_all_rows_is_the_whole_table_too() -> None:
    world = World(num_rows=900, num_queries=20, seed=4)
    assert_equal(answer(world, candidates_of(world, 5, 0, 900)), answer(world, None))


@given(
    st.builds(World, num_rows=st.integers(2, 300), num_queries=st.integers(1, 20), width=st.integers(1, 70),
              k=st.integers(1, 40), seed=st.integers(0, 10_000)),
    st.integers(1, 12), st.integers(0, 12), st.integers(0, 50),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_candidates_are_answered_as_the_definition_does(
    world: World, num_lists: int, num_probes: int, num_shared: int
) -> None:
    candidates = candidates_of(world, num_lists, min(num_probes, num_lists), num_shared)
    (rows, scores), (expected_rows, expected) = (answer(world, candidates, each) for each in ("cpp", "reference"))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)
    with np.errstate(invalid="ignore"):
        gap = np.abs(np.diff(expected, axis=1, prepend=np.inf, append=-np.inf))
    is_clear = ~(np.minimum(gap[:, :-1], gap[:, 1:]) < 2e-3)
    np.testing.assert_array_equal(rows[is_clear], expected_rows[is_clear])


def test_a_call_leaves_nothing_behind_for_the_next() -> None:
    world = World(seed=3)
    candidates = candidates_of(world, 8, 3, 60)
    first, whole = answer(world, candidates), answer(world, None)
    answer(World(num_rows=900, num_queries=3, seed=4), None)
    assert_equal(answer(world, candidates), first)
    assert_equal(answer(world, None), whole)


def test_what_does_not_fit_is_refused() -> None:
    world = World()
    good = candidates_of(world, 4, 2, 10)
    parts = [good.shared_rows, good.list_rows, good.list_begin_L1, good.num_rows, good.probe_RP]

    def changed(place: int, value: object) -> MemoryCandidates:
        return MemoryCandidates(*[value if at == place else part for at, part in enumerate(parts)])

    for place, value, error, message in (
        (0, np.array([250], np.int32), IndexError, "expected rows 0 to 249"),
        (0, np.array([2]), ValueError, "shared_rows: expected contiguous int32"),
        (2, good.list_begin_L1[:-1], ValueError, "list_begin_L1: expected int64 ascending from 0 to 250"),
        (3, 251, IndexError, "expected rows 0 to 249"),
        (4, good.probe_RP + 3, IndexError, "probe_RP: expected lists 0 to 3 of 5 queries"),
        (4, good.probe_RP[:3], IndexError, "of 5 queries"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            answer(world, changed(place, value))
    standing = memory_stand(world.memory, world.num_rows)
    limited = MemoryAnswers.of([1] * 5, [np.zeros(0, np.int64)] * 5, [np.array([3])] * 5)
    with pytest.raises(ValueError, match="limited_R: expected no limited query"):
        memory_best(world.memory, standing, world.events, world.query_RD, world.table_VD, limited, good)
