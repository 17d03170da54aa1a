"""At what time of day items are chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.memory import FEATURES, MemoryArrays, MemoryEvents, MemoryOutcome, memory_learn, memory_scores
from kernels.memory.arrays import NUM_HOURS
from kernels.memory.features import standing_of
from kernels.memory.hours import PRIOR, SEEN, parts_at
from kernels.memory.past import DAY_MS
from tests.kernels.test_memory import NUM_BUCKETS, RULES, Stream, assert_same_memory, events_at_once, learned
from tests.kernels.yardstick import force, levels

NUM_ROWS = 40
HOUR_MS = DAY_MS // 24
WIDTH_MS = DAY_MS // NUM_HOURS
HOURLY = FEATURES.index("hourly")


def at_times(rows: list[int], times_ms: list[int], *, kind: int = 1) -> MemoryEvents:
    """Choices of users who come once."""
    nothing: list[list[int]] = [[] for _ in rows]
    events = events_at_once(rows, np.full(len(rows), kind), nothing, nothing)
    return replace(events, now_ms_R=np.array(times_ms, np.int64))


def after(events: MemoryEvents, num_hours: int = NUM_HOURS) -> tuple[MemoryArrays, MemoryOutcome]:
    memory = MemoryArrays.empty(NUM_ROWS, 8, NUM_BUCKETS, num_hours=num_hours)
    logits = np.zeros((int((events.chosen_R == 1).sum()), NUM_ROWS), np.float32)
    rules = replace(RULES, exclude="never", seen_half_life=1e5, heat_half_lives=(50.0, 500.0, 5000.0))
    return memory, memory_learn(memory, NUM_ROWS, events, logits, rules)


def late_loss(outcome: MemoryOutcome) -> float:
    return float(np.nanmean(outcome.loss_R[len(outcome.loss_R) // 2 :]))


@pytest.mark.parametrize(("has_hours", "least", "most"), [(True, 0.2, 2.0), (False, -0.02, 0.02)])
def test_what_is_chosen_at_this_time_of_day_is_predicted_and_where_nothing_is_no_harm_is_done(
    has_hours: bool, least: float, most: float
) -> None:
    """Each item has its eight hours of the day, or none; a hundred choices a day, each of another user."""
    rng = np.random.default_rng(0)
    times_ms = (np.arange(6000) * (DAY_MS // 100)).tolist()
    first = [10 * (ms % DAY_MS // (8 * HOUR_MS)) if has_hours else 1 for ms in times_ms]
    rows = [each + 1 + int(9 * rng.random() ** 2) for each in first]
    events = at_times(rows, times_ms)
    assert least < late_loss(after(events, 0)[1]) - late_loss(after(events)[1]) < most


@pytest.mark.parametrize(
    ("time_ms", "expected"),
    [
        (WIDTH_MS // 2, (0, 1, 0.0)),
        (WIDTH_MS, (0, 1, 0.5)),
        (WIDTH_MS + WIDTH_MS // 2, (1, 2, 0.0)),
        (0, (NUM_HOURS - 1, 0, 0.5)),
        (DAY_MS - WIDTH_MS // 2, (NUM_HOURS - 1, 0, 0.0)),
        (DAY_MS, (NUM_HOURS - 1, 0, 0.5)),
        (-1, (NUM_HOURS - 1, 0, (WIDTH_MS // 2 - 1) / WIDTH_MS)),
    ],
)
def test_a_choice_counts_for_the_two_parts_of_the_day_next_to_it(
    time_ms: int, expected: tuple[int, int, float]
) -> None:
    assert parts_at(time_ms) == expected
    memory, _ = after(at_times([1], [time_ms], kind=2))
    first, second, share = expected
    counted_H = np.zeros(NUM_HOURS)
    counted_H[first], counted_H[second] = 1.0 - share, share
    np.testing.assert_allclose(memory.hour[1], counted_H, atol=1e-6)
    assert not np.delete(memory.hour, 1, axis=0).any()


def test_the_feature_is_by_how_much_an_item_is_likelier_than_at_other_times() -> None:
    """Row 1 is always chosen at six in the morning and row 2 at six in the evening; now it is morning."""
    middle_ms = WIDTH_MS // 2
    memory, _ = after(at_times([1, 2] * 50, [middle_ms, middle_ms + DAY_MS // 2] * 50, kind=2))
    memory.clock[-1] = middle_ms
    found_V = standing_of(memory, slice(4))[HOURLY]
    num = memory.hour[1].sum() / memory.clock[SEEN]
    assert found_V[1] == pytest.approx(np.log((NUM_HOURS * num + PRIOR) / (num + PRIOR)), rel=1e-4)
    assert found_V[2] == pytest.approx(np.log(PRIOR / (memory.hour[2].sum() / memory.clock[SEEN] + PRIOR)), rel=1e-4)
    assert found_V[[0, 3]].tolist() == [0.0, 0.0], "nothing is known of rows that were never chosen"
    memory.gain[0, HOURLY] = 1.0
    nobody, best = at_times([0], [0], kind=0), []
    for time_ms in (middle_ms, middle_ms + DAY_MS // 2):
        memory.clock[-1] = time_ms
        score = np.zeros((1, NUM_ROWS), np.float32)
        memory_scores(memory, NUM_ROWS, nobody, score)
        best.append(int(score[0, 1:3].argmax()) + 1)
    assert best == [1, 2]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("known_ms", [0, 40 * DAY_MS, 3 * HOUR_MS])
def test_an_event_that_comes_late_does_not_set_the_time_of_day_back(backend: str, known_ms: int) -> None:
    """Also where an earlier build had only the time of day."""
    memory, now_ms = MemoryArrays.empty(NUM_ROWS, 8, NUM_BUCKETS, num_hours=NUM_HOURS), 50 * DAY_MS + 20 * HOUR_MS
    memory.clock[-1] = known_ms
    events, nothing = at_times([1, 2, 0], [now_ms, now_ms - 12 * HOUR_MS, now_ms - 1], kind=2), np.zeros((0, NUM_ROWS))
    memory_learn(memory, NUM_ROWS, events, nothing.astype(np.float32), RULES, backend=backend)
    assert memory.clock[-1] == now_ms
    found_V = standing_of(memory, slice(4))[HOURLY]
    assert found_V[1] > 0 > found_V[2], "it is still evening"


@pytest.mark.parametrize("level", levels())
def test_times_before_1970_and_rescaled_counts_are_as_defined(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    force(monkeypatch, level)
    stream = Stream(num_events=80)
    early = replace(stream.events(), now_ms_R=stream.events().now_ms_R - 40 * DAY_MS - 12_345)
    found = []
    for backend in ("reference", "cpp"):
        memory = stream.memory(16)
        memory.clock[SEEN] = 1e12 * 0.9
        memory_learn(memory, stream.num_rows, early, stream.logits(), RULES, backend=backend)
        found.append(memory)
    assert found[0].clock[SEEN] < 1e12, "the unit was rescaled on the way"
    assert found[0].hour.any()
    assert_same_memory(found[1], found[0])


def test_without_times_of_day_none_are_counted() -> None:
    memory, _ = learned(Stream(num_hours=0))
    assert memory.hour.shape == (memory.capacity, 0)
    assert memory.clock[-1] == 0.0
    assert not standing_of(memory, slice(memory.capacity))[HOURLY].any()
