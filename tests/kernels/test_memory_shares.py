"""The parts of a score: they add up to it, and each equals the definition's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.memory import MemoryPast, MemoryRules, memory_learn, memory_scores, memory_shares, shares
from kernels.memory.arrays import LISTED
from kernels.memory.features import weighted_sum
from tests.kernels.test_memory import Stream, events_at_once, learned


def past_at_once(rows: list[int], shown: Sequence[int] = ()) -> MemoryPast:
    """Choices of this very moment, and what else was shown."""
    return MemoryPast.seen_at(0, np.array(rows, np.int32), np.zeros(len(rows), np.int64), np.array(shown, np.int32))


def sums(memory: object, num_rows: int, past: MemoryPast, logit_V: np.ndarray) -> np.ndarray:
    """The definition's scores before the shortlist."""
    return weighted_sum(memory, num_rows, past, logit_V).score_V  # type: ignore[arg-type]


@given(
    seed=st.integers(0, 10_000), num_events=st.integers(0, 80), repeats=st.booleans(),
    past=st.lists(st.integers(1, 11), max_size=70), shown=st.lists(st.integers(1, 11), max_size=9),
    num_columns=st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_parts_add_up_to_the_score(
    seed: int, num_events: int, repeats: bool, past: list[int], shown: list[int], num_columns: int
) -> None:
    stream = Stream(num_events=num_events, repeats=repeats, seed=seed, num_columns=num_columns)
    memory, _ = learned(stream)
    rows, logit_V = past_at_once(past, shown), np.random.default_rng(seed).normal(size=12).astype(np.float32)
    asked = np.random.default_rng(seed).permutation(np.arange(1, 12))[:5]
    found = memory_shares(memory, rows, asked, logit_V[asked])
    np.testing.assert_allclose(found.total, sums(memory, 12, rows, logit_V)[asked], rtol=1e-5, atol=1e-6)
    assert found.past_PC.shape == found.after_PC.shape == (len(past), len(asked))
    assert found.shown_SC.shape == (len(shown), len(asked))


@pytest.mark.parametrize("is_counted", [True, False])
def test_the_sum_is_the_kernels_own_score_of_what_is_not_reranked(*, is_counted: bool) -> None:
    """Also where a past item was evicted and met again: it may have neighbours without having been chosen since."""
    stream = Stream(num_rows=90, num_events=400, num_users=6)
    memory, _ = learned(stream, width=80)
    past, met = [1, 5, 7], list[int]()
    memory.seen[past[:2]] *= is_counted
    events = events_at_once([0], [0], [past], [met])
    logits = np.random.default_rng(3).normal(size=(1, 90)).astype(np.float32)
    scores = logits.copy()
    memory_scores(memory, 90, events, scores)
    asked = np.flatnonzero(scores[0] > -1e29)
    found = memory_shares(memory, past_at_once(past), asked, logits[0, asked])
    unlisted = np.argsort(-found.total)[LISTED:]
    assert len(unlisted) > 5
    np.testing.assert_allclose(scores[0, asked][unlisted], found.total[unlisted], rtol=1e-4, atol=1e-4)
    again = logits.copy()
    memory_scores(memory, 90, events, again, backend="reference")
    np.testing.assert_allclose(scores, again, rtol=1e-3, atol=1e-3)


def test_a_choice_that_nobody_follows_up_adds_nothing_and_one_that_everybody_does_adds_most() -> None:
    memory, _ = learned(Stream(num_events=0))
    pairs = [([1], 2)] * 8 + [([3], 4)]
    target, past = [1, 3, *(target for _, target in pairs)], [[], [], *(past for past, _ in pairs)]
    events = events_at_once(target, np.ones(len(target)), past, [[] for _ in target])
    memory_learn(memory, 12, events, np.zeros((len(events), 12), np.float32), MemoryRules())
    found = memory_shares(memory, past_at_once([3, 1]), np.array([2]), np.zeros(1))
    assert found.past_PC[0, 0] == 0.0
    assert found.past_PC[1, 0] > 0.5
    assert found.after_PC[1, 0] == pytest.approx(8, rel=0.01)
    assert found.before_PC[1, 0] == 0.0


def test_a_build_that_gives_the_newest_choice_all_the_credit_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "_shared", lambda name, raw_LC: np.log1p(raw_LC))
    memory, _ = learned(Stream(num_events=80))
    past, logit_V = past_at_once([1, 2, 3, 4, 5]), np.zeros(12, np.float32)
    found = memory_shares(memory, past, np.arange(1, 12), logit_V[1:])
    assert not np.allclose(found.total, sums(memory, 12, past, logit_V)[1:], rtol=1e-3)
