"""Rounded versions: a reader holds the learner's weights, each rounded by itself, whatever was published before."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.dirty import CHANGED
from model.growing import GrowingColumns
from model.memory_room import neighbours_at, reshaped
from model.memory_version import _numbers_of
from tests.trainer.samples import MODEL, TRAINER, World, assert_same_arrays
from tests.trainer.test_weights import Reader, records, truth_of, values_of
from trainer.checkpoint.snapshot import weights_snapshot
from trainer.learner.step import Learner
from trainer.replay import differences
from trainer.versions.rounding import UNIT, Rounding, planes_of
from wire.weights import encode_blob

pytestmark = pytest.mark.usefixtures("one_thread")


def rounded_truth(learner: Learner) -> dict[str, np.ndarray]:
    """The learner's weights, read without the code under test, each rounded by itself."""
    out = {}
    for name, array in truth_of(learner).items():
        if name.endswith(".rows"):
            array = array.astype(np.float16).astype(np.float32)
        elif name.endswith(".weight") and name.startswith("memory."):
            array = (np.round(array.astype(np.float64) * 4096) / 4096 + 0.0).astype(np.float32)
        out[name] = array
    return out


@pytest.mark.parametrize("most_neighbours", [256, 4096])  # of the latter, there is room for fewer in a larger memory
def test_readers_hold_each_weight_rounded_whenever_they_began_to_read(most_neighbours: int) -> None:
    config = replace(TRAINER, evict_after_days=0.001, evict_every_steps=3)
    learner, world = Learner(replace(MODEL, memory_neighbours=most_neighbours), config), World(2, num_items=60)
    reader, late, rounding, widths = Reader(), Reader(), Rounding(), set()
    for number in range(14):
        for _ in range(1 + number % 2):
            learner.step(world.examples(6))
        if number == 5:
            memory, capacity = learner.memory, 2 * learner.memory.arrays.capacity
            width = neighbours_at(capacity, most_neighbours)
            memory.arrays = reshaped(memory.arrays, capacity, width, GrowingColumns())
        kind = "base" if number in (0, 9) else "delta"
        snapshot = rounding.round(weights_snapshot(learner, everything=kind == "base"), is_base=kind == "base")
        topic = records(snapshot, number, kind, chunk_bytes=900_000)
        for each in (reader, late) if number >= 5 else (reader,):
            each.read(topic)
        assert reader.weights is not None
        assert reader.weights.which == (1, number)
        assert_same_arrays(values_of(reader.weights, learner), rounded_truth(learner))
        widths.add(learner.memory.arrays.width)
    assert late.weights is not None
    assert_same_arrays(values_of(late.weights, learner), rounded_truth(learner))
    assert reader.drops == late.drops == []
    assert len(widths) == (2 if most_neighbours == 4096 else 1)


def test_the_comparison_finds_a_delta_whose_steps_begin_elsewhere() -> None:
    learner, world, reader, rounding = Learner(MODEL, TRAINER), World(2, num_items=60), Reader(), Rounding()
    for number in range(4):
        learner.step(world.examples(6))
        snapshot = rounding.round(weights_snapshot(learner, everything=not number), is_base=not number)
        if number != 2:  # a version that no reader gets, though the next one builds on it
            reader.read(records(snapshot, number - (number > 2), "delta" if number else "base"))
    assert reader.weights is not None
    assert reader.weights.which == (1, 2)
    with pytest.raises(AssertionError):
        assert_same_arrays(values_of(reader.weights, learner), rounded_truth(learner))


def test_a_replay_compares_every_bit_of_a_rounded_version_with_the_learners_rounded_weights() -> None:
    learner, world, reader, rounding = Learner(MODEL, TRAINER), World(2, num_items=60), Reader(), Rounding()
    for number in range(5):
        learner.step(world.examples(10))
        reader.read(
            records(rounding.round(weights_snapshot(learner, everything=not number), is_base=not number), number,
                    "delta" if number else "base")
        )  # fmt: skip
    weights = reader.weights
    assert weights is not None
    weights = replace(weights, manifest=msgspec.structs.replace(weights.manifest, rounding=rounding.errors))
    assert differences(weights, learner) == []
    exact = replace(weights, manifest=msgspec.structs.replace(weights.manifest, rounding={}))
    assert {"items.rows", "memory.weight"} <= set(differences(exact, learner))
    weights.memory.arrays.weight[weights.memory.arrays.weight != 0] += UNIT
    weights.tables["items"].rows[1, 0] += 1e-3
    assert differences(weights, learner) == ["items.rows", "memory.weight"]


def test_rounding_is_measured_and_within_its_bounds_and_takes_a_fraction_of_the_bytes() -> None:
    learner, world, rounding = Learner(MODEL, TRAINER), World(2, num_items=60), Rounding()
    for number in range(6):
        learner.step(world.examples(20))
        exact = weights_snapshot(learner, everything=not number)
        snapshot = rounding.round(exact, is_base=not number)
        assert snapshot.dense is exact.dense
        assert rounding.errors["memory.weight"] <= UNIT / 2
        assert 0 < rounding.errors["items.rows"] < 2**-11
    assert rounding.errors["memory.weight"] > 0
    rows, memory = exact.tables["items"].rows, exact.memory["weight"]
    shrunk = 2 * rows.size + snapshot.memory["weight_steps"].nbytes
    assert len(encode_blob(snapshot)) < len(encode_blob(exact)) - 4 * (rows.size + memory.size) + shrunk + 500


@given(arrays(np.int32, st.integers(0, 20), elements=st.integers(-(1 << 25), 1 << 25)))
@settings(max_examples=60, deadline=None)
def test_planes_are_the_numbers_again_in_as_few_bytes_as_hold_them(steps: np.ndarray) -> None:
    planes = planes_of(steps)
    assert_same_arrays({"": _numbers_of(planes)}, {"": steps.astype(np.float32)})
    most = int(np.abs(steps.astype(np.int64)).max(initial=0))
    assert len(planes) == max(1, (2 * most).bit_length() + 7 >> 3) or most == 0 or -most in steps


@pytest.mark.parametrize("most", [1e5, 1e30])
def test_numbers_that_have_no_rounded_form_are_published_as_the_largest_that_have(most: float) -> None:
    """All steps that led there are sound, so a trainer that refused the version would go back again and again."""
    learner, world, reader, rounding = Learner(MODEL, TRAINER), World(2, num_items=60), Reader(), Rounding()
    learner.step(world.examples(20))
    row = int(learner.items.live_rows()[0])
    for number, sign in enumerate((1, -1, 1)):  # from one end to the other within a delta
        learner.items.weight[row, 0] = learner.items.weight[row, 1] = sign * most
        learner.memory.arrays.weight[learner.memory.arrays.num_neighbours > 0, 0] = sign * most
        learner.memory.arrays.dirty[:] = learner.items.dirty[row] = CHANGED
        snapshot = rounding.round(weights_snapshot(learner, everything=not number), is_base=not number)
        reader.read(records(snapshot, number, "delta" if number else "base"))
        assert reader.weights is not None
        assert reader.weights.which == (1, number)
        assert reader.weights.tables["items"].rows[row, :2].tolist() == [sign * 65504.0] * 2
        held = reader.weights.memory.arrays
        assert set(held.weight[held.num_neighbours > 0, 0].tolist()) == {sign * 2048.0}
        manifest = msgspec.structs.replace(reader.weights.manifest, rounding=rounding.errors)
        assert differences(replace(reader.weights, manifest=manifest), learner) == []
        assert rounding.errors["items.rows"] > 0.3
        assert rounding.errors["memory.weight"] > 90_000
