"""What is counted of groups of items: it helps items that are too new or too rare to be counted one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kernels.memory import FEATURES, MemoryArrays, MemoryEvents, MemoryOutcome, memory_learn, memory_scores
from kernels.memory import groups as definition
from tests.kernels.test_memory import NUM_BUCKETS, RULES, Stream, assert_same_memory, events_at_once, learned
from tests.kernels.test_memory_sampled import learned as sampled_learned

NUM_ROWS, NUM_GROUPS = 401, 8
LIFT = FEATURES.index("lift")


def of_groups(rng: np.random.Generator, *, num_users: int, follows: bool) -> tuple[list[int], list[list[int]]]:
    """Users who choose one item in a hundred, each of the group after that of their last (``follows``) or of any."""
    rows, past = list[int](), list[list[int]]()
    for _ in range(num_users):
        mine, group = list[int](), int(rng.integers(1, NUM_GROUPS))
        for _ in range(4):
            group = 1 + group % (NUM_GROUPS - 1) if follows else int(rng.integers(1, NUM_GROUPS))
            rows.append(int(rng.choice(rows_of(group))))
            past.append(list(mine))
            mine.append(rows[-1])
    return rows, past


def rows_of(group: int) -> np.ndarray:
    rows = np.arange(1, NUM_ROWS)
    return rows[1 + rows % (NUM_GROUPS - 1) == group]


def told(rows: list[int]) -> np.ndarray:
    return (1 + np.array(rows)[:, None] % (NUM_GROUPS - 1)).astype(np.int32)


def after(events: MemoryEvents, *, grouped: bool = True) -> tuple[MemoryArrays, MemoryOutcome]:
    memory = MemoryArrays.empty(NUM_ROWS, 16, NUM_BUCKETS, int(grouped), NUM_GROUPS)
    events = events if grouped else replace(events, group_RC=None)
    logits = np.zeros((int((events.chosen_R == 1).sum()), NUM_ROWS), np.float32)
    return memory, memory_learn(memory, NUM_ROWS, events, logits, replace(RULES, exclude="never"))


def chosen(rows: list[int], past: list[list[int]]) -> MemoryEvents:
    return replace(events_at_once(rows, np.ones(len(rows)), past, past), group_RC=told(rows))


def late_loss(outcome: MemoryOutcome) -> float:
    return float(np.nanmean(outcome.loss_R[len(outcome.loss_R) // 2 :]))


def test_an_item_that_nobody_has_chosen_is_recommended_after_what_its_category_follows() -> None:
    rows, past = of_groups(np.random.default_rng(0), num_users=200, follows=True)
    shown = [int(rows_of(group)[-1]) for group in range(1, NUM_GROUPS)]
    rows, past = zip(*[each for each in zip(rows, past, strict=True) if each[0] not in shown], strict=True)
    memory, _ = after(chosen(list(rows), [[row for row in each if row not in shown] for each in past]))
    met = replace(events_at_once(shown, np.zeros(len(shown)), [[]] * 7, [[]] * 7), group_RC=told(shown))
    memory_learn(memory, NUM_ROWS, met, np.zeros((0, NUM_ROWS), np.float32), RULES)
    for group in range(1, NUM_GROUPS):
        last = next(row for row in rows if row in rows_of(group))
        score = np.zeros((1, NUM_ROWS), np.float32)
        memory_scores(memory, NUM_ROWS, events_at_once([0], [0], [[last]], [[]]), score)
        assert shown[np.argmax(score[0, shown])] == shown[group % (NUM_GROUPS - 1)]


def test_rare_items_are_predicted_by_their_category_and_a_category_that_says_nothing_does_no_harm() -> None:
    for follows, least, most in ((True, 1.0, 3.0), (False, -0.05, 0.1)):
        events = chosen(*of_groups(np.random.default_rng(1), num_users=500, follows=follows))
        gain = late_loss(after(events, grouped=False)[1]) - late_loss(after(events)[1])
        assert least < gain < most, follows


def test_a_choice_is_predicted_from_what_was_known_of_its_category_before() -> None:
    events = chosen(*of_groups(np.random.default_rng(2), num_users=50, follows=True))
    group_RC = told(events.target_R.tolist())
    group_RC[-1] = 1 + group_RC[-1] % 3
    other = replace(events, group_RC=group_RC)
    (memory, outcome), (changed, same) = after(events), after(other)
    np.testing.assert_array_equal(same.loss_R, outcome.loss_R)
    assert memory.group[events.target_R[-1]] != changed.group[events.target_R[-1]]


def test_a_build_that_forgets_what_followed_a_category_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(num_events=60, num_columns=2)
    right, _ = learned(stream)
    monkeypatch.setattr(definition, "_count_next", lambda *_: None)
    with pytest.raises(AssertionError, match=r"gain|shortlist|group"):
        assert_same_memory(learned(stream, backend="reference")[0], right)


def test_a_sample_counts_groups_but_says_nothing_of_what_they_lift_a_score_by() -> None:
    memory, _ = sampled_learned(Stream(num_rows=900, num_events=40, num_columns=2))
    assert memory.group_count.any()
    np.testing.assert_array_equal(memory.gain[:, LIFT], MemoryArrays.empty(1, 1, NUM_BUCKETS).gain[:, LIFT])
