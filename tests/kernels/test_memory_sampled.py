"""Learning from a sample of the rows: in C++ as it is defined, and an estimate of learning from all of them."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.memory import (
    MemoryArrays,
    MemoryOutcome,
    MemoryRules,
    memory_candidates,
    memory_learn,
    memory_learn_given,
    memory_learn_sampled,
    memory_logits,
    memory_logits_of,
    sampled,
)
from kernels.memory.arrays import DRAWN, RECENT
from tests.kernels.test_memory import NUM_BUCKETS, RULES, Stream, assert_same_memory, events_at_once, one_user
from tests.kernels.yardstick import force, levels

WIDTH, UNIT_WIDTH = 19, 18


def parts(stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    rng, num_asked = np.random.default_rng(stream.seed + 1), int((stream.events().chosen_R == 1).sum())
    query_AD = rng.normal(size=(num_asked, WIDTH)).astype(np.float32)
    return query_AD, rng.normal(size=(stream.num_rows + 3, WIDTH)).astype(np.float32)


def count_each(memory: MemoryArrays, num_rows: int, rules: MemoryRules) -> None:
    """Meet and count rows 1 to ``num_rows`` - 1, one after the other, each with nothing before it."""
    met = one_user(list(range(1, num_rows)))
    counted = replace(met, chosen_R=np.full(len(met), 2, np.uint8), past_begin_R=met.past_end_R)
    memory_learn(memory, num_rows, counted, np.zeros((0, num_rows), np.float32), rules, backend="cpp")


@cache
def counted(stream: Stream, width: int, known: int, rules: MemoryRules) -> MemoryArrays:
    """A memory that has met that many rows: to be copied, because thousands take half a second."""
    memory = stream.memory(width)
    if known:
        count_each(memory, known, rules)
    return memory


def learned(
    stream: Stream, rules: MemoryRules = RULES, *, backend: str = "cpp", known: int = 0, width: int = 16
) -> tuple[MemoryArrays, MemoryOutcome]:
    """After ``known`` rows have been met and counted, one after the other."""
    memory = counted(Stream(num_rows=stream.num_rows, num_columns=stream.num_columns), width, known, rules).copy()
    done = memory_learn_sampled(
        memory, stream.num_rows, stream.events(), *parts(stream), UNIT_WIDTH, rules, backend=backend
    )
    return memory, done


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("exclude", ["never", "always", "auto"])
@pytest.mark.parametrize(("num_rows", "known"), [(12, 0), (4000, 3500)])
def test_a_stream_is_learned_as_the_definition_does(
    monkeypatch: pytest.MonkeyPatch, level: str, exclude: str, num_rows: int, known: int
) -> None:
    force(monkeypatch, level)
    stream = Stream(num_rows=num_rows, num_events=60, num_columns=2)
    rules = replace(RULES, exclude=exclude, seen_half_life=5000.0)
    slow, expected = learned(stream, rules, backend="reference", known=known)
    fast, got = learned(stream, rules, known=known)
    assert_same_memory(fast, slow)
    np.testing.assert_array_equal(fast.recent, slow.recent)
    np.testing.assert_allclose(got.loss_R, expected.loss_R, rtol=1e-3, atol=1e-3)
    assert (got.rank_R == -1).all()
    assert np.isfinite(got.loss_R).any()


@given(
    stream=st.builds(
        Stream, num_rows=st.integers(2, 900), num_users=st.integers(1, 5), num_events=st.integers(0, 40),
        repeats=st.booleans(), seed=st.integers(0, 10_000), num_columns=st.integers(0, 3),
    )
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_any_stream_is_learned_as_the_definition_does(stream: Stream) -> None:
    (slow, expected), (fast, got) = learned(stream, backend="reference", width=64), learned(stream, width=64)
    assert_same_memory(fast, slow)
    np.testing.assert_allclose(got.loss_R, expected.loss_R, rtol=1e-3, atol=1e-4)


def test_if_all_rows_were_chosen_lately_it_is_what_learning_from_all_rows_is() -> None:
    stream, rules = Stream(num_rows=60, num_events=15), replace(RULES, exclude="never")
    memory, done = learned(stream, rules, known=60)
    whole = stream.memory(16)
    count_each(whole, 60, rules)
    logit_AV, losses = memory_logits(*parts(stream), 60, UNIT_WIDTH), []
    events, num_asked = stream.events(), 0
    for r in range(len(events)):  # one at a time, so that the standing features are as fresh
        asked = slice(num_asked, num_asked + int(events.chosen_R[r] == 1))
        losses += memory_learn(whole, 60, events[r : r + 1], logit_AV[asked], rules).loss_R.tolist()
        num_asked = asked.stop
    np.testing.assert_allclose(done.loss_R, losses, rtol=1e-3, atol=1e-3)
    assert_same_memory(memory, whole)


def test_the_drawn_rows_stand_for_all_others() -> None:
    """The sum over all rows, estimated at many moments, is right on average."""
    num_rows, rng = 6000, np.random.default_rng(0)
    memory = MemoryArrays.empty(num_rows, 16, NUM_BUCKETS)
    count_each(memory, num_rows, RULES)
    query_AD, table_VD = rng.normal(size=(1, WIDTH)).astype(np.float32), rng.normal(size=(num_rows, WIDTH))
    event = events_at_once([7], [1], [[3, 4]], [[]])
    rules = replace(RULES, exclude="never")
    masses = []
    for number in range(40):
        now = memory.copy()
        now.clock[0] += 16 * number  # other rows are drawn
        now.first += 16 * number
        now.last += 16 * number
        done = memory_learn_sampled(now, num_rows, event, query_AD, table_VD.astype(np.float32), UNIT_WIDTH, rules)
        masses.append(np.exp(done.loss_R[0]))
    logits = memory_logits(query_AD, table_VD.astype(np.float32), num_rows, UNIT_WIDTH)
    exact = np.exp(memory_learn(memory.copy(), num_rows, event, logits, rules).loss_R[0])
    error = np.std(masses) / np.sqrt(len(masses))
    assert abs(np.mean(masses) - exact) < 4 * error
    assert error < 0.05 * exact  # so a sum without the weights of what was drawn would be seen


def test_other_rows_are_drawn_for_each_event() -> None:
    first, second = sampled.drawn_rows(10, 10_000), sampled.drawn_rows(11, 10_000)
    assert len(first) == DRAWN
    assert len({*first} & {*second}) < DRAWN / 4
    assert min(first) >= 1
    assert max(sampled.drawn_rows(3, 2)) == 1


def test_what_was_chosen_lately_is_remembered_by_both_ways_of_learning() -> None:
    events = one_user([1 + i % 40 for i in range(RECENT + 30)])
    logits = np.zeros((len(events), 50), np.float32)
    whole, few = MemoryArrays.empty(50, 8, NUM_BUCKETS), MemoryArrays.empty(50, 8, NUM_BUCKETS)
    memory_learn(whole, 50, events, logits, RULES)
    memory_learn_sampled(
        few, 50, events, np.zeros((len(events), 4), np.float32), np.zeros((50, 4), np.float32), 3, RULES
    )
    np.testing.assert_array_equal(whole.recent, few.recent)
    assert whole.recent[:30].tolist() == events.target_R[RECENT : RECENT + 30].tolist()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_logits_are_products_with_rows_of_unit_length(backend: str) -> None:
    rng = np.random.default_rng(0)
    for num_queries in (0, 1, 3, 4, 9):
        query_AD = rng.normal(size=(num_queries, WIDTH)).astype(np.float32)
        table_VD = rng.normal(size=(70, WIDTH)).astype(np.float32)
        table_VD[5] = 0.0
        unit_VD = table_VD.copy()
        unit_VD[:, :UNIT_WIDTH] /= np.maximum(np.linalg.norm(table_VD[:, :UNIT_WIDTH], axis=1, keepdims=True), 1e-6)
        logits = memory_logits(query_AD, table_VD, 66, UNIT_WIDTH, backend=backend)
        np.testing.assert_allclose(logits, query_AD @ unit_VD[:66].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize(("num_rows", "known", "width"), [(12, 0, 16), (4000, 3500, 16), (90, 50, 3)])
def test_with_the_logits_of_the_candidates_alone_the_same_is_learned(
    monkeypatch: pytest.MonkeyPatch, level: str, num_rows: int, known: int, width: int
) -> None:
    """To the bit, with many events in a call, whose rows become each other's neighbours."""
    force(monkeypatch, level)
    stream = Stream(num_rows=num_rows, num_events=60, num_columns=2)
    (query_AD, table_VD), events = parts(stream), stream.events()
    expected, done = learned(stream, known=known, width=width)
    memory = stream.memory(width)
    if known:
        count_each(memory, known, RULES)
    row, begin_A1 = memory_candidates(memory, num_rows, events)
    logit = memory_logits_of(query_AD, table_VD, row, begin_A1, UNIT_WIDTH)
    given_ = memory_learn_given(memory, num_rows, events, row, begin_A1, logit, RULES)
    for each in fields(MemoryArrays):
        np.testing.assert_array_equal(getattr(memory, each.name), getattr(expected, each.name), err_msg=each.name)
    np.testing.assert_array_equal(given_.loss_R, done.loss_R)


@pytest.mark.parametrize("counts_them", [True, False])
def test_candidates_suffice_after_events_that_were_compared_with_all_rows_meanwhile(*, counts_them: bool) -> None:
    """They are listed before the first event. Broken: what the events in between add is not noted."""
    stream, num_rows = Stream(num_rows=4000, num_events=60, num_columns=2), 4000
    (query_AD, table_VD), events = parts(stream), stream.events()
    logit_AV = memory_logits(query_AD, table_VD, num_rows, UNIT_WIDTH)
    expected, memory = stream.memory(16), stream.memory(16)
    for each in (expected, memory):
        count_each(each, 3500, RULES)
    chosen_R = events.chosen_R.copy()
    chosen_R[20:40][chosen_R[20:40] == 1] = 2 if counts_them else 0
    row, begin_A1 = memory_candidates(memory, num_rows, replace(events, chosen_R=chosen_R))
    before_R1 = np.concatenate([[0], np.cumsum(events.chosen_R == 1)])
    listed_R1 = np.concatenate([[0], np.cumsum(chosen_R == 1)])
    for part in (slice(0, 20), slice(20, 40), slice(40, 60)):
        asked = slice(*before_R1[[part.start, part.stop]])
        if part.start == 20:
            for each in (expected, memory):
                memory_learn(each, num_rows, events[part], logit_AV[asked].copy(), RULES)
            continue
        memory_learn_sampled(expected, num_rows, events[part], query_AD[asked], table_VD, UNIT_WIDTH, RULES)
        begin = begin_A1[listed_R1[part.start] : listed_R1[part.stop] + 1]
        rows, begin = row[begin[0] : begin[-1]], begin - begin[0]
        logit = memory_logits_of(query_AD[asked], table_VD, rows, begin, UNIT_WIDTH)
        memory_learn_given(memory, num_rows, events[part], rows, begin, logit, RULES)
    assert (memory.gain.tobytes() == expected.gain.tobytes()) == counts_them


def by_event(row: np.ndarray, begin_A1: np.ndarray) -> list[list[int]]:
    return [sorted(row[start:stop].tolist()) for start, stop in pairwise(begin_A1.tolist())]


@given(
    stream=st.builds(
        Stream, num_rows=st.integers(2, 300), num_users=st.integers(1, 5), num_events=st.integers(0, 40),
        repeats=st.booleans(), seed=st.integers(0, 10_000),
    )
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_the_candidates_are_those_of_the_definition(stream: Stream) -> None:
    memory, events = learned(stream, width=4)[0], stream.events()
    fast, slow = (memory_candidates(memory, stream.num_rows, events, backend=each) for each in ("cpp", "reference"))
    assert by_event(*fast) == by_event(*slow)
    assert len(by_event(*fast)) == int((events.chosen_R == 1).sum())


def test_rows_that_become_neighbours_within_a_call_are_candidates() -> None:
    events = events_at_once([5, 6], [1, 1], [[3, 4], [5]], [[], []])
    memory = MemoryArrays.empty(5000, 8, NUM_BUCKETS)
    count_each(memory, 5000, replace(RULES, exclude="never"))
    _, second = by_event(*memory_candidates(memory, 5000, events))
    (alone,) = by_event(*memory_candidates(memory, 5000, events[1:]))
    assert {3, 4} <= {*second}  # beside 5, where the first event has put them
    assert not {3, 4} & {*alone}


def test_logits_of_rows_elsewhere_are_those_of_the_table() -> None:
    rng = np.random.default_rng(0)
    query_AD, table_VD = (rng.normal(size=(num, WIDTH)).astype(np.float32) for num in (3, 50))
    row, begin_A1 = rng.integers(0, 50, 40).astype(np.int32), np.array([0, 7, 7, 40])
    for backend in ("cpp", "reference"):
        logits = memory_logits(query_AD, table_VD, 50, UNIT_WIDTH, backend=backend)
        got = memory_logits_of(query_AD, table_VD, row, begin_A1, UNIT_WIDTH, backend=backend)
        np.testing.assert_array_equal(got, logits[np.repeat([0, 1, 2], [7, 0, 33]), row])
    with pytest.raises(IndexError, match="expected rows 0 to 19"):
        memory_logits_of(query_AD, table_VD[:20], row, begin_A1, UNIT_WIDTH)
    with pytest.raises(ValueError, match="expected ascending from 0 to 40"):
        memory_logits_of(query_AD, table_VD, row, np.array([0, 7, 6, 40]), UNIT_WIDTH)


def test_bad_shapes_are_refused() -> None:
    memory, events = MemoryArrays.empty(16, 8, NUM_BUCKETS), one_user([1, 2, 3])
    query_AD, table_VD = np.zeros((3, 4), np.float32), np.zeros((16, 4), np.float32)
    for changed, message in (
        ({"query_AD": query_AD[:2]}, "expected 3 rows, one for each event to predict, got 2"),
        ({"table_VD": table_VD[:7]}, "expected 8 rows or more of width 4"),
        ({"table_VD": table_VD.astype(np.float64)}, "expected a contiguous float32"),
        ({"unit_width": 5}, "expected 0 to 4, got 5"),
        ({"num_rows": 1, "events": one_user([]), "query_AD": query_AD[:0]}, "at least 2 to draw from"),
        ({"rules": replace(RULES, exclude="sometimes")}, "expected one of"),
    ):
        given_ = {
            "memory": memory, "num_rows": 8, "events": events, "query_AD": query_AD, "table_VD": table_VD,
            "unit_width": 3, "rules": RULES,
        }  # fmt: skip
        with pytest.raises(ValueError, match=message):
            memory_learn_sampled(**{**given_, **changed})


def test_nothing_but_the_memory_is_left_behind() -> None:
    """Scratch memory is shared by a thread's calls: the second call of the same stream does the same."""
    stream = Stream(num_rows=300, num_events=40, num_columns=2)
    (first, _), (second, _) = learned(stream), learned(stream)
    for each in fields(MemoryArrays):
        np.testing.assert_array_equal(getattr(first, each.name), getattr(second, each.name), err_msg=each.name)
