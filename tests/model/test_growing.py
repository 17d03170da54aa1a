"""Rows that grow in place, or with a copy if the system gives no more room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.growing import LEAST_ROWS, GrowingColumns, GrowingRows, keep_in

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, params=["memory", "files"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Everything holds in memory and in files."""
    keep_in(str(tmp_path) if request.param == "files" else "")
    yield str(request.param)
    keep_in("")


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


def test_growing_row_by_row_asks_for_more_seldom(place: str) -> None:
    rows, num_views = GrowingRows((), np.int64), 0
    for num in range(1, 20_000):
        before = rows.array
        rows.grow(num)
        num_views += rows.array is not before
    assert num_views < (20 if place == "memory" else 60)


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


def test_after_a_refusal_nobody_reserves_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.growing._is_refused", False)
    rows = GrowingRows((64,), np.float32, 1 << 45)  # more than a process can have
    rows.array[:] = 1.0
    rows.grow(1_000)
    assert rows.array[:LEAST_ROWS].all()
    assert not rows.array[LEAST_ROWS:].any()
    for each in (rows, GrowingRows((2,), np.int64)):
        assert each._reserved == len(each.array)


LIMITED = """
import resource, sys
import numpy as np
from model.embedding import EmbeddingTable
from model.growing import keep_in
from model.row_store import RowStore
np.random.Generator(np.random.Philox(key=[1, 2])).standard_normal(5, dtype=np.float32)  # loads its libraries
which, value, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
keep_in(folder)
used = 4096 * int(open("/proc/self/statm").read().split()[0])
limit = used + value if which == "RLIMIT_AS" else value
resource.setrlimit(getattr(resource, which), (limit, limit))
tables = [EmbeddingTable(64, init_std=0.02, seed=1, salt=salt) for salt in range(4)]
others = np.ones(value // 2, np.uint8)  # what the rest of the process needs
del others
try:
    for first in range(1, 4_000_000, 5_000):
        keys = np.arange(first, first + 5_000)
        rows = tables[0].insert(keys, 1, first)
        table = tables[0]
        assert len(table.weight) == len(table.state) >= table.num_rows, (len(table.weight), len(table.state))
        assert len(table.live) == len(table.dirty) >= table.num_rows, (len(table.live), len(table.dirty))
        assert bool(table.gather(rows).abs().sum(dim=1).gt(0).all())
        assert rows.tolist() == list(range(first, first + 5_000))
except (MemoryError, OSError) as error:
    print(first, error)
"""


@pytest.mark.parametrize(
    ("limit", "num_bytes", "in_files", "words"),
    [
        ("RLIMIT_AS", 400 << 20, False, "evict (trainer.evict_after_days, max_items), or give the process more"),
        ("RLIMIT_AS", 400 << 20, True, "more bytes of tables (tables_folder): cannot allocate memory"),
        ("RLIMIT_FSIZE", 64 << 20, True, "more bytes of tables (tables_folder): file too large"),
    ],
    ids=["address space", "address space, files", "size of files"],
)
def test_a_limit_is_lived_with_until_nothing_is_left(
    place: str, limit: str, num_bytes: int, in_files: bool, words: str, tmp_path: Path
) -> None:
    """Tables take what they need and leave the rest to others; weights, states and marks have the same rows."""
    if in_files != (place == "files"):
        return
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, limit, str(num_bytes), str(tmp_path) if in_files else ""],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    num_rows, said = done.stdout.split(" ", 1)
    assert words in said
    assert int(num_rows) * 256 > num_bytes // 4, "it goes on until a quarter is in use, since growing copies"


def test_files_have_no_names_and_all_blocks_of_their_rows(place: str, tmp_path: Path) -> None:
    rows = GrowingRows((64,), np.float32)
    rows.grow(10_000)
    rows.array[-1] = 1.0
    assert not list(tmp_path.iterdir())
    files = [each for each in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(each)]
    used = [each.stat().st_blocks * 512 for each in files]
    assert (max(used, default=0) >= rows.array.nbytes) == (place == "files")


def test_rows_for_which_there_was_no_room_leave_the_others_their_file(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "memory":
        return
    rows = GrowingRows((64,), np.float32, 4 * LEAST_ROWS)
    rows.array[:] = 1.0

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="no room for"):
        rows.grow(10 * LEAST_ROWS)
    given = list[int]()
    monkeypatch.setattr(os, "posix_fallocate", lambda file, *_: given.append(file))
    rows.grow(2 * LEAST_ROWS)
    (file,) = given
    assert os.pread(file, 4, 0) == np.float32(1.0).tobytes(), "the blocks are those of the rows that there were"
    rows.grow(10 * LEAST_ROWS)
    assert rows.array[:LEAST_ROWS].all()


FULL = """
import sys
import numpy as np
from model.growing import GrowingRows, keep_in
keep_in(sys.argv[1])
rows = GrowingRows((64,), np.float32)
rows.grow(4_000)
rows.array[:] = 1.0
try:
    rows.grow(100_000)
    rows.array[:] = 1.0
except OSError as error:
    print(f"{error.filename}: {error.strerror}")
"""


def test_a_full_disk_is_an_error_when_the_rows_are_asked_for(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=4m none {tmp_path}"
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*own, mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small disk")
    command = f"{mount} && exec {sys.executable} -c '{FULL}' {tmp_path}"
    done = subprocess.run([*own, command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout == (
        f"{tmp_path}: no room for 24,576,000 more bytes of tables (tables_folder): no space left on device\n"
    )


def test_a_folder_that_cannot_be_used_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match=r"no tables can be kept there \(tables_folder\): file exists: .*taken"):
        keep_in(str(tmp_path / "taken"))
