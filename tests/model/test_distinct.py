"""Distinct rows, against np.unique."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.distinct import counted, distinct


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_distinct_rows_are_those_that_numpy_finds(rows: list[int]) -> None:
    given_rows = np.array(rows, np.int64)
    np.testing.assert_array_equal(distinct(given_rows), np.unique(given_rows))
    np.testing.assert_array_equal(distinct(np.stack([given_rows, given_rows])), np.unique(given_rows))
    for ours, theirs in zip(counted(given_rows), np.unique(given_rows, return_counts=True), strict=True):
        np.testing.assert_array_equal(ours, theirs)
