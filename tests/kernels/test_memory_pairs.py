"""What is counted of two choices in a row, and of the last but one: it helps where they decide what comes next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.memory import MemoryArrays, MemoryEvents, MemoryOutcome, memory_forget, memory_learn, memory_scores
from kernels.memory import pairs as definition
from kernels.memory.arrays import NEXT_OF_PAIR
from kernels.memory.pairs import slots_of
from kernels.memory.reference import memory_learn_grouped
from tests.kernels.test_memory import NUM_BUCKETS, RULES, Stream, assert_same_memory, events_at_once, learned

NUM_ROWS, NUM_PAIRS = 41, 4096


def of_two(rng: np.random.Generator, num: int, *, lags: tuple[int, ...]) -> MemoryEvents:
    """One user's choices, each of which follows from those at these lags together; a fifth are of any item."""
    rows = rng.integers(1, NUM_ROWS, max(lags, default=1)).tolist()
    while len(rows) < num:
        known = sum(7**place * rows[-lag] for place, lag in enumerate(lags, 1))
        follows = lags and rng.random() < 0.8
        rows.append(1 + known % (NUM_ROWS - 1) if follows else int(rng.integers(1, NUM_ROWS)))
    past = [rows[max(0, at - 5) : at] for at in range(num)]
    return events_at_once(rows, np.ones(num), past, past)


def after(events: MemoryEvents, num_pairs: int, *, backend: str = "cpp") -> tuple[MemoryArrays, MemoryOutcome]:
    memory = MemoryArrays.empty(NUM_ROWS, 16, NUM_BUCKETS, num_pairs=num_pairs)
    logits = np.zeros((int((events.chosen_R == 1).sum()), NUM_ROWS), np.float32)
    rules = replace(RULES, exclude="never", seen_half_life=1e5)
    return memory, memory_learn(memory, NUM_ROWS, events, logits, rules, backend=backend)


def late_loss(outcome: MemoryOutcome) -> float:
    return float(np.nanmean(outcome.loss_R[len(outcome.loss_R) // 2 :]))


@pytest.mark.parametrize(("lags", "least", "most"), [((1, 2), 0.8, 3.0), ((2,), 0.2, 3.0), ((), -0.05, 0.1)])
def test_what_follows_from_two_choices_is_predicted_and_where_nothing_does_no_harm_is_done(
    lags: tuple[int, ...], least: float, most: float
) -> None:
    events = of_two(np.random.default_rng(0), 6000, lags=lags)
    assert least < late_loss(after(events, 0)[1]) - late_loss(after(events, NUM_PAIRS)[1]) < most


def test_in_groups_what_follows_from_two_choices_is_predicted_nearly_as_well() -> None:
    """32 events from one state, as on a GPU."""
    events, rules = of_two(np.random.default_rng(0), 2500, lags=(1, 2)), replace(RULES, exclude="never")
    memory, logits = MemoryArrays.empty(NUM_ROWS, 16, NUM_BUCKETS, num_pairs=NUM_PAIRS), np.zeros((2500, NUM_ROWS))
    grouped = memory_learn_grouped(
        memory, NUM_ROWS, events, logits.astype(np.float32), replace(rules, seen_half_life=1e5), 32
    )
    one_by_one, without = (late_loss(after(events, num_pairs)[1]) for num_pairs in (NUM_PAIRS, 0))
    assert late_loss(grouped) < one_by_one + 0.1
    assert late_loss(grouped) < without - 0.8


def scores_after(memory: MemoryArrays, past: list[int]) -> np.ndarray:
    score = np.zeros((1, NUM_ROWS), np.float32)
    memory_scores(memory, NUM_ROWS, events_at_once([0], [0], [past], [[]]), score)
    return score[0]


def chosen(rows: list[list[int]]) -> MemoryEvents:
    past = [mine[:at] for mine in rows for at in range(len(mine))]
    flat = [row for mine in rows for row in mine]
    return events_at_once(flat, np.full(len(flat), 2), past, past)


def test_one_sighting_of_two_choices_says_what_comes_next() -> None:
    """3 follows 1 and 2 together; 4 follows 2 more often, after others."""
    memory, _ = after(chosen([[1, 2, 3], *([row, 2, 4] for row in (5, 6, 7, 8))]), NUM_PAIRS)
    memory.gain[0, -2] = 1.0
    score = scores_after(memory, [1, 2])
    assert score[3] > score[4]
    score = scores_after(memory, [9, 2])
    assert score[4] > score[3]


def test_a_pair_that_counts_more_keeps_its_slot_until_others_have_come_as_often() -> None:
    num_pairs = 64
    pair_N2 = np.array([[first, second] for first in range(1, NUM_ROWS) for second in range(1, NUM_ROWS)], np.int32)
    slot_N, slot_of_first_N = (slots_of(each, num_pairs) for each in (pair_N2, pair_N2 * np.array([1, 0], np.int32)))
    slot = int(slot_N[0])
    one, other = pair_N2[(slot_N == slot) & (slot_of_first_N != slot)][:2].tolist()
    memory = MemoryArrays.empty(NUM_ROWS, 16, NUM_BUCKETS, num_pairs=num_pairs)
    for pair, times, holder in ((one, 5, one), (other, 2, one), (one, 9, one), (other, 40, other)):
        past = [pair] * times
        events = events_at_once([3] * times, np.full(times, 2), past, past)
        memory_learn(memory, NUM_ROWS, events, np.zeros((0, NUM_ROWS), np.float32), RULES)
        assert memory.pair_row[slot].tolist() == holder


def test_what_follows_a_pair_in_many_ways_is_not_held_to_follow_it() -> None:
    """Of forty rows that are equally likely to follow, the eight that have a place are not a sign of anything."""
    rng = np.random.default_rng(0)
    past = [[1, 2]] * 4000
    events = events_at_once(rng.integers(1, NUM_ROWS, 4000), np.full(4000, 2), past, past)
    memory, _ = after(events, NUM_PAIRS)
    slot = int(slots_of(np.array([[1, 2]], np.int32), NUM_PAIRS)[0])
    assert memory.pair_count[slot].sum() / memory.clock[1] < 0.03 * 4000


def test_an_evicted_row_is_in_no_pair_and_follows_none() -> None:
    memory, _ = learned(Stream(num_events=300, num_pairs=256))
    assert {5, 7} & set(memory.pair_row.ravel().tolist())
    assert {5, 7} & set(memory.pair_next.ravel().tolist())
    memory.pair_dirty[:], memory.pair_moved[:] = 0, 0
    before = memory.copy()
    memory_forget(memory, 12, np.isin(np.arange(memory.capacity), [5, 7]))
    assert not {5, 7} & {*memory.pair_row.ravel().tolist(), *memory.pair_next.ravel().tolist()}
    emptied = (before.pair_row[:, 0] > 0) & (memory.pair_row[:, 0] == 0)
    assert emptied.any()
    assert not memory.pair_count[emptied].any()
    changed = (before.pair_next != memory.pair_next).any(axis=1) | emptied
    np.testing.assert_array_equal(memory.pair_dirty > 0, changed)
    assert not changed.all()


def test_counts_are_kept_when_their_unit_is_reset() -> None:
    """Long after the unit was reset, what two choices are followed by is known as well."""
    rules = replace(RULES, seen_half_life=2.0, exclude="never")
    memory = MemoryArrays.empty(NUM_ROWS, 16, NUM_BUCKETS, num_pairs=NUM_PAIRS)
    rows = [1 + at % 4 for at in range(200)]
    events = events_at_once(rows, np.ones(200), [rows[max(0, at - 3) : at] for at in range(200)], [[]] * 200)
    units = list[float]()
    for at in range(200):
        memory_learn(memory, NUM_ROWS, events[at : at + 1], np.zeros((1, NUM_ROWS), np.float32), rules)
        units.append(float(memory.clock[1]))
    assert min(np.diff(units)) < 0
    slot = int(slots_of(np.array([[1, 2]], np.int32), NUM_PAIRS)[0])
    assert memory.pair_next[slot, np.argmax(memory.pair_count[slot])] == 3
    assert 0.1 < memory.pair_count[slot].max() / units[-1] < 2.0


@pytest.mark.parametrize("broken", ["_count", "forget_pairs", "rescale_pairs"])
def test_a_build_that_forgets_a_part_of_it_would_be_noticed(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    stream, rules = Stream(num_events=120), replace(RULES, seen_half_life=2.0)
    gone_V = np.isin(np.arange(stream.num_rows + 4), [3, 4])
    right, _ = learned(stream, rules)
    memory_forget(right, 12, gone_V)
    other, _ = learned(stream, rules, backend="reference")
    memory_forget(other, 12, gone_V, backend="reference")
    assert_same_memory(other, right)
    if broken == "_count":
        monkeypatch.setattr(definition, "_count", lambda *_: None)
    else:
        for module in ("reference", "counting"):
            monkeypatch.setattr(f"kernels.memory.{module}.{broken}", lambda *_: None, raising=False)
    other, _ = learned(stream, rules, backend="reference")
    memory_forget(other, 12, gone_V, backend="reference")
    with pytest.raises(AssertionError):
        assert_same_memory(other, right)


def test_a_slot_has_as_many_successors_as_bits_say_what_changed() -> None:
    assert MemoryArrays.empty(1, 1, 1, num_pairs=2).pair_next.shape == (2, NEXT_OF_PAIR)
    assert 8 * MemoryArrays.empty(1, 1, 1).pair_moved.itemsize == NEXT_OF_PAIR
