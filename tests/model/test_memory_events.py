"""The memory's events in C++ against their definition by masks and searches."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.memory import MemoryEvents
from kernels.memory.past import VISIT_MS
from model.config import ModelConfig
from model.kinds import chosen
from model.memory_events import events_of

MODEL = ModelConfig(kinds=("impression", "click", "hide"))
NUM_BUCKETS = 5
Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def defined(batch: Batch, owner_R: np.ndarray, asked_R: np.ndarray, is_chosen_R: np.ndarray | None) -> MemoryEvents:
    rows_n, bits_n, time_ms_n, starts_B1 = batch
    is_chosen_n, is_known_n = chosen(bits_n, MODEL), rows_n > 0
    lists = [np.flatnonzero(each) for each in (is_chosen_n & is_known_n, is_known_n, ~is_chosen_n & is_known_n)]
    past, met, shown = ((np.searchsorted(each, starts_B1[owner_R]), np.searchsorted(each, asked_R)) for each in lists)
    past_rows, met_rows, shown_rows = (rows_n[each].astype(np.int32) for each in lists)
    target_R, chosen_R = np.zeros(len(asked_R), np.int32), np.zeros(len(asked_R), np.uint8)
    if is_chosen_R is not None:
        target_R, chosen_R = rows_n[asked_R].astype(np.int32), is_chosen_R.astype(np.uint8)
    now_ms_R = np.append(time_ms_n, 0)[asked_R]
    return MemoryEvents(
        target_R, chosen_R, past_rows, *past, met_rows, *met, time_ms_n[lists[0]], now_ms_R, shown_rows, *shown
    )


def visits_of(events: MemoryEvents) -> np.ndarray:
    """(R,) how many of the last choices belong to the current visit: see `kernels.memory.past`."""
    begin_R, end_R, ms = events.past_begin_R, events.past_end_R, events.past_ms
    if not len(ms):
        return np.zeros(len(events), np.int64)
    ends = np.where(np.diff(ms) >= VISIT_MS, np.arange(1, len(ms)), 0)
    newest_end = np.maximum.accumulate(np.append(0, ends))  # where the visit of each choice begins
    last_R = np.maximum(end_R - 1, 0)
    is_on_R = (end_R > begin_R) & (events.now_ms_R - ms[last_R] < VISIT_MS)
    return np.where(is_on_R, end_R - np.maximum(begin_R, newest_end[last_R]), 0)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Of a few users, some without interactions; unknown items among them, pauses of all lengths."""
    lengths = draw(st.lists(st.integers(0, 40), max_size=5))
    rng, num = np.random.default_rng(draw(st.integers(0, 1 << 30))), sum(lengths)
    pauses = rng.choice(np.array([0, 1, VISIT_MS - 1, VISIT_MS, VISIT_MS + 1]), num)
    starts_B1 = np.cumsum([0, *lengths])
    return rng.integers(0, 6, num), rng.integers(0, 8, num).astype(np.uint32), np.cumsum(pauses), starts_B1


def asked_of(batch: Batch, rng: np.random.Generator, *, told: bool) -> tuple[np.ndarray, np.ndarray]:
    """Owners and places of some events, in any order; where they are still to come also behind the last interaction."""
    places = [
        (owner, at)
        for owner, (start, end) in enumerate(zip(batch[3][:-1], batch[3][1:], strict=True))
        for at in range(start, end + (not told))
        if rng.random() < 0.6
    ]
    return np.array(rng.permutation(places), np.int64).reshape(-1, 2).T


def same(found: MemoryEvents, expected: MemoryEvents) -> None:
    for each in fields(MemoryEvents):
        mine, theirs = getattr(found, each.name), getattr(expected, each.name)
        assert (mine is None) == (theirs is None), each.name
        if mine is not None:
            assert mine.dtype == theirs.dtype, each.name
            np.testing.assert_array_equal(mine, theirs, each.name)


@settings(max_examples=200, deadline=None)
@given(batch=batches(), told=st.booleans(), seed=st.integers(0, 1000))
def test_events_are_those_of_the_definition(batch: Batch, told: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    owner_R, asked_R = asked_of(batch, rng, told=told)
    is_chosen_R = rng.random(len(asked_R)) < 0.5 if told else None
    expected = defined(batch, owner_R, asked_R, is_chosen_R)
    same(events_of(*batch, owner_R, asked_R, expected.now_ms_R, MODEL, is_chosen_R=is_chosen_R), expected)


@settings(max_examples=200, deadline=None)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_a_gpu_is_sent_the_numbers_of_the_definition(batch: Batch, seed: int) -> None:
    sending = pytest.importorskip("kernels.memory.sending", reason="needs Triton", exc_type=ImportError)
    rng = np.random.default_rng(seed)
    owner_R, asked_R = asked_of(batch, rng, told=True)
    events = defined(batch, owner_R, asked_R, np.ones(len(asked_R), np.bool_))
    events.chosen_R[:] = rng.integers(0, 3, len(asked_R))
    event, outcome_4R = sending.told_of(events, NUM_BUCKETS)
    num_past, is_asked_R = events.past_end_R - events.past_begin_R, events.chosen_R == 1
    columns = [
        events.target_R, events.chosen_R, events.past_begin_R, events.past_end_R, events.met_begin_R, events.met_end_R,
        1 + np.minimum(NUM_BUCKETS - 1, np.log2(1.0 + num_past) + 0.5).astype(np.int64),
        np.maximum(np.cumsum(is_asked_R) - 1, 0), visits_of(events), events.shown_begin_R, events.shown_end_R,
        np.zeros(len(events)),
    ]  # fmt: skip
    assert event.shape == (len(events), sending.EVENT.value)
    np.testing.assert_array_equal(event, np.stack(columns, axis=1))
    np.testing.assert_array_equal(outcome_4R[:3, : len(events)], np.where(is_asked_R, 0, -1)[None].repeat(3, axis=0))
    assert np.isnan(outcome_4R[3].view(np.float32)).all()


def test_columns_of_other_types_are_refused() -> None:
    none = np.zeros(0, np.int64)
    with pytest.raises(AssertionError, match="int32"):
        events_of(np.zeros(0, np.int32), none.astype(np.uint32), none, np.zeros(1, np.int64), none, none, none, MODEL,
                  is_chosen_R=None)  # fmt: skip
