"""Rows that grow in place, or with a copy if the system gives no more room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.growing import LEAST_ROWS, GrowingColumns, GrowingRows

ROOT = Path(__file__).resolve().parents[2]


def test_a_larger_array_is_the_same_memory() -> None:
    rows = GrowingRows((3,), np.float32)
    before = rows.array
    before[:] = 7.0
    rows.grow(5 * LEAST_ROWS)
    assert len(rows.array) >= 5 * LEAST_ROWS
    assert np.shares_memory(before, rows.array)
    assert (rows.array[:LEAST_ROWS] == 7.0).all()
    assert not rows.array[LEAST_ROWS:].any(), "new rows are zeros"
    rows.grow(1)
    assert len(rows.array) >= 5 * LEAST_ROWS, "it never shrinks"


def test_growing_row_by_row_asks_for_more_seldom() -> None:
    rows, num_views = GrowingRows((), np.int64), 0
    for num in range(1, 20_000):
        before = rows.array
        rows.grow(num)
        num_views += rows.array is not before
    assert num_views < 20


@pytest.mark.parametrize("reserved_rows", [LEAST_ROWS, 2 * LEAST_ROWS + 1])
def test_a_reservation_that_is_outgrown_is_replaced(reserved_rows: int) -> None:
    rows = GrowingRows((2,), np.int64, reserved_rows)
    rows.array[:] = np.arange(2 * LEAST_ROWS).reshape(-1, 2)
    for num in (LEAST_ROWS + 1, 4 * LEAST_ROWS, 9 * LEAST_ROWS):
        rows.grow(num)
        assert len(rows.array) >= num
        np.testing.assert_array_equal(rows.array[:LEAST_ROWS].ravel(), np.arange(2 * LEAST_ROWS))
        assert not rows.array[LEAST_ROWS:].any()


def test_a_column_grows_in_place_until_it_is_replaced() -> None:
    columns, column = GrowingColumns(), np.arange(6, dtype=np.int64).reshape(3, 2)
    first = columns.longer("counts", column, 5)
    second = columns.longer("counts", first, 500)
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(second[:3], column)
    assert not second[3:].any()
    replaced = columns.longer("counts", np.ones((2, 2), np.int64), 4)
    assert not np.shares_memory(replaced, second)
    assert replaced.sum() == 4


def test_a_limit_on_address_space_is_lived_with_until_nothing_is_left() -> None:
    program = """
import resource
import numpy as np
from model.growing import GrowingRows
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
rows = GrowingRows((64,), np.float32)
rows.array[:] = 1.0
rows.grow(100_000)
assert rows.array[:64].all() and not rows.array[64:].any()
try:
    rows.grow(1 << 26)
except MemoryError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "evict (trainer.evict_after_days, max_items)" in done.stdout
