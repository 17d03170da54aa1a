"""What is copied in slices while a learner goes on is what it would have been had the learner stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import trainer.checkpoint.saver
import trainer.versions.collection
from model import memory_pairs
from model.dirty import UNPUBLISHED, UNSAVED
from model.growing import GrowingColumns
from model.memory import Memory
from model.memory_pairs import PAIRS, empty_pairs
from model.memory_room import reshaped
from tests.model.test_memory import learn
from tests.trainer.samples import MODEL, TRAINER, World, taught
from tests.trainer.stage import NOT_KEPT, unequal
from tests.trainer.test_checkpoint import EVERYTHING
from trainer.checkpoint.folder import CheckpointFolder
from trainer.checkpoint.reading import Checkpoint, read_checkpoint
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshot import learner_arrays, small_arrays, weights_snapshot
from trainer.config import TrainerConfig
from trainer.copies.memory_regions import PairsRegion
from trainer.copies.pace import Pace
from trainer.copies.regions import Region
from trainer.copies.rows import Arrays, Piece
from trainer.copies.sweep import Sweep
from trainer.errors import CheckpointError, UnsoundVersionError
from trainer.learner.step import Learner
from trainer.versions.collection import Collection
from wire.tensors import Tensors
from wire.weights import Snapshot, decode_blob

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIGS = pytest.mark.parametrize("config", [TRAINER, EVERYTHING], ids=["plain", "everything on"])
SLICE_BYTES = 5000
"""Of a learner of some 30,000 beside what the odds keep: a copy spans several steps."""
SAVED_BYTES = 12_000
"""For a checkpoint, which has what the odds keep: a step changes some 10,000 of it."""


@pytest.fixture
def saver(folder: CheckpointFolder) -> Iterator[Saver]:
    """Of that folder."""
    made = Saver(folder)
    yield made
    made.close()


def stopped(learner: Learner) -> Arrays:
    """Everything, as it is at this moment."""
    return {name: np.array(array) for name, array in learner_arrays(learner).items()}


def meta_of(learner: Learner) -> dict[str, Any]:
    return {"model": learner.model_config.as_dict(), "trainer": learner.config.learning_dict()}


def save(saver: Saver, learner: Learner, world: World) -> tuple[Arrays, int]:
    """One checkpoint beside steps; what the learner was at the cut, and how many steps the copy took."""
    saver.begin(learner)
    num_steps = 0
    while not saver.advance(SAVED_BYTES):
        learner.step(world.examples(6))
        num_steps += 1
    expected = stopped(learner)
    saver.cut(Checkpoint(learner.num_steps, small_arrays(learner), meta_of(learner)))
    for _ in range(2):  # what changes now is not in it
        learner.step(world.examples(6))
    assert saver.wait() is None
    return expected, num_steps


@CONFIGS
def test_checkpoints_copied_beside_steps_hold_what_a_stopped_learner_would(
    config: TrainerConfig, folder: CheckpointFolder, saver: Saver
) -> None:
    learner, world = taught(config)
    for _ in range(5):
        expected, num_steps = save(saver, learner, world)
        assert num_steps > 1
        kept = folder.load()
        assert kept is not None
        assert unequal(kept.arrays, expected, NOT_KEPT) == []


def test_a_checkpoint_of_little_change_is_an_increment_and_in_the_end_a_whole_one(
    folder: CheckpointFolder, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.checkpoint.saver, "MOST_INCREMENTS", 3)
    learner, world = taught(EVERYTHING, num_steps=30)
    is_whole = []
    for _ in range(8):
        learner.step(world.examples(1))
        saver.begin(learner)
        expected = stopped(learner)
        saver.cut(Checkpoint(learner.num_steps, small_arrays(learner), meta_of(learner)))
        assert saver.wait() is None
        kept = folder.load()
        assert kept is not None
        assert unequal(kept.arrays, expected, NOT_KEPT) == []
        is_whole.append(kept.meta["rows"]["onto"] is None)
    assert is_whole == [True, False, False, False, True, False, False, False]
    assert len(folder.steps()) == 8, "two whole ones, with their increments"


def chain(saver: Saver, learner: Learner, world: World, num: int) -> list[Arrays]:
    """Checkpoints one behind the other."""
    expected = []
    for _ in range(num):
        learner.step(world.examples(1))
        saver.begin(learner)
        expected.append(stopped(learner))
        saver.cut(Checkpoint(learner.num_steps, small_arrays(learner), meta_of(learner)))
        assert saver.wait() is None
    return expected


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("lost", [0, 1])
def test_where_somebody_has_removed_what_it_would_build_on_the_next_one_is_whole(
    lost: int, folder: CheckpointFolder, saver: Saver
) -> None:
    learner, world = taught(EVERYTHING, num_steps=30)
    chain(saver, learner, world, 2)
    shutil.rmtree(folder.path / f"checkpoint-{folder.steps()[lost]:012d}")
    [expected] = chain(saver, learner, world, 1)
    kept = folder.load()
    assert kept is not None
    assert unequal(kept.arrays, expected, NOT_KEPT) == []


@pytest.mark.parametrize("hurt", [tear, flip, Path.unlink])
def test_a_damaged_increment_is_passed_over_for_the_one_before_aloud(
    hurt: Callable[[Path], None], folder: CheckpointFolder, saver: Saver, damage: list[str]
) -> None:
    expected = chain(saver, *taught(EVERYTHING, num_steps=30), 3)
    hurt(folder.path / f"checkpoint-{folder.steps()[-1]:012d}" / "rows.log")
    kept = folder.load()
    assert kept is not None
    assert unequal(kept.arrays, expected[1], NOT_KEPT) == []
    assert len(damage) == 1
    assert "rows.log" in damage[0]


def test_an_increment_on_another_checkpoint_than_the_one_that_is_there_is_not_loaded(
    folder: CheckpointFolder, saver: Saver
) -> None:
    chain(saver, *taught(EVERYTHING, num_steps=30), 2)
    first, second = (folder.path / f"checkpoint-{step:012d}" for step in folder.steps())
    whole = read_checkpoint(first)
    folder.write(Checkpoint(whole.step, whole.arrays, {}))  # of the same step, by another trainer
    with pytest.raises(CheckpointError, match="builds on another checkpoint-"):
        read_checkpoint(second)


def test_what_is_dropped_half_way_leaves_the_checkpoint_before_and_the_next_one_is_whole(
    folder: CheckpointFolder, saver: Saver
) -> None:
    learner, world = taught()
    before, _ = save(saver, learner, world)
    saver.begin(learner)
    saver.advance(SLICE_BYTES)
    saver.abandon()
    kept = folder.load()
    assert kept is not None
    assert unequal(kept.arrays, before, NOT_KEPT) == []
    expected, _ = save(saver, learner, world)
    kept = folder.load()
    assert kept is not None
    assert kept.meta["rows"]["onto"] is None
    assert unequal(kept.arrays, expected, NOT_KEPT) == []


# Versions


def make(collection: Collection, learners: list[Learner], world: World) -> tuple[Snapshot, int]:
    """A version of the first learner copied beside steps that all make; and how many."""
    num_steps = 0
    while not collection.advance(SLICE_BYTES):
        num_steps += 1
        batch = world.examples(6)
        for learner in learners:
            learner.step(batch)
    make_blob = collection.cut(learners[0])
    return decode_blob(b"".join(make_blob().parts)), num_steps


@CONFIGS
def test_versions_copied_beside_steps_carry_what_a_stopped_learner_would(config: TrainerConfig) -> None:
    (sliced, world), (at_once, _) = taught(config), taught(config)
    for number in range(6):
        whole = number in (0, 4)
        ours, num_steps = make(Collection(sliced, whole=whole), [sliced, at_once], world)
        assert num_steps > 0
        assert_same_snapshot(ours, weights_snapshot(at_once, everything=whole))
        batch = world.examples(6)
        for learner in (sliced, at_once):
            learner.step(batch)


def assert_same_snapshot(ours: Snapshot, theirs: Snapshot) -> None:
    def flat(snapshot: Snapshot) -> Arrays:
        tables = {
            f"{name}.{part}": getattr(rows, part)
            for name, rows in snapshot.tables.items()
            for part in ("ids", "row_index", "rows", "tombstones")
        }
        parts = (("dense", snapshot.dense), ("memory", snapshot.memory), ("rates", snapshot.rates))
        return {**tables, **{f"{part}.{name}": array for part, arrays in parts for name, array in arrays.items()}}

    assert unequal(flat(ours), flat(theirs), ()) == []
    assert ours.names == theirs.names


def test_rows_that_are_not_finite_are_in_no_version_and_in_no_checkpoint(saver: Saver) -> None:
    learner, _ = taught()
    learner.items.weight[learner.items.live_rows()[-1], 0] = np.nan
    learner.items.dirty[:] = 0xFF
    collection = Collection(learner, whole=False)
    with pytest.raises(UnsoundVersionError, match="weight of rows of items"):
        collection.cut(learner)()
    saver.begin(learner)
    saver.cut(Checkpoint(learner.num_steps, small_arrays(learner), meta_of(learner)))
    problem = saver.wait()
    assert problem is not None
    assert "weight of rows of items" in problem.what
    assert saver._folder.steps() == []


class Numbers:
    """A region of one number a row."""

    name, row_bytes = "numbers", 8

    def __init__(self, num_rows: int) -> None:
        self.num_rows, self.dirty = num_rows, np.full(num_rows, 0xFF, np.uint8)

    def take(self, rows_U: NDArray[np.int64]) -> Arrays:
        return {"number": rows_U.astype(np.float64)}


@pytest.mark.parametrize("changes", [5, 20, 60])
def test_slices_stay_as_short_as_what_changes_between_them_allows(changes: int) -> None:
    num_rows, budget, copied, rng = 10_000, 20 * 8, list[int](), np.random.default_rng(0)
    region = Numbers(num_rows)
    sweep = Sweep([region], [], UNPUBLISHED, lambda piece: copied.append(len(piece.rows_U)), whole=False)
    longest = num_slices = 0
    while not sweep.advance(budget):
        longest, num_slices = max(longest, sum(copied)), num_slices + 1
        copied.clear()
        region.dirty[rng.integers(0, num_rows, changes)] = 0xFF
    sweep.finish()
    assert max(longest, sum(copied)) <= 20 + changes
    assert num_slices <= num_rows / 20, "each leaves less than the one before"


# Builds that tear


class CopiesOnce(Sweep):
    """Rows that change behind the copying are not copied again."""

    def _take_changed(self, budget: int, dirty: Iterable[tuple[Region, NDArray[np.int64]]]) -> None:
        for region, rows_U in dirty:
            region.dirty[rows_U] = 0


def shares_memory(self: Any, region: str, rows_U: Any, columns: Arrays) -> int:
    """A piece is a view of what the learner goes on to change."""
    table = self._regions[0]._table
    if region == "items" and len(rows_U) and rows_U[-1] - rows_U[0] == len(rows_U) - 1:
        columns = {**columns, "weight": table.weight.numpy()[rows_U[0] : rows_U[-1] + 1]}
    self._give(Piece(region, rows_U, columns))
    return 1


def test_a_build_that_tears_a_checkpoint_is_caught(
    folder: CheckpointFolder, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.checkpoint.saver, "Sweep", CopiesOnce)
    expected, _ = save(saver, *taught())
    kept = folder.load()
    assert kept is not None
    assert {"items.weight", "items.state"} <= set(unequal(kept.arrays, expected, NOT_KEPT))


@pytest.mark.parametrize("how", ["copies once", "shares memory"])
def test_a_build_that_tears_a_version_is_caught(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "copies once":
        monkeypatch.setattr(trainer.versions.collection, "Sweep", CopiesOnce)
    (sliced, world), (at_once, _) = taught(), taught()
    collection = Collection(sliced, whole=True)
    if how == "shares memory":
        monkeypatch.setattr(Sweep, "_emit", shares_memory)
        while not collection.advance(SLICE_BYTES):
            pass
        blob = collection.cut(sliced)
        expected = weights_snapshot(at_once, everything=True)
        sliced.step(world.examples(6))
        ours = decode_blob(b"".join(blob().parts))
    else:
        ours, _ = make(collection, [sliced, at_once], world)
        expected = weights_snapshot(at_once, everything=True)
    with pytest.raises(AssertionError, match=r"\.rows"):
        assert_same_snapshot(ours, expected)


# Beside


def test_a_memory_whose_rows_become_narrower_while_it_is_copied_is_copied_as_it_is_then() -> None:
    (sliced, world), (at_once, _) = taught(num_steps=12), taught(num_steps=12)
    collection = Collection(sliced, whole=True)
    collection.advance(SLICE_BYTES)
    for learner in (sliced, at_once):
        arrays = learner.memory.arrays
        learner.memory.arrays = reshaped(arrays, arrays.capacity, 3, GrowingColumns())
    ours, _ = make(collection, [sliced, at_once], world)
    theirs = weights_snapshot(at_once, everything=True)
    assert_same_snapshot(ours, theirs)
    reader = Memory(MODEL)
    reader.apply(ours.memory, is_base=True)
    assert reader.arrays.width == 3


def test_what_is_copied_of_pairs_is_what_a_memory_has_left_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is learned, evicted and moved to a larger table since the last copy."""
    monkeypatch.setattr("model.memory.FIRST_CAPACITY", 64)
    monkeypatch.setattr(memory_pairs, "PAIRS_PER_ROW", 1)
    for seed in range(12):
        memory, rng, num_rows = Memory(MODEL), np.random.default_rng(seed), 50
        pieces: list[Piece] = []
        learn(memory, rng, num_rows, 100)
        Sweep([PairsRegion(memory, for_version=False)], [], UNSAVED, pieces.append, whole=True).finish()
        for _ in range(8):
            learn(memory, rng, num_rows, int(rng.integers(0, 40)))
            memory.forget(rng.integers(1, num_rows, 2))
            num_rows = min(500, num_rows + int(rng.integers(0, 40)))
            memory.grow(num_rows)
            Sweep([PairsRegion(memory, for_version=False)], [], UNSAVED, pieces.append, whole=False).finish()
            kept = empty_pairs(memory.arrays.num_pairs)
            for piece in pieces:
                for name in PAIRS:
                    kept[name][piece.rows_U] = piece.columns[name]
            for name in PAIRS:
                np.testing.assert_array_equal(kept[name], getattr(memory.arrays, name))


def test_arrays_in_parts_are_what_safetensors_reads() -> None:
    from safetensors.numpy import load

    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((7, 3)).astype(np.float32), "none": np.zeros((0, 4)), "flags": rng.random(5) > 0.5,
        "ids": rng.integers(-(2**62), 2**62, 9), "bytes": np.frombuffer(b"xyz", np.uint8), "one": np.array([3.5]),
    }  # fmt: skip
    blob = Tensors(arrays)
    whole = b"".join(blob.parts)
    assert len(whole) == blob.num_bytes
    assert unequal(load(whole), arrays, ()) == []
    for size in (1, 7, 100, 10_000):
        chunks = list(blob.chunks(size))
        assert b"".join(chunks) == whole
        assert len(chunks) == max(1, -(-len(whole) // size))
        assert {len(chunk) for chunk in chunks[:-1]} <= {size}


def test_between_two_steps_no_more_is_copied_than_takes_a_quarter_of_a_step() -> None:
    pace, budgets = Pace(), list[int]()

    def advance(budget: int) -> bool:
        budgets.append(budget)
        return True

    pace.copy(advance, 1)
    for _ in range(10):
        pace.stepped(0.1)
    pace.copy(advance, 1)
    pace.copy(advance, 2)
    assert budgets[0] == 1 << 20, "before anything was measured"
    assert budgets[1] == 2 * budgets[2]
    assert budgets[1] == pytest.approx(0.25 * 0.1 * 2e8)


def test_nothing_is_copied_in_the_turn_of_a_long_step() -> None:
    pace, budgets = Pace(), list[int]()

    def advance(budget: int) -> bool:
        budgets.append(budget)
        return True

    for _ in range(10):
        pace.stepped(0.1)
    pace.stepped(0.2)
    assert not pace.copy(advance, 1)
    pace.turned()
    assert pace.copy(advance, 1), "also if no step follows"
    pace.stepped(0.2)
    pace.stepped(0.1)
    assert pace.copy(advance, 1)
    assert len(budgets) == 2
