"""The memory in C++ against its definition, and its promises: order, bounded room, no harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from kernels.memory import (
    FEATURES,
    MemoryArrays,
    MemoryEvents,
    MemoryOutcome,
    MemoryPast,
    MemoryRules,
    memory_forget,
    memory_learn,
    memory_scores,
)
from kernels.memory.arrays import CLOCK, NUM_HOURS, SEEN_AGAIN
from kernels.memory.features import MOST_SHARE, weighted_sum
from kernels.memory.past import DAY_MS, VISIT_MS, WEEK_MS
from tests.kernels.yardstick import force, levels

NUM_BUCKETS, NUM_GROUPS = 8, 30
RULES = MemoryRules(heat_half_lives=(3.0, 10.0, 40.0), seen_half_life=50.0, exclude="auto")


@dataclass(frozen=True)
class Stream:
    """Users who choose items, and sometimes only meet them; later ones prefer what followed what they chose. In each
    column an item's group changes now and then, and is sometimes not told."""

    num_rows: int = 12
    num_users: int = 3
    num_events: int = 40
    repeats: bool = True
    seed: int = 0
    weighed: bool = False
    num_columns: int = 0
    num_pairs: int = 32
    num_hours: int = NUM_HOURS

    def events(self) -> MemoryEvents:
        rng = np.random.default_rng(self.seed)
        histories: list[list[tuple[int, bool, int]]] = [[] for _ in range(self.num_users)]
        target, chosen, past, met, shown, past_ms, now_ms = [], [], [], [], [], [], [0]
        for _ in range(self.num_events):
            history = histories[rng.integers(self.num_users)]
            row = int(rng.integers(0, self.num_rows))
            if history and rng.random() < 0.5:
                row = 1 + history[-1][0] % (self.num_rows - 1)
            if not self.repeats and row in {each for each, *_ in history}:
                row = 0
            target.append(row)
            chosen.append(rng.choice([0, 1, 1, 1, 1, 2]))
            past.append([each for each, was_chosen, _ in history if was_chosen])
            past_ms += [ms for _, was_chosen, ms in history if was_chosen]
            met.append([each for each, *_ in history])
            shown.append([each for each, was_chosen, _ in history if not was_chosen])
            pauses_ms = 0, 40_000, 600_000, VISIT_MS, DAY_MS - VISIT_MS, WEEK_MS - 7 * VISIT_MS
            now_ms.append(now_ms[-1] + int(rng.choice(pauses_ms)))
            if row:
                history.append((row, bool(chosen[-1]), now_ms[-1]))
        timeless = events_at_once(target, chosen, past, met, shown)
        if self.weighed:
            timeless = replace(timeless, weight_R=rng.uniform(0.1, 3.0, len(target)).astype(np.float32))
        if self.num_columns:
            drawn_RC = rng.integers(0, NUM_GROUPS, (len(target), self.num_columns))
            own_RC = 1 + np.array(target)[:, None] % np.arange(3, 3 + self.num_columns)
            group_RC = np.where(rng.random(drawn_RC.shape) < 0.3, drawn_RC, own_RC).astype(np.int32)
            timeless = replace(timeless, group_RC=group_RC)
        return replace(timeless, past_ms=np.array(past_ms, np.int64), now_ms_R=np.array(now_ms[1:], np.int64))

    def memory(self, width: int) -> MemoryArrays:
        sizes = self.num_columns, NUM_GROUPS, self.num_pairs, self.num_hours
        return MemoryArrays.empty(self.num_rows + 4, width, NUM_BUCKETS, *sizes)

    def logits(self) -> np.ndarray:
        shape = (int((self.events().chosen_R == 1).sum()), self.num_rows + 3)
        return np.random.default_rng(self.seed + 1).normal(size=shape).astype(np.float32)


def flat(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ends = np.cumsum([len(each) for each in lists], dtype=np.int64)
    rows = np.array([row for each in lists for row in each], np.int32)
    return rows, np.concatenate([np.zeros(1, np.int64), ends])[:-1], ends


def events_at_once(
    target: ArrayLike,
    chosen: ArrayLike,
    past: list[list[int]],
    met: list[list[int]],
    shown: list[list[int]] | None = None,
) -> MemoryEvents:
    """Events that all happen at time 0, like everything before them. ``shown`` None: nothing but choices was met."""
    rows, begin, end = flat(past)
    times = np.zeros(len(rows), np.int64), np.zeros(len(begin), np.int64)
    others = *flat(met), *times, *flat(shown or [[] for _ in past])
    return MemoryEvents(np.array(target, np.int32), np.array(chosen, np.uint8), rows, begin, end, *others)


def learned(
    stream: Stream, rules: MemoryRules = RULES, *, width: int = 16, backend: str = "cpp"
) -> tuple[MemoryArrays, MemoryOutcome]:
    memory = stream.memory(width)
    return memory, memory_learn(memory, stream.num_rows, stream.events(), stream.logits(), rules, backend=backend)


def neighbours(memory: MemoryArrays) -> list[dict[int, tuple[float, ...]]]:
    """Each row's counts and weights by neighbour: the order of neighbours means nothing."""
    return [
        {
            int(memory.neighbour_row[row, j]): tuple(
                float(getattr(memory, name)[row, j]) for name in ("after", "before", "direct", "weight")
            )
            for j in range(memory.num_neighbours[row])
        }
        for row in range(memory.capacity)
    ]


def assert_same_memory(left: MemoryArrays, right: MemoryArrays) -> None:
    for name in (
        "seen", "heat", "first", "last", "gain", "gain_square", "clock", "dirty", "moved", "num_neighbours",
        "shortlist_weight", "shortlist_square", "shortlist_norm", "group_seen", "group_count", "group_total",
        "group_share", "pair_count", "pair_dirty", "pair_moved", "hour",
    ):  # fmt: skip
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=2e-3, atol=2e-4, err_msg=name)
    for name in ("group", "group_next", "pair_row", "pair_next"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    for ours, theirs in zip(neighbours(left), neighbours(right), strict=True):
        assert ours.keys() == theirs.keys()
        for row, values in ours.items():
            np.testing.assert_allclose(values, theirs[row], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("exclude", ["never", "always", "auto"])
def test_a_stream_is_learned_as_the_definition_does(monkeypatch: pytest.MonkeyPatch, level: str, exclude: str) -> None:
    force(monkeypatch, level)
    stream, rules = Stream(num_events=60, num_columns=2), replace(RULES, exclude=exclude)
    (slow, expected), (fast, got) = learned(stream, rules, backend="reference"), learned(stream, rules)
    assert_same_memory(fast, slow)
    np.testing.assert_allclose(got.loss_R, expected.loss_R, rtol=1e-3, atol=1e-4)
    for name in ("rank_R", "model_rank_R", "count_rank_R"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


@given(
    stream=st.builds(
        Stream, num_rows=st.integers(2, 40), num_users=st.integers(1, 5), num_events=st.integers(0, 60),
        repeats=st.booleans(), seed=st.integers(0, 10_000), weighed=st.booleans(), num_columns=st.integers(0, 3),
        num_pairs=st.sampled_from([0, 1, 4, 256]), num_hours=st.sampled_from([0, NUM_HOURS]),
    )
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_stream_is_learned_as_the_definition_does(stream: Stream) -> None:
    (slow, expected), (fast, got) = learned(stream, backend="reference", width=64), learned(stream, width=64)
    assert_same_memory(fast, slow)
    np.testing.assert_allclose(got.loss_R, expected.loss_R, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("level", levels())
def test_of_many_rows_the_best_are_looked_at_again(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """Many more rows than the shortlist has, in ascending, descending and random order of their scores."""
    force(monkeypatch, level)
    stream = Stream(num_rows=700, num_events=60)
    logits = stream.logits()
    logits[::3].sort(axis=1)
    logits[1::3] = -np.sort(-logits[1::3], axis=1)
    known = one_user(list(range(1, 700)))
    memories, outcomes = [], []
    for backend in ("reference", "cpp"):
        memory = MemoryArrays.empty(704, 16, NUM_BUCKETS)
        memory_learn(memory, 700, replace(known, chosen_R=np.full(699, 2, np.uint8)), logits[:0], RULES, backend="cpp")
        outcomes.append(memory_learn(memory, 700, stream.events(), 3 * logits, RULES, backend=backend))
        memories.append(memory)
    assert_same_memory(memories[1], memories[0])
    np.testing.assert_allclose(outcomes[1].loss_R, outcomes[0].loss_R, rtol=1e-3, atol=1e-4)
    assert (memories[1].shortlist_weight[: len(SEEN_AGAIN)] != 0).any()


def test_reranking_learns_what_no_sum_of_features_says() -> None:
    """All users choose an item twice, never three times: more is better only up to a point."""
    rng, rows, taken = np.random.default_rng(0), list[int](), np.zeros(500, int)
    for _ in range(1500):
        once = np.flatnonzero(taken[1:] == 1) + 1
        row = int(rng.choice(once)) if len(once) > 5 else int(np.flatnonzero(taken[1:] == 0)[0]) + 1
        taken[row] += 1
        rows.append(row)
        if len(rows) % 100 == 0:
            taken[:] = 0
    events, logits = one_user_by_hundreds(rows), np.zeros((1500, 500), np.float32)
    lost = []
    for rate in (0.0, 0.05):
        memory = MemoryArrays.empty(500, 16, NUM_BUCKETS)
        done = memory_learn(memory, 500, events, logits, replace(RULES, exclude="never", shortlist_rate=rate))
        lost.append(float(np.nanmean(done.loss_R[-500:])))
    assert lost[1] < lost[0] - 0.1  # 1.99 and 2.14


def one_user_by_hundreds(rows: list[int]) -> MemoryEvents:
    past = [rows[i - i % 100 : i] for i in range(len(rows))]
    return events_at_once(rows, np.ones(len(rows)), past, past)


def test_what_was_met_takes_no_place_on_the_list() -> None:
    memory = MemoryArrays.empty(32, 8, NUM_BUCKETS)
    memory_learn(memory, 32, one_user(list(range(1, 32))), np.zeros((31, 32), np.float32), RULES)
    asked = events_at_once([0], [0], [[1, 2]], [[1, 2, 5]])
    score, everything = np.zeros((1, 32), np.float32), np.zeros((1, 32), np.float32)
    memory_scores(memory, 32, asked, score)
    memory_scores(memory, 32, unmet(asked), everything)
    assert np.flatnonzero(score[0] < -1e29).tolist() == [0, 1, 2, 5]
    assert np.flatnonzero(everything[0] < -1e29).tolist() == [0]


def test_a_full_row_keeps_what_it_meets_most() -> None:
    """Items 1 and 2 alternate; now and then comes an item that never comes again."""
    rows = [1 + i % 2 if i % 5 else 3 + i // 5 for i in range(200)]
    memory, events = MemoryArrays.empty(64, 2, NUM_BUCKETS), one_user(rows)
    memory_learn(memory, 64, events, np.zeros((len(rows), 64), np.float32), RULES, backend="cpp")
    assert 2 in memory.neighbour_row[1]
    assert (memory.num_neighbours <= 2).all()


def one_user(rows: list[int]) -> MemoryEvents:
    past = [rows[:i] for i in range(len(rows))]
    return events_at_once(rows, np.ones(len(rows)), past, past)


def test_what_comes_in_pieces_is_learned_as_in_one() -> None:
    """Split where the standing features are recomputed anyway: every 16 events."""
    events = one_user(np.random.default_rng(0).integers(1, 12, 64).tolist())
    logits = np.random.default_rng(1).normal(size=(64, 12)).astype(np.float32)
    whole, pieces = MemoryArrays.empty(12, 8, NUM_BUCKETS), MemoryArrays.empty(12, 8, NUM_BUCKETS)
    memory_learn(whole, 12, events, logits, RULES)
    for start in range(0, 64, 16):
        memory_learn(pieces, 12, events[start : start + 16], logits[start : start + 16], RULES)
    for each in fields(MemoryArrays):
        np.testing.assert_allclose(getattr(pieces, each.name), getattr(whole, each.name), rtol=1e-4, atol=1e-5)


def test_an_event_is_predicted_before_it_is_learned() -> None:
    """A prediction does not depend on its outcome: here, two streams that differ only in the last event."""
    rows = [1, 2, 3, 1, 2, 3, 1, 2]
    losses = []
    for last in (3, 1):
        events = one_user([*rows, last])
        memory = MemoryArrays.empty(8, 8, NUM_BUCKETS)
        losses.append(memory_learn(memory, 8, events, np.zeros((9, 8), np.float32), RULES).loss_R[:8])
    np.testing.assert_array_equal(losses[0], losses[1])


def test_an_item_is_recommended_after_one_sighting_beside_another() -> None:
    memory = MemoryArrays.empty(32, 8, NUM_BUCKETS)
    everything = one_user([*range(3, 32), 1, 2])
    memory_learn(memory, 32, everything, np.zeros((len(everything), 32), np.float32), RULES)
    asked = events_at_once([0], [0], [[1]], [[1]])
    score = np.zeros((1, 32), np.float32)
    memory_scores(memory, 32, asked, score)
    assert np.argmax(score[0]) == 2
    assert score[0, 0] < -1e29  # the row of no item


def test_the_very_next_choice_is_told_from_those_further_on() -> None:
    """Users follow a chain of items for ten steps: what comes in two steps stands beside an item nearly as often."""
    rng = np.random.default_rng(0)
    rows, past = list[int](), list[list[int]]()
    for _ in range(150):
        first = int(rng.integers(1, 200))
        walk = [1 + (first + step) % 200 for step in range(10)]
        rows += walk
        past += [walk[:step] for step in range(10)]
    events = events_at_once(rows, np.ones(len(rows)), past, past)
    memory = MemoryArrays.empty(208, 64, NUM_BUCKETS)
    done = memory_learn(memory, 201, events, np.zeros((len(rows), 201), np.float32), replace(RULES, exclude="always"))
    steps = np.arange(len(rows)) % 10
    is_led = (np.arange(len(rows)) > 1000) & (steps > 0)
    assert float(np.nanmean(done.loss_R[is_led])) < 0.2  # without the direct counts .31


def test_scores_are_those_that_learning_starts_from() -> None:
    """The next event's loss is the cross entropy of the scores that a server would have given."""
    rules, events = replace(RULES, exclude="never"), one_user(np.random.default_rng(0).integers(1, 12, 65).tolist())
    memory, logits = MemoryArrays.empty(12, 16, NUM_BUCKETS), np.random.default_rng(1).normal(size=(65, 12))
    logits = logits.astype(np.float32)
    memory_learn(memory, 12, events[:64], logits[:64], rules)
    score = logits[64:].copy()
    memory_scores(memory, 12, unmet(events[64:]), score)
    loss = memory_learn(memory, 12, events[64:], logits[64:], rules).loss_R[0]
    running = score[0].astype(float)
    expected = np.log(np.exp(running - running.max()).sum()) + running.max() - running[events.target_R[64]]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_each_of_several_threads_is_gone_on_with() -> None:
    """Users each follow six chains of 40 items; they stay with one for a while, then go on with any other."""
    rng, chains, length = np.random.default_rng(0), 6, 40
    rows, past = [], []
    for _ in range(20):
        at, mine, chain = np.zeros(chains, int), list[int](), 0
        while (open_ones := np.flatnonzero(at < length)).size:
            if at[chain] == length or rng.random() < 0.15:
                chain = int(rng.choice(open_ones))
            rows.append(1 + chain * length + int(at[chain]))
            past.append(mine[-100:])
            mine = [*mine, rows[-1]]
            at[chain] += 1
    done = learned_of(events_at_once(rows, np.ones(len(rows)), past, past), chains * length + 1)
    assert float(np.nanmean(done.loss_R[len(rows) // 2 :])) < 0.78  # without the transitions from all choices .85


def test_what_a_user_chooses_again_depends_on_the_visit() -> None:
    """Visits to a shop, days apart, in which each of the user's ten things is bought once, in any order."""
    rng = np.random.default_rng(0)
    rows, past, past_ms, now_ms = [], list[list[int]](), list[int](), []
    for user in range(6):
        mine, times = list[int](), list[int]()
        for day in range(12):
            for step, row in enumerate(rng.permutation(10)[: rng.integers(3, 9)].tolist()):
                rows.append(1 + 10 * user + row)
                now_ms.append(86_400_000 * day + 60_000 * step)
                past.append(list(mine))
                past_ms += times
                mine, times = [*mine, rows[-1]], [*times, now_ms[-1]]
    timeless = events_at_once(rows, np.ones(len(rows)), past, past)
    timed = replace(timeless, past_ms=np.array(past_ms, np.int64), now_ms_R=np.array(now_ms, np.int64))
    loss, without = (float(np.nanmean(learned_of(events, 61).loss_R[len(rows) // 2 :])) for events in (timed, timeless))
    assert loss < without - 0.1  # 1.94 and 2.13


def test_where_most_choices_are_visits_of_their_own_the_others_do_not_outweigh_them() -> None:
    """Hours after an item comes the next one; one time in six, a minute after it, one that is ten further on."""
    rng, num_rows = np.random.default_rng(0), 41
    is_soon = rng.random(3_000) < 1 / 6
    rows = (1 + np.cumsum(np.where(is_soon, 10, 1)) % (num_rows - 1)).tolist()
    now_ms = np.cumsum(np.where(is_soon, 60_000, 20_000_000))
    past = [rows[max(0, i - 5) : i] for i in range(len(rows))]
    past_ms = np.concatenate([now_ms[max(0, i - 5) : i] for i in range(len(rows))])
    events = replace(events_at_once(rows, np.ones(len(rows)), past, past), past_ms=past_ms, now_ms_R=now_ms)
    memory, pinned = (MemoryArrays.empty(64, 40, NUM_BUCKETS) for _ in range(2))
    weighed, lost = list[float](), list[NDArray[np.float32]]()
    logits = np.zeros((100, num_rows), np.float32)
    for each in (memory, pinned):
        losses = []
        for start in range(0, len(rows), 100):
            if each is pinned:  # a build to which all choices seem to be made within visits
                each.clock[CLOCK.index("begun")], each.clock[CLOCK.index("continued")] = 0.0, 1e4
            losses.append(memory_learn(each, num_rows, events[start : start + 100], logits, MemoryRules()).loss_R)
        weighed.append(each.across_visits)
        lost.append(np.concatenate(losses))
    half = ~is_soon & (np.arange(len(rows)) >= 1500)
    assert weighed[0] > 0.5 > 0.25 > weighed[1]
    assert lost[0][half].mean() < 0.85 * lost[1][half].mean()  # .016 and .024


def test_a_user_goes_on_as_before_after_the_same_items() -> None:
    rows = np.array([1, 2, 3, 1, 2, 3, 9, 2, 3, 1, 2], np.int32)
    past = MemoryPast.seen_at(0, rows, np.zeros(len(rows), np.int64), rows[:0])
    assert past.matched.tolist() == [0, 0, 4, 0, 0, 16, 0, 0, 1, 0, 0]
    past = MemoryPast.seen_at(0, rows[:1], np.zeros(1, np.int64), rows[:0])
    assert past.matched.tolist() == [0]


def test_how_close_times_of_day_are_does_not_depend_on_midnight() -> None:
    minutes = np.array([-1439, -121, -119, -1, 0, 30, 120, 1435])
    past = MemoryPast.seen_at(2 * DAY_MS, np.ones(8, np.int32), 60_000 * minutes, np.zeros(0, np.int32))
    np.testing.assert_allclose(120 * past.around_P, [119, 0, 1, 119, 120, 90, 0, 115])


def test_choices_of_other_weeks_are_close_to_now_on_the_same_weekday() -> None:
    days = np.array([-7, -7.25, -6.5, -6, -14, -13.75, -3.5, -0.25])
    past = MemoryPast.seen_at(0, np.ones(8, np.int32), (days * DAY_MS).astype(np.int64), np.zeros(0, np.int32))
    np.testing.assert_allclose(120 * past.around_P, [210, 45, 0, 120, 210, 45, 0, 0])


def test_who_repeats_a_sequence_of_his_own_is_expected_to_go_on_with_it() -> None:
    """Users who choose the same 11 items again and again, all in an order of their own."""
    rng = np.random.default_rng(0)
    orders, histories = [1 + rng.permutation(11) for _ in range(8)], [list[int]() for _ in range(8)]
    rows, past = list[int](), list[list[int]]()
    for user in rng.integers(8, size=800).tolist():
        mine = histories[user]
        rows.append(int(orders[user][len(mine) % 11]))
        past.append(list(mine))
        mine.append(rows[-1])
    done = learned_of(events_at_once(rows, np.ones(len(rows)), past, past), 12)
    assert float(np.nanmean(done.loss_R[len(rows) // 2 :])) < 0.05  # without own sequences .183


def habits(day_ms: int) -> Iterator[tuple[int, int, int]]:
    """Visits (user, row, time) of six users, each with an item for each of six parts of the day; some are left out."""
    rng = np.random.default_rng(0)
    for user in range(6):
        items = rng.permutation(6).tolist()
        for day in range(20):
            for part in np.flatnonzero(rng.random(6) < 0.5).tolist():
                yield user, 1 + 6 * user + items[part], day_ms * day + day_ms // 6 * part


def weekdays(day_ms: int) -> Iterator[tuple[int, int, int]]:
    """Of six users, each with an item for each day of the week, at any of eight hours of it; some days are left out."""
    rng = np.random.default_rng(0)
    for user in range(6):
        items = rng.permutation(7).tolist()
        for day in np.flatnonzero(rng.random(140) < 0.3).tolist():
            yield user, 1 + 7 * user + items[day % 7], day_ms * day + int(rng.integers(day_ms // 3))


def later_loss(visits: Iterable[tuple[int, int, int]], num_rows: int) -> float:
    """Of the second half of these choices, user by user, each of which knows the user's earlier ones."""
    rows, past, past_ms, now_ms = list[int](), list[list[int]](), list[int](), list[int]()
    for _, group in groupby(visits, key=lambda visit: visit[0]):
        mine, times = list[int](), list[int]()
        for _, row, time_ms in group:
            rows.append(row)
            now_ms.append(time_ms)
            past.append(list(mine))
            past_ms += times
            mine, times = [*mine, row], [*times, time_ms]
    events = events_at_once(rows, np.ones(len(rows)), past, past)
    events = replace(events, past_ms=np.array(past_ms, np.int64), now_ms_R=np.array(now_ms, np.int64))
    return float(np.nanmean(learned_of(events, num_rows).loss_R[len(events) // 2 :]))


def test_what_a_user_chooses_at_this_time_of_day_is_expected_again() -> None:
    loss, elsewhere = (later_loss(habits(day_ms), 37) for day_ms in (DAY_MS, DAY_MS * 11 // 10))
    assert loss < 0.2 * elsewhere  # .005 and 1.319


def test_what_a_user_chooses_on_this_day_of_the_week_is_expected_again() -> None:
    loss, elsewhere = (later_loss(weekdays(day_ms), 43) for day_ms in (DAY_MS, DAY_MS * 11 // 10))
    assert loss < 0.5 * elsewhere  # .45 and 1.89


def long_ago(half_lives: int, rules: MemoryRules = RULES, *, both: bool = False) -> MemoryArrays:
    """A user chose row 1, and row 2 after so many half-lives in which others chose rows 3 and 4; or ``both`` before."""
    memory = MemoryArrays.empty(16, 8, NUM_BUCKETS, num_pairs=32, num_hours=NUM_HOURS)
    others, none = [3, 4] * half_lives, [list[int]() for _ in range(2 * half_lives)]
    chosen, past = ([1, 2, *others], [[], [1], *none]) if both else ([1, *others, 2], [[], *none, [1]])
    events = events_at_once(chosen, np.full(len(past), 2), past, [[] for _ in past])
    memory_learn(memory, 12, events, np.zeros((0, 12), np.float32), replace(rules, seen_half_life=2.0))
    return memory


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("half_lives", [1, 20, 70, 135])
def test_what_follows_a_choice_of_long_ago_counts_no_more_than_what_always_follows_one(
    monkeypatch: pytest.MonkeyPatch, level: str, half_lives: int
) -> None:
    """Row 1's own count has faded by then, which that of row 2 after it has not; in the end a float cannot hold it."""
    force(monkeypatch, level)
    memory, next_one = long_ago(half_lives), events_at_once([2], [1], [[1]], [[]])
    found_FV = weighted_sum(memory, 12, MemoryPast.of_event(next_one, 0), np.zeros(12, np.float32)).feature_FV
    for name, scale in (("follows", 100.0), ("direct", 100.0), ("threads", 100.0), ("wide", 1e3), ("after", 1e3)):
        assert found_FV[FEATURES.index(name), 2] <= np.log1p(scale * MOST_SHARE), name
    scores, losses = [], []
    for backend in ("reference", "cpp"):
        score = np.zeros((1, 12), np.float32)
        memory_scores(memory, 12, next_one, score, backend=backend)
        scores.append(score)
        after, logit = memory.copy(), np.zeros((1, 12), np.float32)
        losses.append(memory_learn(after, 12, next_one, logit, RULES, backend=backend).loss_R)
        assert np.isfinite(after.gain).all()
    assert np.isfinite(scores).all()
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3, atol=1e-4)


def learned_of(events: MemoryEvents, num_rows: int) -> MemoryOutcome:
    memory, logits = MemoryArrays.empty(256, 64, NUM_BUCKETS), np.zeros((len(events), num_rows), np.float32)
    return memory_learn(memory, num_rows, events, logits, MemoryRules())


def unmet(events: MemoryEvents) -> MemoryEvents:
    """The same events, with nothing to leave out."""
    return replace(events, met_end_R=events.met_begin_R)


NUM_SHOWN, NUM_CHOICES = 4, 800


def shown_before_each(rng: np.random.Generator, num_rows: int, *, is_picked: bool) -> MemoryEvents:
    """Choices by users without any before: of one of the rows that they were just shown, or of any other."""
    shown = [rng.choice(np.arange(1, num_rows), NUM_SHOWN, replace=False).tolist() for _ in range(NUM_CHOICES)]
    others = [np.setdiff1d(np.arange(1, num_rows), rows).tolist() for rows in shown]
    rows = [int(rng.choice(some)) for some in (shown if is_picked else others)]
    none: list[list[int]] = [[] for _ in rows]
    return events_at_once(rows, np.ones(len(rows)), none, shown, shown)


@pytest.mark.parametrize("is_picked", [True, False])
def test_what_was_shown_and_left_alone_is_what_is_chosen_next_or_is_not(*, is_picked: bool) -> None:
    events, num_rows = shown_before_each(np.random.default_rng(0), 12, is_picked=is_picked), 12
    blind = replace(events, shown_end_R=events.shown_begin_R)
    taken = []
    for each in (events, blind):
        memory = MemoryArrays.empty(num_rows, 8, NUM_BUCKETS)
        logits = np.zeros((NUM_CHOICES, num_rows), np.float32)
        done = memory_learn(memory, num_rows, each, logits, replace(RULES, exclude="never"))
        wanted = NUM_SHOWN if is_picked else num_rows - 1 - NUM_SHOWN
        taken.append((done.rank_R[NUM_CHOICES // 2 :] <= wanted).mean())
    assert taken[0] > 0.98
    assert taken[1] < 0.8


def test_a_useless_network_does_no_harm() -> None:
    """Large random logits in a stream that counts explain: soon the counts decide."""
    rows = [1 + i % 9 for i in range(3000)]
    logits = 3 * np.random.default_rng(0).normal(size=(len(rows), 16)).astype(np.float32)
    memory = MemoryArrays.empty(16, 16, NUM_BUCKETS)
    events = one_user_lately(rows, 30)
    done = memory_learn(memory, 16, events, logits, replace(RULES, exclude="never"))
    assert (done.model_rank_R[-1000:] == 1).mean() < 0.3
    assert (done.rank_R[-1000:] == 1).mean() > 0.99


def one_user_lately(rows: list[int], length: int) -> MemoryEvents:
    past = [rows[max(0, i - length) : i] for i in range(len(rows))]
    return events_at_once(rows, np.ones(len(rows)), past, past)


@given(seed=st.integers(0, 1000), gone=st.sets(st.integers(0, 11), max_size=12), num_rows=st.integers(0, 12))
@settings(max_examples=50, deadline=None)
def test_rows_are_forgotten_as_the_definition_does(seed: int, gone: set[int], num_rows: int) -> None:
    slow, _ = learned(Stream(seed=seed))
    for name in ("dirty", "moved", "pair_dirty", "pair_moved"):
        getattr(slow, name)[:] = 0
    fast, gone_V = slow.copy(), np.isin(np.arange(slow.capacity), list(gone))
    memory_forget(slow, num_rows, gone_V, backend="reference")
    memory_forget(fast, num_rows, gone_V)
    for each in fields(MemoryArrays):
        np.testing.assert_array_equal(getattr(fast, each.name), getattr(slow, each.name), err_msg=each.name)
    assert not gone & {row for each in neighbours(fast)[:num_rows] for row in each}
    assert not (gone - {0}) & {*fast.pair_row.ravel().tolist(), *fast.pair_next.ravel().tolist()}


def test_what_is_forgotten_must_fit_the_memory() -> None:
    memory = MemoryArrays.empty(8, 4, NUM_BUCKETS)
    with pytest.raises(ValueError, match=r"gone_V: expected bool of shape .8,., got bool .7,."):
        memory_forget(memory, 8, np.zeros(7, np.bool_))
    with pytest.raises(ValueError, match="num_rows: expected 0 to the memory's 8, got 9"):
        memory_forget(memory, 9, np.zeros(8, np.bool_))


def test_a_stream_of_repeats_is_noticed() -> None:
    memory = MemoryArrays.empty(16, 8, NUM_BUCKETS)
    assert memory.leaves_out_repeats
    memory_learn(memory, 16, one_user([1 + i % 5 for i in range(50)]), np.zeros((50, 16), np.float32), RULES)
    assert not memory.leaves_out_repeats


def test_counts_fade_and_keep_their_precision() -> None:
    """Long after the unit was reset, the ratios of counts are what they were."""
    rules = replace(RULES, seen_half_life=1.0, heat_half_lives=(1.0, 1.0, 1.0))
    memory = MemoryArrays.empty(16, 8, NUM_BUCKETS)
    memory_learn(memory, 16, one_user([1 + i % 2 for i in range(300)]), np.zeros((300, 16), np.float32), rules)
    assert np.isfinite(memory.seen).all()
    seen = memory.seen / memory.clock[1]
    np.testing.assert_allclose(seen[[2, 1]], [2 / 3, 1 / 3], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"target_R": np.array([99], np.int32)}, IndexError, "target_R: expected rows 0 to 7"),
        ({"target_R": np.array([1], np.int64)}, ValueError, "target_R: expected int32"),
        ({"past_rows": np.array([0], np.int32)}, IndexError, "past_rows: expected rows 1 to 7"),
        ({"past_end_R": np.array([5], np.int64)}, ValueError, "ranges within 1 past_rows"),
        ({"chosen_R": np.zeros(2, np.uint8)}, ValueError, "chosen_R"),
        ({"past_ms": np.zeros(2, np.int64)}, ValueError, "past_ms"),
        ({"now_ms_R": np.zeros(1, np.int32)}, ValueError, "now_ms_R"),
        ({"group_RC": np.zeros((1, 2), np.int32)}, ValueError, "group_RC: expected int32 of shape .1, 1."),
        ({"group_RC": np.full((1, 1), 5, np.int32)}, IndexError, "group_RC: expected groups 0 to 4, got 5 to 5"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, np.ndarray], error: type[Exception], words: str) -> None:
    events = replace(events_at_once([1], [1], [[2]], [[2]]), **change)
    with pytest.raises(error, match=words):
        memory_learn(MemoryArrays.empty(8, 4, 8, 1, 5), 8, events, np.zeros((1, 8), np.float32), RULES)
    with pytest.raises(ValueError, match="logit_AV: expected"):
        memory_scores(MemoryArrays.empty(8, 4, 8), 8, one_user([1]), np.zeros((1, 4), np.float32))
