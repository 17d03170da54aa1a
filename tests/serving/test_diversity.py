"""Diversified answers: as defined, from the best alone to the least alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.answering.diversity import diversified, pool_size


def slowly(scores: list[float], unit: np.ndarray, k: int, diversity: float) -> list[int]:
    """One at a time, by the definition."""
    least, most = min(scores), max(scores)
    chosen: list[int] = []
    while len(chosen) < min(k, len(scores)):
        worths = {}
        for place, score in enumerate(scores):
            if place not in chosen:
                relevance = (score - least) / (most - least) if most > least else 1.0
                alike = max((float(unit[place] @ unit[each]) for each in chosen), default=0.0)
                worths[place] = (1 - diversity) * relevance - diversity * alike
        chosen.append(max(worths, key=lambda place: (round(worths[place], 9), -place)))
    return chosen


@given(
    seed=st.integers(0, 1000),
    num=st.integers(1, 30),
    k=st.integers(1, 12),
    diversity=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)
def test_each_place_is_chosen_as_defined(seed: int, num: int, k: int, diversity: float) -> None:
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.normal(size=num).astype(np.float32))[::-1]
    unit = rng.normal(size=(num, 5)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    expected = slowly(scores.tolist(), unit, k, diversity)
    assert diversified(scores, unit, k, diversity).tolist() == expected


def test_of_twins_only_one_comes_early() -> None:
    unit = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    scores = np.array([4, 3.9, 3.8, 3.7], np.float32)
    assert diversified(scores, unit, 4, 0.5).tolist() == [0, 2, 1, 3]
    assert diversified(scores, unit, 4, 0.0).tolist() == [0, 1, 2, 3]
    assert diversified(scores[:0], unit[:0], 4, 0.5).tolist() == []


@pytest.mark.parametrize(("k", "size"), [(1, 4), (10, 40), (100, 400), (150, 400), (1000, 1000)])
def test_the_pool_is_bounded(k: int, size: int) -> None:
    assert pool_size(k) == size
